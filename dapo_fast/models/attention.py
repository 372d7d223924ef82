"""The attention that reads packs, plugged into transformers' models without patching them.

``load`` functions give a model one of the attention names registered here; a reader plans each pack's attention once
and passes the plan down the forward as a keyword argument, so every layer calls the same plan. Without a plan (in
``generate``, say) the same model runs transformers' own SDPA.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from dapo_fast.models.tree_flex import Heads, TreeFlex
from dapo_fast.models.tree_sdpa import TreeSDPA
from dapo_fast.models.variants import LAYER_TYPES, Variant, head_size, largest, variant_of, windows_of

log = logging.getLogger("dapo_fast.attention")

Attend = Callable[[Tensor, Tensor, Tensor, float, Variant, Tensor | None], Tensor]
PROVED = ("llama", "qwen2", "qwen3", "mistral")  # model types that are not tried each time they are loaded
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
    cuda = device.type == "cuda"
    backend = requested
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
    """Keyword arguments of a backbone's forward over ``pack``."""
    return {
        "input_ids": pack.input_ids[None],
        "position_ids": pack.position_ids[None],
        "attention_mask": _already_4d(pack.input_ids.device),
        "use_cache": False,
        "dapo_attention": plan_attention(pack, requested_backend(model), heads_of(model.config)),
    }


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
    if dropout:
        raise InputError(f"{type(module).__name__}: attention dropout of {dropout} is on; packs are read without it")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    kind = query.device.type
    if torch.is_autocast_enabled(kind):  # autocast does not know these kernels, and RoPE leaves it with mixed dtypes
        query, key, value = (x.to(torch.get_autocast_dtype(kind)) for x in (query, key, value))
    return dapo_attention(query, key, value, scale, variant_of(module, kwargs), kwargs.get("s_aux")), None


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
    return attend(query, key, value, scale, attention_mask, softcap, sinks).transpose(1, 2), None


for _name in _NAMES.values():
    AttentionInterface.register(_name, _attention)
    AttentionMaskInterface.register(_name, sdpa_mask)


# ------------------------------------------------------------------------------------------- which models can be read


def check_supported(config: PreTrainedConfig, source: str) -> None:
    """Refuse a model whose attention is not causal softmax attention, windows, softcaps and sinks allowed.

    What passes is tried once it is loaded (``check_plugged_in``).

    Raises:
        InputError: naming ``source`` and what stands in the way.
    """
    config = config.get_text_config()
    kind = config.model_type
    reasons = []
    if getattr(config, "is_encoder_decoder", False) or getattr(config, "is_causal", True) is False:
        reasons.append("it is not a causal decoder")
    others = set(getattr(config, "layer_types", None) or []) - set(LAYER_TYPES)
    if others:
        reasons.append(f"it has {', '.join(sorted(others))} layers, whose mask or state a tree cannot honour")
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
    """Refuse a model, outside the families of ``PROVED``, that does not read a small tree as its two sequences.

    Args:
        dtype: What it computes in.
        error_of: Gives ``tree_error`` of ``model``.

    Raises:
        InputError: naming ``source``.
    """
    if model.config.get_text_config().model_type in PROVED:
        return
    name, error = type(model).__name__, error_of()
    limit = 1e-3 if dtype in (torch.float32, torch.float64) else 0.1
    log.info("%s: a small tree differs from its sequences by %.1e", name, error)
    if not error <= limit:
        raise InputError(
            f"{source}: {name} does not honour tree attention: a small tree and its separate sequences differ by "
            f"{error:.1e} (relative)"
        )


@torch.no_grad()
def tree_error(model: PreTrainedModel) -> float:
    """Relative difference of hidden states between a prompt with two branches and the two sequences.

    Windows and chunks are cut to four tokens meanwhile, so that they hide something of so small a tree.
    """
    prompt, branches = [1, 2, 3], [[4, 5, 6, 4, 6], [6, 4, 5, 5, 4]]
    ids = torch.tensor([prompt + branches[0] + branches[1]], device=model.device)
    depths = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 3, 4, 5, 6, 7], device=model.device)
    ends = torch.tensor([13] * 3 + [8] * 5 + [13] * 5, device=model.device)
    if model.base_model is model:
        raise InputError(f"{type(model).__name__}: a model without a backbone of its own cannot read packs")
    with _short_windows(model, 4):
        tree = model.base_model(
            input_ids=ids,
            position_ids=depths[None],
            attention_mask=_already_4d(model.device),
            use_cache=False,
            dapo_attention=Dense(ends, depths),
        ).last_hidden_state[0]
        error = 0.0
        for branch, rows in zip(branches, (slice(3, 8), slice(8, 13)), strict=True):
            expected = _alone(model, prompt + branch)[3:]
            error = max(error, ((tree[rows] - expected).norm() / expected.norm()).item())
    return error


def _alone(model: PreTrainedModel, ids: list[int]) -> Tensor:
    """Hidden states of one sequence, by transformers' own eager attention."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        return model.base_model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).last_hidden_state[
            0
        ]
    finally:
        model.set_attn_implementation(before)


@contextmanager
def _short_windows(model: PreTrainedModel, length: int) -> Iterator[None]:
    """``model`` with every window and chunk cut to ``length`` tokens."""
    config = model.config.get_text_config()
    places = [(config, name) for name in windows_of(config)]
    places += [(module, "sliding_window") for module in model.modules() if getattr(module, "sliding_window", None)]
    before = [(place, name, getattr(place, name)) for place, name in places]
    for place, name in places:
        setattr(place, name, length)
    try:
        yield
    finally:
        for place, name, value in before:
            setattr(place, name, value)


def _already_4d(device: torch.device) -> Tensor:
    """A mask that transformers passes on as it is, making none of its own."""
    return torch.ones((1, 1, 1, 1), dtype=torch.bool, device=device)
