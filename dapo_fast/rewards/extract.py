"""Where the answer stands in a response."""

from __future__ import annotations

import re

from dapo_fast.rewards.normal import is_calculation, split_top_level

_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
# Bounds that keep a degenerate response (a megabyte of unclosed boxes) linear.
_MOST_BOXES = 64
_LONGEST_ANSWER = 20_000
_TAIL = 200_000
_LONGEST_LINE = 2_000

_JOINED = re.compile(r"(?:[\s$,;.]|\\[()\[\]]|\\quad|\\qquad|\\text\{|\}|and|or|\\,)*")
_PHRASE = re.compile(r"(?i)\banswer\b\**\s*(?:(?:is|are|was|equals|becomes|=|:)\s*)+(?:therefore|thus|simply|just)?")
_DISPLAY = re.compile(r"(?:\\\[|\$\$)((?:(?!\\\[|\$\$).){1,2000}?)(?:\\\]|\$\$)", re.S)
_INLINE = re.compile(r"(?<!\\)\$((?:\\\$|[^$\n])+?)(?<!\\)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]")
_NUMBER = re.compile(
    r"(?<![\w.])[-−]?\s?\$?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?(?:\s?%)?|(?<![\w.])[-−]?\.\d+"
)
_SEVERAL = re.compile(r"\d\s*(?:,\s|,?\s*\band\b|\bor\b)\s*[-−]?\d")
_LATEX = re.compile(r"\\[A-Za-z]|[_^]")


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


def boxed_run(text: str) -> str | None:
    r"""All boxes of the last sentence that boxes several: ``\boxed{1}`` and ``\boxed{2}`` → ``1, 2``; else None."""
    found: list[str] = []
    end = None
    for match in list(_BOX.finditer(text))[-_MOST_BOXES:]:
        content = _braced(text, match.end())
        if content is None:
            continue
        if end is not None and not _JOINED.fullmatch(text[end : match.start()][:80]):
            found = []
        found.append(content.strip())
        end = match.end() + len(content) + 2
    return ", ".join(found) if len(found) > 1 else None


def extract_answer(response: str) -> str | None:
    """The answer that a response settles on, as it is written there; None if it states none."""
    tail = response[-_TAIL:]
    boxed = last_boxed(tail)
    if boxed is not None:
        return boxed
    for find in (_after_hashes, _after_phrase, _of_last_line):
        answer = find(tail)
        if answer:
            return answer
    return None


def _after_hashes(text: str) -> str | None:
    position = text.rfind("####")
    if position < 0:
        return None
    lines = text[position:].lstrip("#").strip().splitlines()
    if not lines:
        return None
    line = lines[0][:_LONGEST_LINE].strip()
    line = re.sub(r"(?i)\A(?:the\s+)?(?:final\s+)?answer\s*(?:is\s*:?|:)\s*", "", line)
    return line or None


def _after_phrase(text: str) -> str | None:
    matches = list(_PHRASE.finditer(text))
    for match in reversed(matches[-8:]):
        rest = text[match.end() : match.end() + _LONGEST_LINE].lstrip(" \t*_:\n")
        display = re.match(r"(\$\$|\\\[)(.+?)(\$\$|\\\])", rest, re.S)
        if display:
            return display.group(2).strip()
        line = rest.splitlines()[0] if rest else ""
        line = re.split(r"(?<!\b[ap]\.m)\.(?=\s|\*|\Z)(?!\s*m\b)|(?i:\s*i hope it)", line)[0].strip().strip("*").strip()
        if line:
            return _settle(line)
    return None


def _of_last_line(text: str) -> str | None:
    stripped = text.rstrip()
    # A display that ends the response is its last line, however many lines it takes.
    ending = stripped[-4 * _LONGEST_LINE :]
    displays = list(_DISPLAY.finditer(ending))
    if displays and displays[-1].end() >= len(ending) - 2:
        return _settle("$" + displays[-1].group(1).strip().replace("\n", " ") + "$")
    for line in reversed(ending.splitlines()[-3:]):
        line = line[-_LONGEST_LINE:].strip().strip("*").strip()
        if _INLINE.search(line) or _NUMBER.search(line):
            return _settle(line, last=True)
    return None


def _settle(line: str, last: bool = False) -> str:
    """One expression or number of a sentence, or the sentence when it is short and neither."""
    inline = [next(group for group in match if group) for match in _INLINE.findall(line)]
    if len(inline) == 1 or (inline and last):
        return _value(inline[-1])
    if inline or (not last and (_LATEX.search(line) or _SEVERAL.search(line))):
        return line
    numbers = list(_NUMBER.finditer(line.rpartition("=")[2])) or list(_NUMBER.finditer(line))
    words = re.search(r"[A-Za-z]{3}", line)  # "b - 1" is an expression, "5 apples" a number
    if numbers and (last or (words and not re.search(r"[(\[,:;/^]|\d[A-Za-z]", line))):
        return numbers[-1 if last else 0].group()
    return line


def _value(expression: str) -> str:
    """What a chain of equalities arrives at: ``7`` of ``3 + 4 = 7``; an equation such as ``2x + y = 1`` stays whole."""
    *sides, value = split_top_level(expression, "=")
    if not sides or not value:
        return expression
    several = any(len(split_top_level(side, mark)) > 1 for side in (*sides, value) for mark in ";,")
    if several or sides[-1].endswith(("\\ne", "<", ">", "!", ":")):
        return expression
    return value if len(sides) > 1 or is_calculation(sides[0]) else expression
