"""Sets of real numbers, written as intervals, inequalities, set-builders or unions of them: all read as intervals."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import NamedTuple

from dapo_fast.rewards.normal import as_number
from dapo_fast.rewards.parts import split_top_level

_REALS = re.compile(r"\\mathbb\s*\{?R\}?|R|ℝ|[Aa]ll (?:the )?real(?: number)?s?|[Aa]ny real number|\\Re")
_HALF = re.compile(
    r"(?:\\mathbb\s*\{?R\}?|ℝ)\s*(?:\^\s*\{?\s*([+-])\s*\}?|_\s*\{?\s*([<>]|\\[lg]e(?![A-Za-z]))\s*0\s*\}?)"
)
_BUILDER = re.compile(
    r"\\\{\s*([A-Za-z])\s*(?:\\in\s*(?:\\mathbb\s*\{?R\}?|R|ℝ)\s*)?[|:,]\s*(?:\1\s*\\in\s*\\mathbb\s*\{?R\}?\s*,)?((?:(?!\\\}).)*)\\\}\Z",
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
    if match := _BUILDER.match(text) or _MEMBER.match(text):
        name, text = match.group(1), match.group(2).strip()
    if _REALS.fullmatch(text):
        return [Interval("()", r"-\infty", r"\infty", name)]
    if match := _HALF.fullmatch(text):
        sign = match.group(2) or "<>"[match.group(1) == "+"]
        return [bound._replace(name=name) for bound in _inequality(f"x{sign}0") or ()]
    if match := _WITHOUT.fullmatch(text):
        return _without(split_top_level(match.group(1), _COMMA))
    sources = split_top_level(text, _UNION)
    parts = [_part(text)] if len(sources) == 1 else [real_set(source) or _points(source) for source in sources]
    if any(part is None for part in parts):
        return None
    return [interval._replace(name=interval.name or name) for part in parts for interval in part]


def _part(text: str) -> list[Interval] | None:
    if text.startswith(("(", "[")) and text.endswith((")", "]")):
        ends = split_top_level(text[1:-1], _COMMA)
        if len(ends) == 2 and all(ends):
            # Infinity is never reached: a bracket at it is a slip of the pen.
            left = "(" if "infty" in ends[0] else text[0]
            right = ")" if "infty" in ends[1] else text[-1]
            return [Interval(left + right, *ends)]
        return None
    bounds = [_inequality(part) for part in split_top_level(text, _BOTH)]
    if any(bound is None for bound in bounds):
        return None
    if len(bounds) == 1:
        return bounds[0]
    if len(bounds) == 2 and sorted(map(len, bounds)) == [1, 2] and "\\ne" in text:
        (bound,), (left, right) = sorted(bounds, key=len)
        return _with_a_hole(bound, left.end) if left.end == right.start and left.name == bound.name else None
    if len(bounds) == 2 and all(len(bound) == 1 for bound in bounds) and bounds[0][0].name == bounds[1][0].name:
        low, high = sorted((bounds[0][0], bounds[1][0]), key=lambda bound: bound.start == r"-\infty")
        if low.end == r"\infty" and high.start == r"-\infty":
            ends = as_number(low.start), as_number(high.end)
            if None not in ends and ends[0] > ends[1]:  # "x < 1, x > 4" is no part between
                return [high, low] if "," in text else None
            return [Interval(low.brackets[0] + high.brackets[1], low.start, high.end, low.name)]
    return None


def _with_a_hole(bound: Interval, point: str) -> list[Interval] | None:
    """``x > 0 and x \\ne 1``."""
    low, place, high = (as_number(text) for text in (bound.start, point, bound.end))
    below = bound.start == r"-\infty" or (low is not None and place is not None and low < place)
    above = bound.end == r"\infty" or (high is not None and place is not None and place < high)
    if not (below and above):
        return None
    return [
        bound._replace(brackets=bound.brackets[0] + ")", end=point),
        bound._replace(brackets="(" + bound.brackets[1], start=point),
    ]


def _without(points: list[str]) -> list[Interval] | None:
    """All reals but these."""
    numbers = [as_number(point) for point in points]
    if len(points) > 1 and None in numbers:
        return None
    ends = [r"-\infty", *(point for _, point in sorted(zip(numbers, points))), r"\infty"]
    return [Interval("()", *pair) for pair in pairwise(ends)]


def _points(text: str) -> list[Interval] | None:
    if not (text.startswith(r"\{") and text.endswith(r"\}")):
        return None
    return [Interval("[]", point, point) for point in split_top_level(text[2:-2], _COMMA) if point]


def _inequality(text: str) -> list[Interval] | None:
    """``x > 3``, ``3 < x``, ``1 < x \\le 2``, ``x \\ne 3``, ``|x| < 3``."""
    signs, sides = _SIGN.findall(text), [side.strip() for side in _SIGN.split(text)]
    if signs and signs[-1] in (">", r"\ge"):
        signs, sides = [_FLIPPED[sign] for sign in reversed(signs)], sides[::-1]
    if not signs or not all(sides) or any("=" in side or "," in side for side in sides):
        return None
    if len(sides) == 2 and (size := _SIZE.fullmatch(sides[0]) or _SIZE.fullmatch(sides[1])):
        return _of_size(
            size.group(1), signs[0], *(side for side in sides if side != size.group()), sides[0] == size.group()
        )
    names = [side for side in sides if _VARIABLE.fullmatch(side) and side not in ("e", "i")]
    if len(names) != 1 or any(
        re.search(rf"(?<![A-Za-z\\]){re.escape(names[0])}(?![A-Za-z])", s) for s in sides if s != names[0]
    ):
        return None
    name, place = names[0], sides.index(names[0])
    if signs == [r"\ne"]:
        point = sides[1 - place]
        return [Interval("()", r"-\infty", point, name), Interval("()", point, r"\infty", name)]
    below, above = sides[:place], sides[place + 1 :]
    if len(below) > 1 or len(above) > 1 or not {"<", r"\le"}.issuperset(signs):
        return None
    brackets = ("[" if below and signs[0] == r"\le" else "(") + ("]" if above and signs[-1] == r"\le" else ")")
    return [Interval(brackets, *(below or [r"-\infty"]), *(above or [r"\infty"]), name)]


def _of_size(name: str, sign: str, bound: str, below: bool) -> list[Interval] | None:
    """``|x| < 3``, or ``3 < |x|`` where not ``below``."""
    if sign == r"\ne" or re.search("[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", bound)):
        return None
    left, right = "(["[sign == r"\le"], ")]"[sign == r"\le"]
    if below:
        return [Interval(left + right, f"-({bound})", bound, name)]
    return [Interval("(" + right, r"-\infty", f"-({bound})", name), Interval(left + ")", bound, r"\infty", name)]
