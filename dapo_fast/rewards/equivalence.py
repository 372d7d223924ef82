"""Whether two short answers are the same: one rule after another, until one decides."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from dapo_fast.rewards.algebra import same_by_algebra
from dapo_fast.rewards.chains import FOLLOWS, NAME, concluded, contradicts, sides_of, unrounded, value_of
from dapo_fast.rewards.intervals import Interval, real_set
from dapo_fast.rewards.normal import normalise
from dapo_fast.rewards.parts import bracketed, cells, compact, split_top_level, strip_math
from dapo_fast.rewards.plain import as_number, is_calculation, same_plain
from dapo_fast.rewards.units import units_differ

LONGEST_ANSWER = 2_000  # characters; nothing longer is given to the algebra
_MOST_ELEMENTS = 64
_DEEPEST = 3
_Item = TypeVar("_Item", str, Interval)

_CONSTANT = re.compile(r"(?<=[-+])\s*c\Z|\Ac(?=\s*[-+])")
_ARROW = re.compile(r"\\vec\s*\{?\s*([A-Za-z]{1,2})\s*\}?")
_RATIO = re.compile(":")
_FRACTION = re.compile(r"(\d+)/(\d+)|\\frac\{(\d+)\}\{(\d+)\}")
_OPTION = re.compile(
    r"\\(?:text|textbf|mathrm|mbox)\s*\{\s*\(([A-H])\)\s*\}(?:\\[ ,;:]|~|\\q?quad|\s)*((?!\\c[au]p)[\w\\$.-].*)", re.S
)
_LETTER = re.compile(r"\(?([A-H])(?:\)?\Z|[).:]+\s*(.*))", re.S)
_TIME = re.compile(r"\d{1,2}:[0-5]\d")


@dataclass(frozen=True)
class _Pair:
    """Two answers as they are written, and in one spelling."""

    given: str
    reference: str
    left: str
    right: str
    depth: int  # of answers within answers

    def same(self, left: str, right: str) -> bool:
        """Of parts of the two."""
        return _same(left, right, self.depth + 1)


def equivalent(given: str, reference: str) -> bool:
    """Whether ``given`` is the answer ``reference``.

    What no rule understands as a whole is compared as text, never by a part of it.
    """
    return len(given) <= 10 * LONGEST_ANSWER and _same(given, reference, 0)


def _same(given: str, reference: str, depth: int) -> bool:
    if units_differ(given, reference):
        return False
    pair = _Pair(given, reference, *_alike(normalise(given), normalise(reference)), depth)
    return next(verdict for rule in _RULES if (verdict := rule(pair)) is not None)


def _alike(left: str, right: str) -> tuple[str, str]:
    """Both without what only one of them writes: arrows of vectors, a small c for the constant, earlier steps."""
    if ("\\vec" in left) != ("\\vec" in right):
        left, right = _without_arrows(left, right), _without_arrows(right, left)
    left, right = _with_constant_of(right, left), _with_constant_of(left, right)
    return left if FOLLOWS.search(right) else concluded(left), right


# The rules, each with a verdict or None ------------------------------------------------------------------------------


def _text(pair: _Pair) -> bool | None:
    if not pair.left or not pair.right:
        return compact(strip_math(pair.given)) == compact(strip_math(pair.reference)) != ""
    return True if compact(pair.left) == compact(pair.right) else None


def _reals(pair: _Pair) -> bool | None:
    found, wanted = real_set(pair.left), real_set(pair.right)
    if found is None or wanted is None:
        return None
    return bool(found) and _matched(found, wanted, lambda one, other: _same_interval(one, other, pair))


def _option(pair: _Pair) -> bool | None:
    """Of ``(A) 5``, the letter alone, the value alone, or both."""
    option = _OPTION.fullmatch(strip_math(pair.reference))
    if option is None:
        return None
    found = _LETTER.match(pair.left)
    if found is None:
        return pair.same(pair.left, option[2])
    return found[1] == option[1] and (not found[2] or pair.same(found[2], option[2]))


def _rounded(pair: _Pair) -> bool | None:
    return True if any(pair.same(*exact) for exact in unrounded(pair.left, pair.right)) else None


def _relation(pair: _Pair) -> bool | None:
    left, right = sides_of(pair.left), sides_of(pair.right)
    if len(left) == len(right) > 1:
        return _same_relation(pair, left, right)
    unread = None in (value_of(left), value_of(right))
    return False if unread or ("\\approx" not in pair.left and contradicts(left)) else None


def _value(pair: _Pair) -> bool:
    """What both stand for: plain, or with elements, or by algebra."""
    left, right = value_of(sides_of(pair.left)), value_of(sides_of(pair.right))
    if compact(left) == compact(right):
        return True
    plain = same_plain(left, right, strip_math(pair.reference))
    if plain is False and "," in strip_math(pair.given) and "," in strip_math(pair.reference):
        # "500,750" may be a list of two as well as a number
        return bool(_same_items(pair, pair.given, pair.reference))
    if plain is None and pair.depth < _DEEPEST:
        plain = _same_structure(pair, left, right)
    return _by_algebra(left, right) if plain is None else plain


_RULES = (_text, _reals, _option, _rounded, _relation, _value)


def _by_algebra(left: str, right: str) -> bool:
    return max(len(left), len(right)) <= LONGEST_ANSWER and same_by_algebra(left, right)


# Names, chains, relations ------------------------------------------------------------------------------------------


def _without_arrows(text: str, other: str) -> str:
    r"""``a+2b`` of ``\vec{a}+2\vec{b}`` where ``other`` has no arrows, unless ``a`` stands for the length too."""
    bare, plain = (re.sub(r"\\[A-Za-z]+", " ", part) for part in (_ARROW.sub(" ", text), other))
    named = any(name in bare or name not in plain for name in _ARROW.findall(text))
    return text if named else _ARROW.sub(r"\1", text)


def _with_constant_of(other: str, text: str) -> str:
    """``x^2+C`` of ``x^2+c`` where ``other`` calls the constant C."""
    alike = re.search(r"[-+]\s*C\Z|\AC\s*[-+]", other) and "c" not in re.sub(r"\\[a-z]+", "", other)
    return _CONSTANT.sub("C", text) if alike else text


def _same_relation(pair: _Pair, left: list[str], right: list[str]) -> bool:
    """Both have as many sides: all are the same, or (of two) the relation as a whole is."""
    named = len(left) == 2 and NAME.match(right[0])
    if named and (_same_name(compact(left[0]), compact(right[0])) or is_calculation(left[0])):
        return pair.same(left[1], right[1])
    if is_calculation(left[0]) and is_calculation(right[0]):
        # What is calculated, not only what it comes to: cos(10π/3) = -1/2 says nothing about cos(20π/3).
        numbers = [sorted(re.findall(r"\d+", side)) for side in (left[0], right[0], right[-1])]
        if numbers[0] not in numbers[1:]:
            return False
    if pair.depth < _DEEPEST and all(map(pair.same, left, right)):
        return True
    return len(left) == 2 and _by_algebra(pair.left, pair.right)


def _same_name(left: str, right: str) -> bool:
    """``f`` is ``f(t)`` for short, and ``y`` is ``f(x)``."""
    left, right = ("y" if name == "f(x)" else name.casefold() for name in (left, right))
    return left == right or left.partition("(")[0] == right or left == right.partition("(")[0]


# Intervals, tuples, sets, lists, ratios, matrices --------------------------------------------------------------------


def _same_interval(found: Interval, wanted: Interval, pair: _Pair) -> bool:
    return (
        {found.name, wanted.name} <= {found.name or wanted.name, None}
        and found.brackets == wanted.brackets
        and pair.same(found.start, wanted.start)
        and pair.same(found.end, wanted.end)
    )


def _same_structure(pair: _Pair, left: str, right: str) -> bool | None:
    """None: neither has any structure that decides."""
    rows = cells(left), cells(right)
    if rows[0] is not None and rows[1] is not None:
        if [len(row) for row in rows[0]] != [len(row) for row in rows[1]]:
            return False
        matched = [both for a, b in zip(*rows) for both in zip(a, b)]
        return len(matched) <= _MOST_ELEMENTS and all(pair.same(*both) for both in matched)
    if (rows[0] is None) != (rows[1] is None):
        left, right = _as_tuple(left, rows[0]), _as_tuple(right, rows[1])
    ratios = _ratio(left), _ratio(right)
    if ":" in left + right and (len(ratios[0]) > 1 or len(ratios[1]) > 1):
        return _same_ratio(pair, *ratios, times=bool(_TIME.fullmatch(left) or _TIME.fullmatch(right)))
    return _same_items(pair, left, right)


def _as_tuple(text: str, rows: list[list[str]] | None) -> str:
    """A vector set as a matrix of one row or column."""
    vector = [cell for row in rows or [] for cell in row]
    return f"({', '.join(vector)})" if rows and 1 in (len(rows), len(rows[0])) and len(vector) > 1 else text


def _ratio(text: str) -> list[str]:
    """Parts of ``1:2:3``, or of the fraction that ``1:2`` is."""
    fraction = _FRACTION.fullmatch(text)
    return [part for part in fraction.groups() if part] if fraction else split_top_level(text, _RATIO)


def _same_ratio(pair: _Pair, left: list[str], right: list[str], times: bool) -> bool:
    """Part by part, or both in lowest terms; ``times`` of the day have none."""
    if len(left) != len(right) or len(left) > _MOST_ELEMENTS:
        return False
    numbers = [as_number(part) for part in left], [as_number(part) for part in right]
    if not times and all(numbers[0] + numbers[1]):
        factor = numbers[0][0] / numbers[1][0]
        return all(a == factor * b for a, b in zip(*numbers))
    return all(map(pair.same, left, right))


def _same_items(pair: _Pair, left: str, right: str) -> bool | None:
    (left_brackets, left_items), (right_brackets, right_items) = bracketed(left), bracketed(right)
    if len(left_items) == len(right_items) == 1:
        if left_items[0] == left and right_items[0] == right:
            return None
        return pair.same(left_items[0], right_items[0])
    if len(left_items) != len(right_items) or len(left_items) > _MOST_ELEMENTS:
        return False
    names = [_names(left_items), _names(right_items)]
    if left_brackets == right_brackets == "" and None not in names:
        return names[0].keys() == names[1].keys() and all(pair.same(names[0][key], names[1][key]) for key in names[1])
    named = left_brackets == right_brackets == "" and (names[0] or names[1] or {})
    ordered = named and len({name[0] for name in named}) == len(named)  # x and y, but not the roots x_1 and x_2
    if {left_brackets, right_brackets} <= {"", "{}"} and not ordered:
        letters, values = zip(_roots(left_items), _roots(right_items))
        if letters[0] == letters[1]:
            left_items, right_items = values
        return _matched(left_items, right_items, pair.same)
    bare = {left_brackets, right_brackets} == {"()", ""} and "\\pm" not in left + right
    if left_brackets == right_brackets or bare:
        return all(map(pair.same, left_items, right_items))
    return False


def _names(items: list[str]) -> dict[str, str] | None:
    """{"x": "x=1", "y": "y=2"} of ``x=1, y=2``; None if an item is no assignment or a name comes twice."""
    found = {}
    for item in items:
        sides = sides_of(normalise(item))
        if len(sides) > 1 and NAME.match(sides[0]):
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
