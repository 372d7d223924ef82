"""Whether two short answers are the same: spelling, names and chains, plain.py, structure, then algebra."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from typing import TypeVar

from dapo_fast.rewards.algebra import same_by_algebra
from dapo_fast.rewards.intervals import Interval, real_set
from dapo_fast.rewards.normal import as_number, compact, is_calculation, normalise, strip_math
from dapo_fast.rewards.parts import BETWEEN, bracketed, cells, split_top_level
from dapo_fast.rewards.plain import same_plain
from dapo_fast.rewards.units import units_differ

LONGEST_ANSWER = 2_000  # characters; nothing longer is given to the algebra
_MOST_ELEMENTS = 64
_Item = TypeVar("_Item", str, Interval)

_EQUALS = re.compile(r"=|\\(?:approx|equiv)(?![A-Za-z])")
# What is exact, so that two sides which differ are a mistake and no rounding.
_ARITHMETIC = re.compile(r"(?:[-+*/^(){}!\d\s]|\\(?:frac|sqrt|cdot|div|binom)(?![A-Za-z]))+")
_FOLLOWS = re.compile(r"\\(?:Rightarrow|Longrightarrow|implies|therefore)(?![A-Za-z])|⇒|∴")
_CONSTANT = re.compile(r"(?<=[-+])\s*c\Z|\Ac(?=\s*[-+])")
_IN = re.compile(r"\\in(?![A-Za-z])")
_NAME = re.compile(
    r"(?:m?\\(?:angle|triangle)\s*)?"
    r"(?:[A-Z]{1,3}|[a-z]"
    r"|\\(?!frac|sqrt|pm|sin|cos|tan|cot|sec|csc|log|ln|exp|int|sum)[A-Za-z]+(?:\s*\{?[A-Za-z]{1,3}\}?)?"
    # A word, which has a vowel behind its first letter: not xyz, a product.
    r"|(?:[A-Z]|[a-z](?=[a-z]*[aeiou]))[A-Za-z]{2,19}(?:\s[A-Za-z]{1,20}){0,3})"
    r"(?:_(?:\w|\{[^{}]*\}))?'*(?:\^\{-1\})?(?:\s?\([^()]{1,12}\))?\Z"
    r"|\([A-Za-z](?:,\s?[A-Za-z]){1,3}\)\Z|\|(?:[A-Z]{2}|\\vec\{\w{1,2}\})\|\Z"
)
_PROSE = re.compile(r"(?<![A-Za-z\\])[A-Za-z]{3,}[,.]?\s+\$?[A-Za-z]{2,}")
_ARROW = re.compile(r"\\vec\s*\{?\s*([A-Za-z]{1,2})\s*\}?")
_RATIO = re.compile(":")
_FRACTION = re.compile(r"(\d+)/(\d+)|\\frac\{(\d+)\}\{(\d+)\}")
_OPTION = re.compile(
    r"\\(?:text|textbf|mathrm|mbox)\s*\{\s*\(([A-H])\)\s*\}(?:\\[ ,;:]|~|\\q?quad|\s)*((?!\\c[au]p)[\w\\$.-].*)", re.S
)
_LETTER = re.compile(r"\(?([A-H])(?:\)?\Z|[).:]+\s*(.*))", re.S)
_TIME = re.compile(r"\d{1,2}:[0-5]\d")


def equivalent(given: str, reference: str) -> bool:
    """Whether ``given`` is the answer ``reference``.

    What no rule below understands as a whole is compared as text, never by a part of it.
    """
    return len(given) <= 10 * LONGEST_ANSWER and _same(given, reference, 0)


def _same(given: str, reference: str, depth: int) -> bool:
    if units_differ(given, reference):
        return False
    left, right = normalise(given), normalise(reference)
    if ("\\vec" in left) != ("\\vec" in right):
        left, right = _without_arrows(left, right), _without_arrows(right, left)
    left, right = _with_constant_of(right, left), _with_constant_of(left, right)
    if not _FOLLOWS.search(right):
        left = _concluded(left)
    if not left or not right:
        return compact(strip_math(given)) == compact(strip_math(reference)) != ""
    if compact(left) == compact(right):
        return True
    real = real_set(left), real_set(right)
    if None not in real:
        return bool(real[0]) and _matched(*real, lambda found, wanted: _same_interval(found, wanted, depth))
    if option := _OPTION.fullmatch(strip_math(reference)):
        return _same_option(left, *option.groups(), depth)
    if any(exact and _same(*exact, depth + 1) for exact in _unrounded(left, right)):
        return True
    sides = _sides(left), _sides(right)
    if len(sides[0]) == len(sides[1]) > 1:
        return _same_relation(left, right, *sides, depth)
    left_value, right_value = (_value(part) for part in sides)
    if left_value is None or right_value is None or ("\\approx" not in left and _contradicts(sides[0])):
        return False
    if compact(left_value) == compact(right_value):
        return True
    plain = same_plain(left_value, right_value, strip_math(reference))
    if plain is False and "," in strip_math(given) and "," in strip_math(reference):
        return bool(_same_items(given, reference, depth))  # "500,750" may be a list of two as well as a number
    if plain is not None:
        return plain
    if depth < 3:
        structured = _same_structure(left_value, right_value, depth)
        if structured is not None:
            return structured
    return max(len(left_value), len(right_value)) <= LONGEST_ANSWER and same_by_algebra(left_value, right_value)


def _same_option(given: str, letter: str, value: str, depth: int) -> bool:
    """Of ``(A) 5``, the letter alone, the value alone, or both."""
    found = _LETTER.match(given)
    if found is None:
        return _same(given, value, depth + 1)
    return found[1] == letter and (not found[2] or _same(found[2], value, depth + 1))


# Names, chains, relations ------------------------------------------------------------------------------------------


def _without_arrows(text: str, other: str) -> str:
    r"""``a+2b`` of ``\vec{a}+2\vec{b}`` where ``other`` has no arrows, unless ``a`` stands for the length too."""
    bare, plain = (re.sub(r"\\[A-Za-z]+", " ", part) for part in (_ARROW.sub(" ", text), other))
    named = any(name in bare or name not in plain for name in _ARROW.findall(text))
    return text if named else _ARROW.sub(r"\1", text)


def _concluded(text: str) -> str:
    """``x=12`` of ``x+3=15 \\Rightarrow x=12``: the last of relations that follow from each other."""
    steps = _FOLLOWS.split(text)
    return steps[-1].strip() if all(re.search(r"[=<>]|\\[lg]e(?![A-Za-z])", step) for step in steps) else text


def _with_constant_of(other: str, text: str) -> str:
    """``x^2+C`` of ``x^2+c`` where ``other`` calls the constant C."""
    alike = re.search(r"[-+]\s*C\Z|\AC\s*[-+]", other) and "c" not in re.sub(r"\\[a-z]+", "", other)
    return _CONSTANT.sub("C", text) if alike else text


def _unrounded(left: str, right: str) -> list[tuple[str, str]]:
    """The pair with what a decimal was rounded from in place of it: ``5\\sqrt{2}`` of ``5\\sqrt{2} \\approx 7.07``."""
    exact = [_exact(text) for text in (left, right)]
    return [pair for pair in ((exact[0], right), (left, exact[1])) if None not in pair]


def _exact(text: str) -> str | None:
    exact, _, rounded = text.rpartition("\\approx")
    values = as_number(_sides(exact)[-1]), as_number(rounded)
    if values[1] is None or (values[0] is not None and abs(values[0] - values[1]) > abs(values[0]) / 100):
        return None
    return exact.strip() or None


def _sides(text: str) -> list[str]:
    r"""``x`` and ``5`` of ``x = 5``, ``5 = x`` and ``x \in 5``; all sides of a chain; else the text alone."""
    sides = split_top_level(text, _EQUALS)
    equation = len(sides) > 1
    sides = sides if equation else split_top_level(text, _IN)
    prose = any(_PROSE.search(side) and not _NAME.match(side) for side in sides)
    if prose or not all(sides) or any(len(split_top_level(side, BETWEEN)) > 1 for side in sides[:-1]):
        return [text]
    turned = equation and len(sides) == 2 and _NAME.match(sides[1]) and is_calculation(sides[0])
    return sides[::-1] if turned else sides


def _value(sides: list[str]) -> str | None:
    """What a name, a calculation or a chain stands for; None of an equation, which stands for nothing but itself."""
    first, *between = sides[:-1] or [""]
    calculated = is_calculation(first) or (between and all(map(is_calculation, between)))
    return sides[-1] if calculated or _NAME.match(first) else None


def _contradicts(sides: list[str]) -> bool:
    """Whether two exact sides of a chain are not the same: ``2+2=5``."""
    exact = [side for side in sides if _ARITHMETIC.fullmatch(side)]
    return any(
        not same_by_algebra(a, b) and same_by_algebra(a, a) and same_by_algebra(b, b) for a, b in pairwise(exact)
    )


def _same_relation(whole_left: str, whole_right: str, left: list[str], right: list[str], depth: int) -> bool:
    """Both have as many sides: all are the same, or (of two) the relation as a whole is."""
    named = len(left) == 2 and _NAME.match(right[0])
    if named and (_same_name(compact(left[0]), compact(right[0])) or is_calculation(left[0])):
        return _same(left[1], right[1], depth + 1)
    if is_calculation(left[0]) and is_calculation(right[0]):
        # What is calculated, not only what it comes to: cos(10π/3) = -1/2 says nothing about cos(20π/3).
        numbers = [sorted(re.findall(r"\d+", side)) for side in (left[0], right[0], right[-1])]
        if numbers[0] not in numbers[1:]:
            return False
    if depth < 3 and all(_same(a, b, depth + 1) for a, b in zip(left, right)):
        return True
    return (
        len(left) == 2
        and max(len(whole_left), len(whole_right)) <= LONGEST_ANSWER
        and same_by_algebra(whole_left, whole_right)
    )


def _same_name(left: str, right: str) -> bool:
    """``f`` is ``f(t)`` for short, and ``y`` is ``f(x)``."""
    left, right = ("y" if name == "f(x)" else name.casefold() for name in (left, right))
    return left == right or left.partition("(")[0] == right or left == right.partition("(")[0]


# Intervals, tuples, sets, lists, ratios, matrices --------------------------------------------------------------------


def _same_interval(found: Interval, wanted: Interval, depth: int) -> bool:
    return (
        {found.name, wanted.name} <= {found.name or wanted.name, None}
        and found.brackets == wanted.brackets
        and _same(found.start, wanted.start, depth + 1)
        and _same(found.end, wanted.end, depth + 1)
    )


def _same_structure(left: str, right: str, depth: int) -> bool | None:
    """None: neither has any structure that decides."""
    rows = cells(left), cells(right)
    if rows[0] is not None and rows[1] is not None:
        if [len(row) for row in rows[0]] != [len(row) for row in rows[1]]:
            return False
        pairs = [pair for a, b in zip(rows[0], rows[1]) for pair in zip(a, b)]
        return len(pairs) <= _MOST_ELEMENTS and all(_same(a, b, depth + 1) for a, b in pairs)
    if (rows[0] is None) != (rows[1] is None):
        left, right = _as_tuple(left, rows[0]), _as_tuple(right, rows[1])
    ratios = _ratio(left), _ratio(right)
    if ":" in left + right and (len(ratios[0]) > 1 or len(ratios[1]) > 1):
        return _same_ratio(*ratios, depth, times=bool(_TIME.fullmatch(left) or _TIME.fullmatch(right)))
    return _same_items(left, right, depth)


def _as_tuple(text: str, rows: list[list[str]] | None) -> str:
    """A vector set as a matrix of one row or column."""
    vector = [cell for row in rows or [] for cell in row]
    return f"({', '.join(vector)})" if rows and 1 in (len(rows), len(rows[0])) and len(vector) > 1 else text


def _ratio(text: str) -> list[str]:
    """Parts of ``1:2:3``, or of the fraction that ``1:2`` is."""
    fraction = _FRACTION.fullmatch(text)
    return [part for part in fraction.groups() if part] if fraction else split_top_level(text, _RATIO)


def _same_ratio(left: list[str], right: list[str], depth: int, times: bool) -> bool:
    """Part by part, or both in lowest terms; ``times`` of the day have none."""
    if len(left) != len(right) or len(left) > _MOST_ELEMENTS:
        return False
    numbers = [as_number(part) for part in left], [as_number(part) for part in right]
    if not times and all(numbers[0] + numbers[1]):
        factor = numbers[0][0] / numbers[1][0]
        return all(a == factor * b for a, b in zip(*numbers))
    return all(_same(a, b, depth + 1) for a, b in zip(left, right))


def _same_items(left: str, right: str, depth: int) -> bool | None:
    (left_brackets, left_items), (right_brackets, right_items) = bracketed(left), bracketed(right)
    if len(left_items) == len(right_items) == 1:
        if left_items[0] == left and right_items[0] == right:
            return None
        return _same(left_items[0], right_items[0], depth + 1)
    if len(left_items) != len(right_items) or len(left_items) > _MOST_ELEMENTS:
        return False
    names = [_names(left_items), _names(right_items)]
    if left_brackets == right_brackets == "" and None not in names:
        return names[0].keys() == names[1].keys() and all(
            _same(names[0][key], names[1][key], depth + 1) for key in names[1]
        )
    named = left_brackets == right_brackets == "" and (names[0] or names[1] or {})
    ordered = named and len({name[0] for name in named}) == len(named)  # x and y, but not the roots x_1 and x_2
    if {left_brackets, right_brackets} <= {"", "{}"} and not ordered:
        letters, values = zip(_roots(left_items), _roots(right_items))
        if letters[0] == letters[1]:
            left_items, right_items = values
        return _matched(left_items, right_items, lambda found, wanted: _same(found, wanted, depth + 1))
    bare = {left_brackets, right_brackets} == {"()", ""} and "\\pm" not in left + right
    if left_brackets == right_brackets or bare:
        return all(_same(a, b, depth + 1) for a, b in zip(left_items, right_items))
    return False


def _names(items: list[str]) -> dict[str, str] | None:
    """{"x": "x=1", "y": "y=2"} of ``x=1, y=2``; None if an item is no assignment or a name comes twice."""
    found = {}
    for item in items:
        sides = _sides(normalise(item))
        if len(sides) > 1 and _NAME.match(sides[0]):
            found[compact(sides[0]).casefold()] = item
    return found if len(found) == len(items) else None


def _roots(items: list[str]) -> tuple[str | None, list[str]]:
    """``x`` with 2 and 3 of ``x_1=2, x_2=3`` and of ``x=2, x=3``; None with the items where they are anything else."""
    found = [re.match(r"([A-Za-z])(?:_\{?(\d)\}?)?\s*=([^=]*)\Z", normalise(item)) for item in items]
    if not all(found) or len({match[1] for match in found}) != 1:
        return None, items
    numbers = {match[2] for match in found}
    if numbers != {None} and len(numbers) < len(found):  # the first one twice
        return None, items
    return found[0][1], [match[3] for match in found]


def _matched(left: list[_Item], right: list[_Item], same: Callable[[_Item, _Item], bool]) -> bool:
    """Whether each of ``right`` is one of ``left``, and none of ``left`` is over; order is free."""
    rest = list(left)
    for wanted in right:
        index = next((index for index, item in enumerate(rest) if same(item, wanted)), None)
        if index is None:
            return False
        del rest[index]
    return not rest
