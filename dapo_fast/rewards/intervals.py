"""Sets of real numbers, written as intervals, inequalities, set-builders or unions of them: all read as intervals."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

from dapo_fast.rewards.parts import bracketed, split_top_level
from dapo_fast.rewards.plain import as_number, is_calculation

_REALS = re.compile(r"\\mathbb\s*\{?R\}?|R|ℝ|[Aa]ll (?:the )?real(?: number)?s?|[Aa]ny real number|\\Re")
_HALF = re.compile(
    r"(?:\\mathbb\s*\{?R\}?|ℝ)\s*(?:\^\s*\{?\s*([+-])\s*\}?|_\s*\{?\s*([<>]|\\[lg]e(?![A-Za-z]))\s*0\s*\}?)"
)
_BUILDER = re.compile(
    r"(?P<open>\\\{\s*)?([A-Za-z])\s*(?:\\in\s*(?:\\mathbb\s*\{?R\}?|R|ℝ)\s*)?[|:,]\s*(?:\2\s*\\in\s*\\mathbb\s*\{?R\}?\s*,)?"
    r"((?:(?!\\\}).)*)(?(open)\\\})\Z",
    re.S,
)
_WITHOUT = re.compile(rf"(?:{_REALS.pattern})\s*(?:\\setminus|\\backslash|-)\s*\\\{{(.*)\\\}}")
_SIZE = re.compile(r"\|\s*([A-Za-z])\s*\|")
_MEMBER = re.compile(r"([A-Za-z])\s*\\in(?![A-Za-z])(.*)\Z", re.S)
_UNION = re.compile(r"\\cup(?![A-Za-z])|\\(?:vee|lor)(?![A-Za-z])|(?<![A-Za-z\\]),?\s*or(?![A-Za-z])")
_BOTH = re.compile(r"\\(?:wedge|land)(?![A-Za-z])|(?<![A-Za-z\\])and(?![A-Za-z])|,")
_COMMA = re.compile(",")
_SIGN = re.compile(r"\\(?:le|ge|ne)(?![A-Za-z])|[<>]")
_VARIABLE = re.compile(r"[A-Za-z]|\\(?:alpha|beta|theta|lambda|mu|phi|omega)")
_FLIPPED = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le", r"\ne": r"\ne"}
_INFINITIES = {r"-\infty": -math.inf, r"\infty": math.inf, r"+\infty": math.inf}


class Interval(NamedTuple):
    """From ``start`` to ``end``, with brackets such as "[)"; ``name`` is the variable where one is given."""

    brackets: str
    start: str
    end: str
    name: str | None = None


def real_set(text: str) -> list[Interval] | None:
    """The intervals whose union a normalised text is; None where it is anything else, a plain tuple included."""
    text, name = text.strip(), None
    if len(text) > 500:
        return None
    if match := _BUILDER.match(text):
        name, text = match.group(2), match.group(3).strip()
    elif match := _MEMBER.match(text):
        name, text = match.group(1), match.group(2).strip()
    if _REALS.fullmatch(text):
        return [Interval("()", r"-\infty", r"\infty", name)]
    if match := _HALF.fullmatch(text):
        sign = match.group(2) or "<>"[match.group(1) == "+"]
        return [bound._replace(name=name) for bound in _inequality(f"x{sign}0") or ()]
    if match := _WITHOUT.fullmatch(text):
        return _without(split_top_level(match.group(1), _COMMA))
    sources = split_top_level(text, _UNION)
    sets = [_part(text)] if len(sources) == 1 else [real_set(source) for source in sources]
    if len(sources) > 1 and any(sets):
        sets = [found or _points(source) for found, source in zip(sets, sources)]
    if any(found is None for found in sets):
        return None
    return [interval._replace(name=interval.name or name) for found in sets for interval in found]


def _part(text: str) -> list[Interval] | None:
    """An interval, or inequalities that all hold."""
    if text.startswith(("(", "[")) and text.endswith((")", "]")):
        ends = split_top_level(text[1:-1], _COMMA)
        if len(ends) == 2 and all(ends):
            # Infinity is never reached: a bracket at it is a slip of the pen.
            left = "(" if "infty" in ends[0] else text[0]
            right = ")" if "infty" in ends[1] else text[-1]
            return [Interval(left + right, *ends)]
        return None
    name, sign, points = text.partition(r"\ne")
    if sign and not _SIGN.search(points) and _VARIABLE.fullmatch(name.strip()):
        found = _without(bracketed(points)[1])
        return found and [interval._replace(name=name.strip()) for interval in found]
    bounds = [_inequality(part) for part in split_top_level(text, _BOTH)]
    found = bounds[0]
    for bound in bounds[1:]:
        both = None if found is None or bound is None else _intersection(found, bound)
        # "x < 1, x > 4" is no part between
        found = [*found, *bound] if both == [] and "," in text else both
    return found


def _inequality(text: str) -> list[Interval] | None:
    """``x > 3``, ``3 < x``, ``1 < x \\le 2``, ``x \\ne 3``, ``|x| < 3``."""
    signs, sides = _SIGN.findall(text), [side.strip() for side in _SIGN.split(text)]
    if not signs or not all(sides) or any("=" in side or "," in side for side in sides):
        return None
    found = _bound(sides[0], signs[0], sides[1])
    for left, sign, right in zip(sides[1:], signs[1:], sides[2:]):
        bound = _bound(left, sign, right)
        found = None if found is None or bound is None else _intersection(found, bound)
    return found


def _bound(left: str, sign: str, right: str) -> list[Interval] | None:
    """Where a variable or its size is on one side, and not on the other."""
    names = [_VARIABLE.fullmatch(side) or _SIZE.fullmatch(side) for side in (left, right)]
    names = [name and name.group().strip("| ") not in ("e", "i") and name for name in names]
    if bool(names[0]) == bool(names[1]):
        return None
    if names[1]:
        left, sign, right, names = right, _FLIPPED[sign], left, names[::-1]
    name = names[0].group().strip("| ")
    if re.search(rf"(?<![A-Za-z\\]){re.escape(name)}(?![A-Za-z])", right):
        return None
    if sign == r"\ne":
        return None if "|" in left else [interval._replace(name=name) for interval in _without([right]) or ()]
    opening, closing = ("(", ")") if sign in ("<", ">") else ("[", "]")
    above = Interval(opening + ")", right, r"\infty", name)
    if "|" not in left:
        return [above if sign in (">", r"\ge") else Interval("(" + closing, r"-\infty", right, name)]
    if re.search("[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", right)):
        return None
    negative = f"-{right}" if re.fullmatch(r"[\d.]+", right) else f"-({right})"
    if sign in (">", r"\ge"):
        return [Interval("(" + closing, r"-\infty", negative, name), above]
    return [Interval(opening + closing, negative, right, name)]


def _without(points: list[str]) -> list[Interval] | None:
    """All reals but these."""
    numbers = [as_number(point) for point in points]
    if len(points) > 1 and None in numbers:
        return None
    ends = [r"-\infty", *(point for _, point in sorted(zip(numbers, points))), r"\infty"]
    return [Interval("()", *pair) for pair in pairwise(ends)]


def _points(text: str) -> list[Interval] | None:
    r"""``\{2, 3\}`` or ``x = 2`` as a part of a union."""
    name, equals, value = text.partition("=")
    if equals and _VARIABLE.fullmatch(name.strip()) and is_calculation(value):
        return [Interval("[]", value.strip(), value.strip(), name.strip())]
    if not (text.startswith(r"\{") and text.endswith(r"\}")):
        return None
    return [Interval("[]", point, point) for point in split_top_level(text[2:-2], _COMMA) if point]


def _intersection(left: list[Interval], right: list[Interval]) -> list[Interval] | None:
    """What both have in common; None where that cannot be told."""
    found = [_common(a, b) for a in left for b in right]
    return None if None in found else [interval for interval in found if interval.start != "nowhere"]


_NOWHERE = Interval("()", "nowhere", "nowhere")


def _common(left: Interval, right: Interval) -> Interval | None:
    starts = [(_place(part.start), part.start, part.brackets[0] == "(") for part in (left, right)]
    ends = [(_place(part.end), part.end, part.brackets[1] == "]") for part in (left, right)]
    start = _last(starts)
    end = _last([(None if place is None else -place, text, not closed) for place, text, closed in ends])
    if left.name != right.name or start is None or end is None:
        return None
    low, high = _place(start[1]), _place(end[1])
    brackets = "[("[start[2]] + "])"[end[2]]
    if None not in (low, high) and (low > high or (low == high and brackets != "[]")):
        return _NOWHERE
    return Interval(brackets, start[1], end[1], left.name)


def _last(ends: list[tuple]) -> tuple | None:
    """The later of two ends, the open one of equals; None where one of them is no plain number."""
    if ends[0][1] == ends[1][1] or None not in (ends[0][0], ends[1][0]):
        return max(ends, key=lambda end: (end[0] or 0, end[2]))
    # Before or behind infinity is anything.
    return next((b for a, b in (ends, ends[::-1]) if a[0] == -math.inf), None)


def _place(end: str) -> Fraction | float | None:
    return _INFINITIES.get(end.replace(" ", ""), as_number(end))
