"""A model directory, and its tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from dapo_fast.errors import InputError


def check_model_directory(setting: str, path: Path) -> None:
    """InputError, naming ``setting``, where ``path`` holds no Hugging Face model."""
    if not (path / "config.json").exists():
        raise InputError(f"{setting} {path}: not a Hugging Face model directory (no config.json)")


def load_tokenizer(directory: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer saved in ``directory``; InputError where there is none, or it has no end token."""
    try:
        tokenizer = _tokenizer_class(Path(directory)).from_pretrained(directory)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{directory}: no readable tokenizer ({error})") from error
    if tokenizer.eos_token_id is None:
        raise InputError(f"{directory}: the tokenizer has no end token, so no response could ever finish")
    return tokenizer


def _tokenizer_class(directory: Path) -> type:
    # transformers 5 rebuilds some model types' own tokenizer (Qwen2's, say) whatever tokenizer.json holds. A directory
    # that says it is a plain tokenizers file is read as that.
    try:
        named = json.loads((directory / "tokenizer_config.json").read_text()).get("tokenizer_class")
    except (OSError, ValueError):
        return AutoTokenizer
    plain = named in ("TokenizersBackend", "PreTrainedTokenizerFast") and (directory / "tokenizer.json").exists()
    return PreTrainedTokenizerFast if plain else AutoTokenizer
