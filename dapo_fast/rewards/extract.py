"""Where the answer stands in a response."""

from __future__ import annotations

import re

_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
# Bounds that keep a degenerate response (a megabyte of unclosed boxes) linear.
_MOST_BOXES = 64
_LONGEST_ANSWER = 20_000


def last_boxed(text: str) -> str | None:
    r"""The content of the last complete ``\boxed{…}`` (or ``\fbox``, or ``\boxed 5``); None if there is none."""
    for match in reversed(list(_BOX.finditer(text))[-_MOST_BOXES:]):
        content = _braced(text, match.end())
        if content is not None and content.strip():
            return content.strip()
    return None


def _braced(text: str, start: int) -> str | None:
    if not text.startswith("{", start):
        # MATH's own solutions write "\boxed 5" and "\boxed9" now and then.
        bare = re.match(r"[^\s$\\{}]+", text[start : start + 200])
        return bare.group() if bare else None
    depth = 0
    position = start
    while position < min(len(text), start + _LONGEST_ANSWER):
        character = text[position]
        if character == "\\":
            position += 2  # an escaped brace neither opens nor closes
            continue
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[start + 1 : position]
        position += 1
    return None
