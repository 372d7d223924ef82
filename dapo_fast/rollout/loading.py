"""The tokenizer of a model directory."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from dapo_fast.errors import InputError


def load_tokenizer(directory: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer saved in ``directory``; InputError where there is none, or it has no end token."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{directory}: no readable tokenizer ({error})") from error
    if tokenizer.eos_token_id is None:
        raise InputError(f"{directory}: the tokenizer has no end token, so no response could ever finish")
    return tokenizer
