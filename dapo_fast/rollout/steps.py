"""Cutting a response into steps, along its tokens.

Steps are cut by text: a splitter is a pattern, and a step ends where a match of it ends. A step is a whole number of
tokens and never only white space, so

- a boundary after the leading blanks of a token that goes on with text moves to the start of that token: the tokens of
  byte-level BPE and SentencePiece begin with the blank before their word;
- any other boundary inside a token (or inside a character whose bytes are spread over tokens) moves to the end of that
  token and is counted in ``Splitter.moved``;
- blank lines belong to the step before them, and at the very beginning to the first step;
- tokens without text, the end token above all, belong to the step that is open when they come: an end token after a
  line break is a step of its own.

The concatenation of the steps is the response, id for id and, since steps are cut where the text decoded so far is
whole, byte for byte.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from dapo_fast.errors import InputError
from dapo_fast.rollout.text import text_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LINE = r"\n(?:\s*\n)?"
PATTERNS = {
    "line": _LINE,
    "blank_line": r"\n\s*\n",
    "sentence": rf"[.!?…]+[\"'”’)\]]*\s+|[。！？]+[”’」』）]*\s*|{_LINE}",
}
_UNDECODABLE = "\ufffd"
# Every match has one of these after the leading blanks of its step; part-characters may be the bytes of one.
_MARKS = {"line": "\n", "blank_line": "\n", "sentence": f".!?…。！？\n{_UNDECODABLE}"}


def compile_splitter(splitter: str) -> re.Pattern[str]:
    """The pattern of ``"line"``, ``"blank_line"``, ``"sentence"`` or ``"regex:…"``; InputError for anything else."""
    kind, separator, pattern = splitter.partition(":")
    if kind == "regex" and separator:
        if not pattern:
            raise InputError("splitter 'regex:': the pattern is empty")
        try:
            return re.compile(pattern)
        except re.error as error:
            raise InputError(f"splitter {splitter!r}: not a regular expression ({error})") from error
    if splitter not in PATTERNS:
        raise InputError(f"splitter {splitter!r}: unknown; there are {', '.join(PATTERNS)} and regex:…")
    return re.compile(PATTERNS[splitter])


class Splitter:
    """Cuts token sequences of one tokenizer into steps.

    Attributes:
        boundaries: Boundaries found so far.
        moved: How many of them fell inside a token and were moved to its end.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, splitter: str = "line") -> None:
        self._pattern = compile_splitter(splitter)
        self._marks = frozenset(_MARKS[splitter]) if splitter in _MARKS else None
        self._tokenizer = tokenizer
        self._special = set(tokenizer.all_special_ids)
        self._pieces: dict[int, str] = {}
        self.boundaries = 0
        self.moved = 0

    def split(self, ids: Sequence[int]) -> list[int]:
        """Cumulative step ends of ``ids``: increasing, the last one ``len(ids)``; empty for an empty sequence."""
        if not ids:
            return []
        text, ends = self.token_ends(ids)
        steps: list[int] = []
        start = 0  # character at which the open step begins
        for match in self._pattern.finditer(text):
            boundary = match.end()
            if not text[start:boundary].strip():
                continue
            token = bisect_left(ends, boundary)
            begins = ends[token - 1] if token else 0
            if boundary < ends[token] and text[start:begins].strip() and not text[begins:boundary].strip():
                end, start = token, begins  # only blanks of this token are before the boundary
            elif token + 1 < len(ids):
                end, start = token + 1, ends[token]
                self.moved += ends[token] != boundary
            else:
                break
            self.boundaries += 1
            steps.append(end)
        return [*steps, len(ids)]

    def first(self, ids: Sequence[int]) -> int:
        """Number of tokens of the first step of ``ids``."""
        return self.split(ids)[0]

    def whole_first(self, ids: Sequence[int], over: bool) -> int | None:
        """As ``first``; None where the step may go on: nothing but blanks has come after it, and ``ids`` goes on."""
        first = self.first(ids)
        return first if over or (first < len(ids) and self._decode(ids[first:]).strip()) else None

    def may_end(self, token: int, leading: bool) -> bool | None:
        """Whether the first step may end in the text of ``token``; None where that has no text.

        Args:
            leading: Nothing but blanks has come before.
        """
        piece = self._piece(token)
        said = piece.lstrip() if leading else piece
        if not said:
            return None
        return self._marks is None or not self._marks.isdisjoint(said)

    def token_ends(self, ids: Sequence[int]) -> tuple[str, list[int]]:
        """The text of ``ids`` and, for each token, the number of characters that are whole after it.

        Bytes of a character that is not whole yet count as nothing until the token that completes it.
        """
        pieces = [self._piece(token) for token in ids]
        if not any(_UNDECODABLE in piece for piece in pieces):
            text = "".join(pieces)
            if text == self._decode(ids):
                return text, list(accumulate(map(len, pieces)))
        return self._token_ends_by_decoding(ids)

    def _token_ends_by_decoding(self, ids: Sequence[int]) -> tuple[str, list[int]]:
        # Tokens whose texts do not add up: part-characters, or a decoder that looks at its neighbours. Each token is
        # decoded after a little context, and counts once what it adds is what the whole text has there.
        text = self._decode(ids)
        ends: list[int] = []
        context, whole, length = 0, 0, 0
        for count in range(1, len(ids) + 1):
            before = self._decode(ids[context:whole])
            added = self._decode(ids[context:count])
            fits = added.startswith(before) and text.startswith(added[len(before) :], length)
            # Four bytes make a character at most: what is undecodable after four tokens stays so.
            open_ = added.endswith(_UNDECODABLE) and count - whole < 4 and count < len(ids)
            if fits and not open_:
                length += len(added) - len(before)
                context, whole = whole, count
            ends.append(length)
        return text, ends

    def _piece(self, token: int) -> str:
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = "" if token in self._special else self._decode([token])
        return piece

    def _decode(self, ids: Sequence[int]) -> str:
        return text_of(self._tokenizer, ids)


def split_steps(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, splitter: str = "line") -> list[int]:
    """Cumulative step ends of one response; for many, keep a ``Splitter``."""
    return Splitter(tokenizer, splitter).split(ids)
