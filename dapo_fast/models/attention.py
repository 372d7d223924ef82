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
BACKENDS = ("auto", "flex", "tree_sdpa", "varlen", "dense")
_PREFIX = "dapo_"
_chosen: set[tuple[str, str, bool]] = set()


class Dense:
    """SDPA under the whole (T, T) mask: any device and dtype, at quadratic cost. The definition of the others."""

    def __init__(self, pack: Pack) -> None:
        ends = pack.subtree_end
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


def plan_attention(pack: Pack, requested: str, dtype: torch.dtype) -> Attend:
    """What every layer calls for this pack: (query, key, value, scale) → (1, T, heads, head size)."""
    device = pack.input_ids.device
    backend = choose_backend(requested, device, pack.is_flat)
    if backend == "flex":
        return TreeFlex(pack)
    if backend == "tree_sdpa":
        return TreeSDPA(pack, dtype)
    if backend == "varlen":
        return FlatVarlen(pack, dtype)
    return Dense(pack)


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


def backbone_inputs(model: PreTrainedModel, pack: Pack, dtype: torch.dtype) -> dict[str, Any]:
    """Keyword arguments of a backbone's forward over ``pack``."""
    return {
        "input_ids": pack.input_ids[None],
        "position_ids": pack.position_ids[None],
        # A mask that is 4-D already: transformers passes it on and makes none of its own.
        "attention_mask": torch.ones((1, 1, 1, 1), dtype=torch.bool, device=pack.input_ids.device),
        "use_cache": False,
        "dapo_attention": plan_attention(pack, requested_backend(model), dtype),
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
    return dapo_attention(query, key, value, scale), None


for _backend in BACKENDS:
    AttentionInterface.register(_PREFIX + _backend, _attention)
    AttentionMaskInterface.register(_PREFIX + _backend, sdpa_mask)


# ------------------------------------------------------------------------------------------- which models can be read


def check_supported(config: PreTrainedConfig, source: str) -> None:
    """Refuse a model whose attention is not plain causal softmax attention over relative or absolute positions.

    Llama, Qwen2, Qwen3 and Mistral without a sliding window are tested; others with the same kind of attention pass.

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
    if getattr(config, "alibi", False) or getattr(config, "position_embedding_type", "absolute") == "relative_key":
        reasons.append("it adds a position bias to attention scores")
    if kind == "gpt_oss":
        reasons.append("it has attention sinks")
    if kind in ("mamba", "mamba2", "rwkv", "jamba", "bamba", "zamba", "zamba2", "falcon_mamba", "falcon_h1"):
        reasons.append("it mixes tokens by a recurrent state, which siblings would share")
    if getattr(config, "attention_dropout", 0.0):
        reasons.append(f"it has attention dropout ({config.attention_dropout}); set attention_dropout to 0")
    if reasons:
        raise InputError(f"{source}: a {kind} model cannot be trained on step trees: " + "; ".join(reasons))


def check_plugged_in(model: PreTrainedModel, source: str) -> None:
    """Refuse a model class that does not take its attention from transformers' attention interface."""
    if not getattr(model, "_supports_attention_backend", False):
        raise InputError(
            f"{source}: {type(model).__name__} does not use transformers' attention interface, so tree attention "
            "cannot be plugged in"
        )
