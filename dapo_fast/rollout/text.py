"""Tokens as text, the same wherever a response is judged, cut or shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def text_of(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], special: bool = False) -> str:
    """``ids`` as text, with the blanks that they stand for, whatever the tokenizer's settings would tidy away.

    Args:
        special: Special tokens are shown too.
    """
    return tokenizer.decode(list(ids), skip_special_tokens=not special, clean_up_tokenization_spaces=False)
