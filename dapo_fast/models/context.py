"""Context parallelism: a pack too long for one device, its rows split over the ranks of a group.

The world is data × context: neighbouring ranks form a context, and each takes a share of every pack dealt to it.
Parameters know nothing of it: FSDP2 shards them over the whole world, and adds up the gradients that every rank makes
of its own share, as it does for whole packs.

**Rows.** A pack is padded to a multiple of size × block rows. Its blocks are dealt in rounds, the one that sees most
keys first, to the rank with the least: as many rows on each rank and nearly as many visible pairs, whatever the tree.
All but attention and the loss treat a row by itself: a share is its rows' ids and depths.

**Attention.** A layer gathers the keys and values of all rows in one collective, puts them into the pack's order, and
attends from its own rows under those rows of the tree's mask. Backward adds up each key's gradient over the ranks and
leaves every rank that of its own rows (a reduce-scatter, in fp32 whatever is computed in). What is gathered is kept for
the backward pass of each layer; with full activation checkpointing it lives no longer than the layer.

**What is read.** The squared loss of a step needs the sum over its tokens, which several ranks may hold. It is not
divided: the last hidden states are gathered, once a pack and as much as one layer's activations, and whole STEPS are
dealt. Each rank has an equal part of the scored tokens, cut between steps, and scores them as those of any pack; values
likewise. So every objective works as it stands, of segments, tokens or groups; logits are divided evenly even where one
rank holds all scored rows; and the gradient of the hidden states flows back through the same reduce-scatter. To sum
log-probabilities over ranks instead would take a second pass over the logits, or a collective between the chunks of the
fused loss, whose cuts differ from rank to rank.

**Refused** before weights are read: families other than those tested against one process (dense, full attention), and
other backends than dense masks and FlexAttention. FlexAttention has no backward on a CPU, so on CUDA it is tried first
on a small tree, forward and backward. The ranks of a context issue the same collectives in the same order, with empty
packs too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedModel

from dapo_fast.data.dealing import in_rounds
from dapo_fast.data.pack import Pack, Split
from dapo_fast.errors import InputError
from dapo_fast.models.attention import Attend, choose_backend, heads_of, requested_backend
from dapo_fast.models.checks import check_proved
from dapo_fast.models.tree_flex import BLOCK, flex_error
from dapo_fast.models.variants import windows_of


@dataclass(frozen=True)
class Context:
    """The ranks that share packs with this one.

    Attributes:
        group: Their process group; rank r of it has share r.
        size: How many there are.
    """

    group: dist.ProcessGroup
    size: int

    def whole(self, local: Tensor, split: Split) -> Tensor:
        """(T, …) of all rows in the pack's order, from the (L, …) of each rank; differentiable once."""
        return _Gathered.apply(local, split.order, self.group, self.size)

    def attention(self, attend: Attend, split: Split) -> Attend:
        """``attend``, which wants the keys and values of all rows, for a layer that has those of this rank's."""

        def gathering(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> Tensor:
            both = torch.cat((key, value), dim=-1)[0].transpose(0, 1)  # (L, Hkv, D + Dv)
            both = self.whole(both, split).transpose(0, 1)[None]
            return attend(query, *both.split((key.shape[-1], value.shape[-1]), dim=-1), *rest)

        return gathering


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor, order: Tensor, group: dist.ProcessGroup, size: int) -> Tensor:
        ctx.group, ctx.size = group, size
        ctx.save_for_backward(order)
        ranked = local.new_empty((size * local.shape[0], *local.shape[1:]))
        dist.all_gather_into_tensor(ranked, local.contiguous(), group=group)
        return ranked.index_select(0, order)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (order,) = ctx.saved_tensors
        exact = torch.promote_types(upstream.dtype, torch.float32)
        ranked = torch.empty_like(upstream, dtype=exact, memory_format=torch.contiguous_format)
        ranked.index_copy_(0, order, upstream.to(exact))
        own = ranked.new_empty((ranked.shape[0] // ctx.size, *ranked.shape[1:]))
        dist.reduce_scatter_tensor(own, ranked, group=ctx.group)
        return own.to(upstream.dtype), None, None, None


def shares(pack: Pack, size: int, block: int) -> list[Pack]:
    """What each of ``size`` ranks takes of ``pack``: blocks of its rows, some of its steps, some of its values.

    Args:
        block: Rows that stay together; ``pack.length`` is a multiple of ``size`` times it.
    """
    visible = (pack.position_ids + 1).view(-1, block).sum(1).tolist()
    places = torch.arange(pack.length).view(-1, block)
    rows = [places[sorted(blocks)].flatten() for blocks in in_rounds(visible, size)]
    order = torch.empty_like(pack.position_ids)
    order[torch.cat(rows)] = torch.arange(pack.length)
    fair = torch.arange(size) * pack.targets.numel() // size
    steps = [*torch.searchsorted(pack.cu_steps, fair.to(torch.int32)).tolist(), pack.steps]
    values = [pack.value_rows.numel() * rank // size for rank in range(size + 1)]
    flat = [pack.flat_tokens * rank // size for rank in range(size + 1)]
    return [
        replace(
            _reading(pack, slice(*steps[rank : rank + 2]), slice(*values[rank : rank + 2])),
            input_ids=pack.input_ids[mine],
            position_ids=pack.position_ids[mine],
            tokens=int((mine < pack.tokens).sum()),
            flat_tokens=flat[rank + 1] - flat[rank],
            split=Split(mine, order),
        )
        for rank, mine in enumerate(rows)
    ]


def _reading(pack: Pack, steps: slice, values: slice) -> Pack:
    """``pack`` with only these of its steps and values to read."""
    start, stop = pack.cu_steps[steps.start].item(), pack.cu_steps[steps.stop].item()
    by_token = {name: getattr(pack, name)[start:stop] for name in ("hidden_rows", "targets")}
    by_step = {name: getattr(pack, name)[steps] for name in ("advantages", "ref_logps", "step_keys")}
    by_value = {
        name: getattr(pack, name)[values] for name in ("value_rows", "value_targets", "value_weights", "value_keys")
    }
    cu_steps = pack.cu_steps[steps.start : steps.stop + 1] - start
    return replace(pack, cu_steps=cu_steps, **by_token, **by_step, **by_value)


def check_shared(model: PreTrainedModel) -> None:
    """Refuse a model for which sharing packs is not proved; weights are not looked at.

    Raises:
        InputError: naming the setting and what stands in the way.
    """
    config = model.config.get_text_config()
    check_proved(config, "parallel.context_parallel_degree")
    if windows_of(config) or set(getattr(config, "layer_types", None) or ["full_attention"]) != {"full_attention"}:
        raise InputError(
            f"parallel.context_parallel_degree: not for this {config.model_type} model, whose attention is not full in "
            "every layer"
        )


def try_shared(model: PreTrainedModel, device: torch.device) -> None:
    """Try the kernel that ``model`` will share packs with, on ``device``.

    Raises:
        InputError: FlexAttention over a share of the rows differs from attention with a dense mask.
    """
    heads = heads_of(model.config)
    backend = choose_backend(requested_backend(model), device, flat=False, shared=True)
    if backend != "flex" or device.type != "cuda" or heads is None:
        return
    last = torch.arange(3 * BLOCK, 4 * BLOCK, device=device)
    error = flex_error(heads, device, rows=torch.cat((torch.arange(BLOCK, device=device), last)))
    if not error <= 5e-2:
        raise InputError(
            f"parallel.context_parallel_degree: FlexAttention over a share of the rows differs by {error:.1e} from "
            "attention with a dense mask on this device; model.attention=dense does without it"
        )
