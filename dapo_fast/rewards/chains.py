"""Names, equations and chains of them: which sides they have, and what they stand for."""

from __future__ import annotations

import re
from itertools import pairwise

from dapo_fast.rewards.algebra import same_by_algebra
from dapo_fast.rewards.parts import BETWEEN, split_top_level
from dapo_fast.rewards.plain import as_number, is_calculation

_EQUALS = re.compile(r"=|\\(?:approx|equiv)(?![A-Za-z])")
# What is exact, so that two sides which differ are a mistake and no rounding.
_ARITHMETIC = re.compile(r"(?:[-+*/^(){}!\d\s]|\\(?:frac|sqrt|cdot|div|binom)(?![A-Za-z]))+")
FOLLOWS = re.compile(r"\\(?:Rightarrow|Longrightarrow|implies|therefore)(?![A-Za-z])|⇒|∴")
_LONGEST = 400  # characters of a side that is calculated
_IN = re.compile(r"\\in(?![A-Za-z])")
NAME = re.compile(
    r"(?:m?\\(?:angle|triangle)\s*)?"
    r"(?:[A-Z]{1,3}|[a-z]"
    r"|\\(?!frac|sqrt|pm|sin|cos|tan|cot|sec|csc|log|ln|exp|int|sum)[A-Za-z]+(?:\s*\{?[A-Za-z]{1,3}\}?)?"
    # A word, which has a vowel behind its first letter: not xyz, a product.
    r"|(?:[A-Z]|[a-z](?=[a-z]*[aeiou]))[A-Za-z]{2,19}(?:\s[A-Za-z]{1,20}){0,3})"
    r"(?:_(?:\w|\{[^{}]*\}))?'*(?:\^\{-1\})?(?:\s?\([^()]{1,12}\))?\Z"
    r"|\([A-Za-z](?:,\s?[A-Za-z]){1,3}\)\Z|\|(?:[A-Z]{2}|\\vec\{\w{1,2}\})\|\Z"
)
_PROSE = re.compile(r"(?<![A-Za-z\\])[A-Za-z]{3,}[,.]?\s+\$?[A-Za-z]{2,}")


def concluded(text: str) -> str:
    """``x=12`` of ``x+3=15 \\Rightarrow x=12``: the last of relations that follow from each other."""
    steps = FOLLOWS.split(text)
    return steps[-1].strip() if all(re.search(r"[=<>]|\\[lg]e(?![A-Za-z])", step) for step in steps) else text


def unrounded(left: str, right: str) -> list[tuple[str, str]]:
    """Where one of them rounds, the pair before that: ``5\\sqrt{2}`` of ``5\\sqrt{2} \\approx 7.07``."""
    if ("\\approx" in left) == ("\\approx" in right):
        return []
    exact = [_exact(text) for text in (left, right)]
    return [pair for pair in ((exact[0], right), (left, exact[1])) if None not in pair]


def _exact(text: str) -> str | None:
    exact, _, rounded = text.rpartition("\\approx")
    values = as_number(sides_of(exact)[-1]), as_number(rounded)
    if values[1] is None or (values[0] is not None and abs(values[0] - values[1]) > abs(values[0]) / 100):
        return None
    return exact.strip() or None


def sides_of(text: str) -> list[str]:
    r"""``x`` and ``5`` of ``x = 5``, ``5 = x`` and ``x \in 5``; all sides of a chain; else the text alone."""
    sides = split_top_level(text, _EQUALS)
    equation = len(sides) > 1
    sides = sides if equation else split_top_level(text, _IN)
    prose = any(_PROSE.search(side) and not NAME.match(side) for side in sides)
    if prose or not all(sides) or any(len(split_top_level(side, BETWEEN)) > 1 for side in sides[:-1]):
        return [text]
    turned = equation and len(sides) == 2 and NAME.match(sides[1]) and is_calculation(sides[0])
    return sides[::-1] if turned else sides


def value_of(sides: list[str]) -> str | None:
    """What a name, a calculation or a chain stands for; None of an equation, which stands for nothing but itself."""
    first, *between = sides[:-1] or [""]
    calculated = is_calculation(first) or (between and all(map(is_calculation, between)))
    return sides[-1] if calculated or NAME.match(first) else None


def contradicts(sides: list[str]) -> bool:
    """Whether two exact sides of a chain are not the same: ``2+2=5``."""
    exact = [side for side in sides if len(side) <= _LONGEST and _ARITHMETIC.fullmatch(side)]
    return any(
        not same_by_algebra(a, b) and same_by_algebra(a, a) and same_by_algebra(b, b) for a, b in pairwise(exact)
    )
