"""Which models can be read: what their config says, and what a small pack shows once their weights are there."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from dapo_kernels import hidden_states_and_weight, linear_token_logprobs
from torch import Tensor
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, GenerationMixin, PreTrainedConfig, PreTrainedModel

from dapo_fast.errors import InputError, blaming, first_line
from dapo_fast.models.attention import already_4d
from dapo_fast.models.dense import Dense
from dapo_fast.models.padded import padded_error, reads_padded
from dapo_fast.models.variants import windows_of

log = logging.getLogger("dapo_fast.attention")

PROVED = ("llama", "qwen2", "qwen3", "mistral")  # model types that are not tried each time they are loaded
UNREADABLE = {"rwkv": "its weights change where it is read without training (rescale_every)"}


def check_proved(config: PreTrainedConfig, setting: str) -> None:
    """InputError where ``setting`` is for the families of ``PROVED`` and ``config``, of a text model, is of another."""
    if config.model_type not in PROVED:
        raise InputError(f"{setting}: not for this {config.model_type} model, only for {', '.join(PROVED)}")


def check_supported(config: PreTrainedConfig, source: str) -> None:
    """Refuse a model that is not causal, or whose attention is not softmax attention as packs know it.

    What passes is tried once it is loaded (``check_plugged_in``).

    Raises:
        InputError: naming ``source`` and what stands in the way.
    """
    kind, family = config.model_type, MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    config = config.get_text_config()
    reasons = []
    if getattr(config, "is_encoder_decoder", False) or getattr(config, "is_causal", True) is False:
        reasons.append("it is not a causal decoder")
    if config.model_type in UNREADABLE:
        reasons.append(UNREADABLE[config.model_type])
    if getattr(config, "alibi", False):
        reasons.append("it adds a position bias (ALiBi) to attention scores")
    if getattr(config, "attention_dropout", 0.0):
        reasons.append(f"it has attention dropout ({config.attention_dropout}); set attention_dropout to 0")
    if family is None:
        reasons.append("transformers has no causal LM of its kind")
    elif not (reads_padded(config) or family._supports_attention_backend):
        reasons.append("it does not use transformers' attention interface")
    if reasons:
        raise InputError(f"{source}: a {kind} model cannot be trained on step trees: " + "; ".join(reasons))


def check_plugged_in(model: PreTrainedModel, source: str) -> None:
    """Refuse a model of several parts, or one that mixes tokens in other ways than its config says.

    One with its weights is tried too (``check_reading``); one without them is to be tried once it has them.

    Raises:
        InputError: naming ``source`` and what stands in the way.
    """
    name = type(model).__name__
    if model.config.get_text_config() is not model.config:
        raise InputError(f"{source}: {name} is made of several models (images and text, say), not of one of text")
    if model.device.type != "meta":
        check_reading(model, source, model.dtype, lambda: reading_error(model))


def check_reading(model: PreTrainedModel, source: str, dtype: torch.dtype, error_of: Callable[[], float]) -> None:
    """Refuse a model, outside the families of ``PROVED``, that does not read a small pack as its two sequences.

    Args:
        dtype: What it computes in.
        error_of: Gives ``reading_error`` of ``model``.

    Raises:
        InputError: naming ``source``.
    """
    if model.config.get_text_config().model_type in PROVED:
        return
    name = type(model).__name__
    with blaming(source, f"{name} cannot read a small pack"):
        try:
            error = error_of()
        except InputError as found:
            raise InputError(f"{source}: {found}") from found
    log.info("%s: a small pack differs from its sequences by %.1e", name, error)
    if not error <= _limit(dtype):
        trouble = "does not read padded rows" if reads_padded(model.config) else "does not honour tree attention"
        raise InputError(
            f"{source}: {name} {trouble}: a small pack and its separate sequences differ by {error:.1e} (relative)"
        )


@torch.no_grad()
def reading_error(model: PreTrainedModel) -> float:
    """``backbone_error``.

    Raises:
        InputError: of a causal LM, whose logits are not what the losses make of its hidden states.
    """
    if isinstance(model, GenerationMixin):
        _check_head(model)
    return backbone_error(model)


@torch.no_grad()
def backbone_error(model: PreTrainedModel) -> float:
    """Relative difference between hidden states of a small pack and of its two sequences, each alone."""
    return padded_error(model) if reads_padded(model.config) else tree_error(model)


def _check_head(model: PreTrainedModel) -> None:
    """InputError where log-probs that the losses make of a causal LM's hidden states are not those of its logits."""
    ids = torch.tensor([[1, 2, 3, 4, 5, 6]], device=model.device)
    logits = model(input_ids=ids, use_cache=False).logits[0].float()
    try:
        head = hidden_states_and_weight(model, input_ids=ids, use_cache=False)
    except ValueError as error:
        raise InputError(first_line(error)) from error
    trouble = f"the logits of {type(model).__name__} are not its last hidden states times its head"
    if logits.shape[-1] != head.weight.shape[0]:
        raise InputError(f"{trouble}: there are {logits.shape[-1]}, and {head.weight.shape[0]} rows")
    # The two that a scale or a cap moves furthest apart.
    targets = torch.cat([logits.argmax(-1), logits.argmin(-1)])
    rows = torch.arange(len(logits), device=logits.device).repeat(2)
    ours = linear_token_logprobs(head.hidden[0], head.weight, targets, rows=rows, **head.options)
    own = logits.log_softmax(-1)[rows, targets]
    error = ((ours - own).abs().max() / logits.abs().max()).item()
    if not error <= _limit(head.hidden.dtype):
        raise InputError(f"{trouble}: log-probabilities differ by {error:.1e} of the largest logit")


def _limit(dtype: torch.dtype) -> float:
    """What rounding may make, relative, of a model that computes in ``dtype``."""
    return 2e-4 if dtype in (torch.float32, torch.float64) else 0.1


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
            attention_mask=already_4d(model.device),
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
