"""The attention that reads packs, plugged into transformers' models without patching them.

``load`` functions give a model one of the attention names registered here; a reader plans each pack's attention once
and passes the plan down the forward as a keyword argument, so every layer calls the same plan. Without a plan (in
``generate``, say) the same model runs transformers' own SDPA.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from dapo_fast.data.pack import Pack
from dapo_fast.errors import InputError
from dapo_fast.models.dense import Dense, attend
from dapo_fast.models.flat import FlatVarlen
from dapo_fast.models.padded import padded_inputs, reads_padded
from dapo_fast.models.tree_flex import Heads, TreeFlex
from dapo_fast.models.tree_sdpa import TreeSDPA
from dapo_fast.models.variants import Variant, head_size, largest, rotary_length, variant_of

log = logging.getLogger("dapo_fast.attention")

Attend = Callable[[Tensor, Tensor, Tensor, float, Variant, Tensor | None], Tensor]
BACKENDS = ("auto", "flex", "tree_sdpa", "varlen", "dense")
# Transformers takes any name with "sdpa" in it for its own, which it refuses for models with softcaps or sinks.
_NAMES = {backend: "dapo_" + backend.removesuffix("_sdpa") for backend in BACKENDS}
_chosen: set[tuple[str, str, bool]] = set()


def choose_backend(requested: str, device: torch.device, flat: bool, shared: bool = False) -> str:
    """The backend for packs on ``device``, logged the first time.

    ``"auto"`` is ``"flex"`` for trees on CUDA, ``"varlen"`` for flat packs on CUDA, ``"tree_sdpa"`` elsewhere; for a
    share of a pack's rows ``"flex"`` on CUDA, ``"dense"`` elsewhere.

    Raises:
        InputError: a demanded backend cannot run here.
    """
    implementation(requested)  # raises for what is unknown
    cuda, backend = device.type == "cuda", requested
    if requested == "auto" and shared:
        backend = "flex" if cuda else "dense"
    elif requested == "auto":
        backend = ("varlen" if flat else "flex") if cuda else "tree_sdpa"
    if backend == "tree_sdpa" and cuda:
        raise InputError("model.attention: 'tree_sdpa' runs on the CPU only; use 'flex' or 'dense' on CUDA")
    if backend == "varlen" and not flat:
        raise InputError("model.attention: 'varlen' reads flat packs only; trees need 'flex', 'tree_sdpa' or 'dense'")
    if shared and backend not in ("flex", "dense"):
        raise InputError(
            f"model.attention: {backend!r} is not for parallel.context_parallel_degree; 'flex', 'dense' are"
        )
    key = (backend, device.type, flat)
    if key not in _chosen:
        _chosen.add(key)
        log.info("%s packs on %s: %s attention", "flat" if flat else "tree", device.type, backend)
    return backend


def plan_attention(pack: Pack, requested: str, heads: Heads | None = None) -> Attend:
    """What every layer calls for this pack: (query, key, value, scale, variant, sinks) → (1, T, heads, head size).

    Args:
        heads: The model's; None: kernels that are for some shapes only are not used.
    """
    device = pack.input_ids.device
    backend = choose_backend(requested, device, pack.is_flat, pack.split is not None)
    if backend == "flex":
        return TreeFlex(pack, heads)
    if backend == "tree_sdpa":
        return TreeSDPA(pack)
    if backend == "varlen":
        return FlatVarlen(pack)
    return Dense(pack.subtree_end, pack.position_ids, None if pack.split is None else pack.split.rows)


def implementation(requested: str) -> str:
    """The ``attn_implementation`` that stands for a requested backend."""
    if requested not in BACKENDS:
        raise InputError(f"model.attention: {requested!r} is unknown; there are {', '.join(BACKENDS)}")
    return _NAMES[requested]


def requested_backend(model: PreTrainedModel) -> str:
    """The backend that ``model`` was loaded for."""
    name = model.config._attn_implementation
    for backend, registered in _NAMES.items():
        if name == registered:
            return backend
    raise InputError(
        f"model: its attention is {name!r}, which cannot read packs; load it with load_causal_lm or "
        f"load_value_model, or call model.set_attn_implementation('{_NAMES['auto']}')"
    )


def backbone_inputs(model: PreTrainedModel, pack: Pack) -> dict[str, Any]:
    """Keyword arguments of a backbone's forward over ``pack``; its hidden states are those of ``padded.by_token``.

    Raises:
        InputError: a sequence is longer than the model's rotary frequencies hold (``variants.rotary_length``).
    """
    most = rotary_length(model.config.get_text_config())
    if most is not None and int(pack.position_ids.max()) >= most:
        raise InputError(
            f"a sequence of {int(pack.position_ids.max()) + 1} tokens: beyond {most} the rotary frequencies of this "
            f"{model.config.model_type} model change, for shorter sequences beside it too"
        )
    if reads_padded(model.config):
        return padded_inputs(pack)
    return {
        "input_ids": pack.input_ids[None],
        "position_ids": pack.position_ids[None],
        "attention_mask": already_4d(pack.input_ids.device),
        "use_cache": False,
        "dapo_attention": plan_attention(pack, requested_backend(model), heads_of(model.config)),
    }


def already_4d(device: torch.device) -> Tensor:
    """A mask that transformers passes on as it is, making none of its own."""
    return torch.ones((1, 1, 1, 1), dtype=torch.bool, device=device)


def heads_of(config: PreTrainedConfig) -> Heads | None:
    """The shape of the attention that ``config`` describes; None where it does not say."""
    config = config.get_text_config()
    queries = largest(config, "num_attention_heads")
    if not isinstance(queries, int):
        return None
    return Heads(queries, largest(config, "num_key_value_heads") or queries, head_size(config))


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    dapo_attention: Attend | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    if dapo_attention is None:
        return without_plan(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    if attention_mask is not None and attention_mask.numel() > 1:  # not ``already_4d`` any more: Doge adds scores to it
        raise InputError(f"{type(module).__name__}: its attention makes a mask of its own, which packs do not honour")
    if dropout:
        raise InputError(f"{type(module).__name__}: attention dropout of {dropout} is on; packs are read without it")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    kind = query.device.type
    if torch.is_autocast_enabled(kind):  # autocast does not know these kernels, and RoPE leaves it with mixed dtypes
        query, key, value = (x.to(torch.get_autocast_dtype(kind)) for x in (query, key, value))
    out = dapo_attention(query, key, value, scale, variant_of(module, kwargs), kwargs.get("s_aux"))
    # As transformers' own: some families view it in another shape.
    return out if out.is_contiguous() else out.contiguous(), None


def without_plan(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float,
    scaling: float | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Plain sequences, as transformers' SDPA reads them; with the softcaps and sinks that its SDPA drops."""
    softcap, sinks = kwargs.get("softcap"), kwargs.get("s_aux")
    if softcap is None and sinks is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    if attention_mask is None:  # transformers leaves out a mask that is the causal one
        rows = torch.arange(key.shape[2], device=query.device)
        attention_mask = rows[None, :] <= rows[-query.shape[2] :, None]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return attend(query, key, value, scale, attention_mask, softcap, sinks).transpose(1, 2).contiguous(), None


for _name in _NAMES.values():
    AttentionInterface.register(_name, _attention)
    AttentionMaskInterface.register(_name, sdpa_mask)
