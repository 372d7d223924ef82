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
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from dapo_fast.data.packing import Pack
from dapo_fast.errors import InputError
from dapo_fast.models.flat import FlatVarlen
from dapo_fast.models.tree_flex import TreeFlex
from dapo_fast.models.tree_sdpa import TreeSDPA

log = logging.getLogger("dapo_fast.attention")

Attend = Callable[[Tensor, Tensor, Tensor, float], Tensor]
TESTED = ("llama", "qwen2", "qwen3", "mistral")  # model types that the equality tests cover
BACKENDS = ("auto", "flex", "tree_sdpa", "varlen", "dense")
_PREFIX = "dapo_"
_chosen: set[tuple[str, str, bool]] = set()


class Dense:
    """SDPA under the whole (T, T) mask: any device and dtype, at quadratic cost. The definition of the others."""

    def __init__(self, ends: Tensor) -> None:
        rows = torch.arange(ends.numel(), device=ends.device)
        self.mask = ((rows[None, :] <= rows[:, None]) & (rows[:, None] < ends[None, :]))[None, None]

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """``query`` (1, Hq, T, D), ``key`` and ``value`` (1, Hkv, T, D) → (1, T, Hq, D)."""
        grouped = query.shape[1] != key.shape[1]
        out = F.scaled_dot_product_attention(query, key, value, self.mask, scale=scale, enable_gqa=grouped)
        return out.transpose(1, 2)


def choose_backend(requested: str, device: torch.device, flat: bool) -> str:
    """The backend for packs on ``device``, logged the first time.

    ``"auto"`` is ``"flex"`` for trees on CUDA, ``"varlen"`` for flat packs on CUDA, ``"tree_sdpa"`` elsewhere.

    Raises:
        InputError: a demanded backend cannot run here.
    """
    cuda = device.type == "cuda"
    backend = requested
    if requested == "auto":
        backend = ("varlen" if flat else "flex") if cuda else "tree_sdpa"
    if backend not in BACKENDS:
        raise InputError(f"model.attention: {requested!r} is unknown; there are {', '.join(BACKENDS)}")
    if backend == "tree_sdpa" and cuda:
        raise InputError("model.attention: 'tree_sdpa' runs on the CPU only; use 'flex' or 'dense' on CUDA")
    if backend == "varlen" and not flat:
        raise InputError("model.attention: 'varlen' reads flat packs only; trees need 'flex', 'tree_sdpa' or 'dense'")
    key = (backend, device.type, flat)
    if key not in _chosen:
        _chosen.add(key)
        log.info("%s packs on %s: %s attention", "flat" if flat else "tree", device.type, backend)
    return backend


def plan_attention(pack: Pack, requested: str) -> Attend:
    """What every layer calls for this pack: (query, key, value, scale) → (1, T, heads, head size)."""
    device = pack.input_ids.device
    backend = choose_backend(requested, device, pack.is_flat)
    if backend == "flex":
        return TreeFlex(pack)
    if backend == "tree_sdpa":
        return TreeSDPA(pack)
    if backend == "varlen":
        return FlatVarlen(pack)
    return Dense(pack.subtree_end)


def implementation(requested: str) -> str:
    """The ``attn_implementation`` that stands for a requested backend."""
    if requested not in BACKENDS:
        raise InputError(f"model.attention: {requested!r} is unknown; there are {', '.join(BACKENDS)}")
    return _PREFIX + requested


def requested_backend(model: PreTrainedModel) -> str:
    """The backend that ``model`` was loaded for."""
    name = model.config._attn_implementation
    if not str(name).startswith(_PREFIX):
        raise InputError(
            f"model: its attention is {name!r}, which cannot read packs; load it with load_causal_lm or "
            f"load_value_model, or call model.set_attn_implementation('{_PREFIX}auto')"
        )
    return name.removeprefix(_PREFIX)


def backbone_inputs(model: PreTrainedModel, pack: Pack) -> dict[str, Any]:
    """Keyword arguments of a backbone's forward over ``pack``."""
    return {
        "input_ids": pack.input_ids[None],
        "position_ids": pack.position_ids[None],
        "attention_mask": _already_4d(pack.input_ids.device),
        "use_cache": False,
        "dapo_attention": plan_attention(pack, requested_backend(model)),
    }


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
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    for name in ("sliding_window", "softcap", "s_aux", "position_bias"):
        if kwargs.get(name) is not None:
            raise InputError(
                f"{type(module).__name__}: its attention uses {name}, which tree attention does not honour"
            )
    if dropout:
        raise InputError(f"{type(module).__name__}: attention dropout of {dropout} is on; packs are read without it")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    kind = query.device.type
    if torch.is_autocast_enabled(kind):  # autocast does not know these kernels, and RoPE leaves it with mixed dtypes
        query, key, value = (x.to(torch.get_autocast_dtype(kind)) for x in (query, key, value))
    return dapo_attention(query, key, value, scale), None


for _backend in BACKENDS:
    AttentionInterface.register(_PREFIX + _backend, _attention)
    AttentionMaskInterface.register(_PREFIX + _backend, sdpa_mask)


# ------------------------------------------------------------------------------------------- which models can be read


def check_supported(config: PreTrainedConfig, source: str) -> None:
    """Refuse a model whose attention is not plain causal softmax attention over relative or absolute positions.

    Llama, Qwen2, Qwen3 and Mistral without a sliding window are tested; others with the same kind of attention pass,
    and are tried once they are loaded (``check_plugged_in``).

    Raises:
        InputError: naming ``source`` and what stands in the way.
    """
    config = config.get_text_config()
    kind = config.model_type
    reasons = []
    if getattr(config, "is_encoder_decoder", False) or getattr(config, "is_causal", True) is False:
        reasons.append("it is not a causal decoder")
    layer_types = set(getattr(config, "layer_types", None) or ["full_attention"])
    if layer_types != {"full_attention"}:
        others = ", ".join(sorted(layer_types - {"full_attention"}))
        reasons.append(f"it has {others} layers, whose mask or state a tree cannot honour")
    elif getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        reasons.append(
            f"it attends through a sliding window of {config.sliding_window} tokens, counted in packed rows instead of "
            "depth; if all its sequences are shorter, set sliding_window to null in its config.json"
        )
    if getattr(config, "attn_logit_softcapping", None):
        reasons.append("it softcaps attention scores")
    if getattr(config, "alibi", False):
        reasons.append("it adds a position bias (ALiBi) to attention scores")
    if getattr(config, "attention_dropout", 0.0):
        reasons.append(f"it has attention dropout ({config.attention_dropout}); set attention_dropout to 0")
    if reasons:
        raise InputError(f"{source}: a {kind} model cannot be trained on step trees: " + "; ".join(reasons))


def check_plugged_in(model: PreTrainedModel, source: str) -> None:
    """Refuse a model that does not take its attention from transformers' interface, or mixes tokens in other ways.

    One with its weights is tried too (``check_trees``); one without them is to be tried once it has them.

    Raises:
        InputError: naming ``source`` and what stands in the way.
    """
    name = type(model).__name__
    if getattr(model, "_is_stateful", False):
        raise InputError(f"{source}: {name} mixes tokens by a recurrent state, which siblings of a tree would share")
    if not getattr(model, "_supports_attention_backend", False):
        raise InputError(
            f"{source}: {name} does not use transformers' attention interface, so tree attention cannot be plugged in"
        )
    if model.device.type != "meta":
        check_trees(model, source, model.dtype, lambda: tree_error(model))


def check_trees(model: PreTrainedModel, source: str, dtype: torch.dtype, error_of: Callable[[], float]) -> None:
    """Refuse a model, outside the families of ``TESTED``, that does not read a small tree as its two sequences.

    Args:
        dtype: What it computes in.
        error_of: Gives ``tree_error`` of ``model``.

    Raises:
        InputError: naming ``source``.
    """
    if model.config.get_text_config().model_type in TESTED:
        return
    name, error = type(model).__name__, error_of()
    limit = 1e-3 if dtype in (torch.float32, torch.float64) else 0.1
    log.info("%s is not among the tested families; a small tree differs from its sequences by %.1e", name, error)
    if not error <= limit:
        raise InputError(
            f"{source}: {name} does not honour tree attention: a small tree and its separate sequences differ by "
            f"{error:.1e} (relative)"
        )


@torch.no_grad()
def tree_error(model: PreTrainedModel) -> float:
    """Relative difference of hidden states between a prompt with two branches and the two sequences."""
    prompt, branches = [1, 2, 3], [[4, 5, 6], [6, 4, 5]]
    ids = torch.tensor([prompt + branches[0] + branches[1]], device=model.device)
    depths = torch.tensor([[0, 1, 2, 3, 4, 5, 3, 4, 5]], device=model.device)
    ends = torch.tensor([9, 9, 9, 6, 6, 6, 9, 9, 9], device=model.device)
    tree = model.base_model(
        input_ids=ids,
        position_ids=depths,
        attention_mask=_already_4d(model.device),
        use_cache=False,
        dapo_attention=Dense(ends),
    ).last_hidden_state[0]
    error = 0.0
    for branch, rows in zip(branches, ([3, 4, 5], [6, 7, 8]), strict=True):
        alone = model.base_model(input_ids=torch.tensor([prompt + branch], device=model.device), use_cache=False)
        expected = alone.last_hidden_state[0, 3:]
        error = max(error, ((tree[rows] - expected).norm() / expected.norm()).item())
    return error


def _already_4d(device: torch.device) -> Tensor:
    """A mask that transformers passes on as it is, making none of its own."""
    return torch.ones((1, 1, 1, 1), dtype=torch.bool, device=device)
