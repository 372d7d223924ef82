"""What both engines ask of a model: its directory, its tokenizer, and room for prompts."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from dapo_fast.data.problems import Problem
from dapo_fast.data.prompts import prompt_encoder
from dapo_fast.errors import InputError, blaming, refuse_pipe
from dapo_fast.models.files import stored_tensors
from dapo_fast.models.value import check_value_model
from dapo_fast.snapshots import model_directory
from dapo_fast.sums import check_model

if TYPE_CHECKING:
    from dapo_fast.config import DataSettings

log = logging.getLogger("dapo_fast.rollout")

# What tokenizers that are not the same one will hardly cut alike.
PROBE = "Let x = 12345.678;\n\n  then \\frac{x}{2} ≈ 6172.84 — naïve café, 数学 🙂\tend.\n"

MOST_LAYERS = 10_000  # above, to build a model on no memory at all would take minutes

MOST_TRUNCATED = 0.1  # share of responses that did not finish, above which accuracy says more of the limit than of them


def check_model_directory(setting: str, name: str | Path, weights: bool = True) -> Path:
    """The directory that ``name`` is, or that the model of the hub with that name is in.

    Args:
        weights: Its files of weights are there too, and their headers can be read.

    Raises:
        InputError: names ``setting`` or a file: there is no Hugging Face model, or none that can be built.
    """
    path = model_directory(setting, name, weights)
    if not (path / "config.json").is_file():
        raise InputError(f"{setting} {path}: not a Hugging Face model directory (no config.json)")
    for file in path.iterdir():
        refuse_pipe(file)
    with blaming(f"{setting} {path}", "config.json describes no causal language model"):
        config = AutoConfig.from_pretrained(path)
        if not isinstance(config.architectures or [], list):
            raise ValueError(f"architectures is {config.architectures!r}, not a list")
        layers = getattr(config.get_text_config(), "num_hidden_layers", 1)
        if not 0 < layers <= MOST_LAYERS:
            raise ValueError(f"num_hidden_layers is {layers}")
        # Without memory, and so whatever the size: sizes that do not fit together fail here, not after an hour.
        with torch.device("meta"):
            AutoModelForCausalLM.from_config(config)
    if weights:
        stored_tensors(path)
    return path


def check_critic(setting: str, name: str | Path, ours: PreTrainedTokenizerBase, trained: bool) -> Path:
    """As ``check_model_directory``; InputError too where its vocabulary is another one than ``ours``.

    ``trained``: where it is to be a value model already, and no start of one.
    """
    path = check_model_directory(setting, name)
    if trained:
        check_value_model(path, AutoConfig.from_pretrained(path))
    if load_tokenizer(path)(PROBE)["input_ids"] != ours(PROBE)["input_ids"]:
        raise InputError(f"{setting} {path}: its tokenizer is not the policy's, whose tokens it would have to read")
    return path


def load_tokenizer(directory: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a directory or a model of the hub; InputError where there is none, or it has no end token."""
    directory = model_directory("model", directory, weights=False)
    check_model(directory, weights=False)
    with blaming(directory, "no readable tokenizer"):
        tokenizer = _tokenizer_class(Path(directory)).from_pretrained(directory)
        tokenizer(PROBE)  # some of its settings are not looked at before
    if tokenizer.eos_token_id is None:
        raise InputError(f"{directory}: the tokenizer has no end token, so no response could ever finish")
    return tokenizer


def end_tokens(configured: Any, tokenizer: PreTrainedTokenizerBase, model: str | Path) -> set[int]:
    """The tokens that end a response of ``model``: the tokenizer's, and ``configured`` in its generation config.

    Raises:
        InputError: ``configured`` is neither None, a token id nor some of them.
    """
    given = configured if isinstance(configured, (list, tuple)) else [configured]
    found = [token for token in (*given, tokenizer.eos_token_id) if token is not None]
    if any(type(token) is not int or token < 0 for token in found):
        raise InputError(f"{model}: generation_config.json: eos_token_id is {configured!r}, which is no token id")
    return set(found)


def check_prompts(problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase, data: DataSettings) -> None:
    """InputError where the template gives no prompt with this tokenizer, for messages or for a kind of problem."""
    encode = prompt_encoder(tokenizer, data)
    kinds = {problem.kind: problem for problem in reversed(problems) if problem.messages is None}
    for problem in [*kinds.values(), *(problem for problem in problems if problem.messages is not None)]:
        if not encode(problem):
            raise InputError(f"data.template {data.template}: the prompt of problem {problem.id} is empty")


def _tokenizer_class(directory: Path) -> type:
    # transformers 5 rebuilds some model types' own tokenizer (Qwen2's, say) whatever tokenizer.json holds. A directory
    # that says it is a plain tokenizers file is read as that.
    try:
        named = json.loads((directory / "tokenizer_config.json").read_text()).get("tokenizer_class")
    except (OSError, ValueError, AttributeError):  # which AutoTokenizer tells in its own words
        return AutoTokenizer
    plain = named in ("TokenizersBackend", "PreTrainedTokenizerFast") and (directory / "tokenizer.json").exists()
    return PreTrainedTokenizerFast if plain else AutoTokenizer


def fitting(prompts: Mapping[str, Sequence[int]], context: int) -> dict[str, Sequence[int]]:
    """The prompts, by problem id, that leave room for a token in ``context``; a warning names the others."""
    kept = {name: prompt for name, prompt in prompts.items() if len(prompt) < context}
    if len(kept) < len(prompts):
        left_out = [f"{name} ({len(prompt)})" for name, prompt in prompts.items() if name not in kept]
        log.warning(
            "%d of %d prompts fill the context of %d tokens and are left out: %s",
            *(len(left_out), len(prompts), context, ", ".join(left_out[:10]) + (", …" if len(left_out) > 10 else "")),
        )
    return kept


def warn_of_truncation(share: float, setting: str) -> None:
    """Warn, naming the setting that would help, where too large a share of responses did not finish."""
    if share > MOST_TRUNCATED:
        log.warning(
            "%.0f%% of responses did not finish and count as wrong: raise %s (or the context), or shorten prompts",
            *(100 * share, setting),
        )


def within_context(prompts: Sequence[Sequence[int]], budgets: Sequence[int], context: int) -> list[int]:
    """``budgets`` (most new tokens of each prompt) cut to what ``context`` tokens leave; says how many were.

    Raises:
        InputError: an empty prompt, or one that leaves no room (``fitting`` leaves these out).
    """
    for index, prompt in enumerate(prompts):
        if not prompt:
            raise InputError(f"prompt {index}: empty; a model needs at least one token")
        if len(prompt) >= context:
            raise InputError(f"prompt {index}: {len(prompt)} tokens fill the context of {context}")
    room = [min(budget, context - len(prompt)) for prompt, budget in zip(prompts, budgets, strict=True)]
    cut = sum(a < b for a, b in zip(room, budgets, strict=True))
    if cut:
        log.warning("%d of %d prompts have less than max_tokens left of a context of %d", cut, len(prompts), context)
    return room
