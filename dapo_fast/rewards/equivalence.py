"""Whether two short answers are the same: spelling, exact numbers, structure, and only then algebra."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

from dapo_fast.rewards.normal import (
    as_number,
    compact,
    is_calculation,
    matrix_rows,
    normalise,
    right_hand_side,
    split_top_level,
    strip_math,
)

Symbolic = Callable[[str, str], bool]

RELATIVE_TOLERANCE = Fraction(1, 10_000)  # of decimals, as in Qwen2.5-Math's grader; a whole reference is met exactly
LONGEST_ANSWER = 2_000  # characters; nothing longer is given to the algebra
_MOST_ELEMENTS = 64

_CHOICE = re.compile(r"\(?([A-Za-z])\)?(?:[.:)].*)?\Z", re.S)
_BASE = re.compile(r"\(?(-?[0-9A-Fa-f.]+)\)?_\{?(\d+)\}?\Z")
_SCALE_WORD = re.compile(r"\b(?:hundred|thousand|million|billion|trillion|dozen|half|k)\b", re.I)
_ONE_NUMBER = re.compile(
    r"(?:[A-Za-z\s,.'-]*\s)?([-+]?\d[\d,]*(?:\.\d+)?%?)(?:\s*(?:[A-Za-z]{2,}[A-Za-z\s.,'^/()-]*(?<=[A-Za-z^])[23]?))?\Z"
)
_WORDS = re.compile(r"[A-Za-z][A-Za-z\s.,'’-]+\Z")
_AND = re.compile(r"\s*,?\s*(?:\\(?:text|textrm|mathrm)\s*\{\s*,?\s*(?:and|or)\s*\}|\b(?:and|or)\b)\s*,?\s*|;\s*")


def equivalent(given: str, reference: str, symbolic: Symbolic) -> bool:
    """Whether ``given`` is the answer ``reference``.

    Args:
        symbolic: Decides (given, reference) by computer algebra; asked last, with short LaTeX only.
    """
    if len(given) > 10 * LONGEST_ANSWER:
        return False
    return _same(given, reference, symbolic, depth=0)


def _same(given: str, reference: str, symbolic: Symbolic, depth: int) -> bool:
    left, right = normalise(given), normalise(reference)
    if not left or not right:
        return left == right != "" or compact(strip_math(given)) == compact(strip_math(reference)) != ""
    if compact(left) == compact(right):
        return True
    if "=" in right and "=" not in left and is_calculation(right.rpartition("=")[0]):
        right = right.rpartition("=")[2].strip()  # a reference such as "\\log_4(8) = 3/2"
    left_value, right_value = right_hand_side(left), right_hand_side(right)
    if compact(left_value) == compact(right_value):
        return not _other_variables(left, right)
    numbers = as_number(left_value), as_number(right_value)
    if (numbers[0] is None) != (numbers[1] is None):
        # One side says "12", the other "12 red apples".
        numbers = (
            _only_number(left_value) if numbers[0] is None else numbers[0],
            _only_number(right_value) if numbers[1] is None else numbers[1],
        )
    if numbers[0] is not None and numbers[1] is not None:
        if _same_number(numbers[0], numbers[1], left_value, right_value):
            return True
        # "500,750" may be a list of two: read both as lists before saying no.
        if "," not in strip_math(given) or "," not in strip_math(reference):
            return False
    base = _same_base(left_value, right_value)
    if base is not None:
        return base
    if _is_words(reference, right):
        return _same_words(left, right)
    if depth < 3:
        structured = _same_structure(given, reference, left, right, symbolic, depth)
        if structured is not None:
            return structured
    if numbers[0] is not None and numbers[1] is not None:
        return False
    if len(left) > LONGEST_ANSWER or len(right) > LONGEST_ANSWER:
        return False
    return symbolic(left, right)


def _other_variables(left: str, right: str) -> bool:
    names = [text.partition("=")[0].strip() if "=" in text else None for text in (left, right)]
    return None not in names and compact(str(names[0])) != compact(str(names[1]))


def _only_number(text: str) -> Fraction | None:
    """The number of a text that is one number and plain words: "12 red apples"."""
    match = _ONE_NUMBER.match(text.strip()) if len(text) < 200 and "\\" not in text else None
    return as_number(match.group(1)) if match and not _SCALE_WORD.search(text) else None


def _same_number(left: Fraction, right: Fraction, left_text: str, right_text: str) -> bool:
    pairs = [(left, right)]
    if ("%" in left_text) != ("%" in right_text):
        pairs.append((left / 100, right) if "%" in left_text else (left, right / 100))
    decimal = any("." in text or re.search(r"\de[-+]?\d", text, re.I) for text in (left_text, right_text))
    tolerance = RELATIVE_TOLERANCE if decimal else 0
    return any(a == b or (b.denominator > 1 and abs(a - b) <= tolerance * max(abs(a), abs(b))) for a, b in pairs)


def _same_base(left: str, right: str) -> bool | None:
    """Numbers written in a base: the subscript may be left out, and may not differ. None if ``right`` has none."""
    wanted = _BASE.match(right.replace(" ", ""))
    if wanted is None:
        return None
    found = _BASE.match(left.replace(" ", ""))
    if found:
        return found.groups() == wanted.groups()
    return left.replace(" ", "").casefold() == wanted.group(1).casefold()


def _is_words(reference: str, right: str) -> bool:
    if re.fullmatch(r"\\(?:text|mathrm|textbf|mbox)\{[^{}]*\}", strip_math(reference)):
        return True
    if re.fullmatch(r"\(?[A-H]\)?", right):
        return True
    return bool(_WORDS.match(right)) and "\\" not in right and len(re.sub(r"[^A-Za-z]", "", right)) > 2


def _same_words(left: str, right: str) -> bool:
    choice = re.fullmatch(r"\(?([A-Z])\)?", right)
    if choice:
        found = _CHOICE.match(left)
        return found is not None and found.group(1).upper() == choice.group(1)

    def letters(text: str) -> str:
        text = re.sub(r"\\(?:text|mathrm|textbf|mbox)|[{}$\\]", "", text).casefold()
        text = re.sub(r"\b(?:the|an?)\b", " ", text)
        return re.sub(r"[\s.,'’\"-]+", "", text)

    if letters(left) == letters(right) != "":
        return True
    # "Saturday and Sunday": order is free between items.
    lists = [sorted(letters(part) for part in re.split(r",|;|\band\b|\bor\b", text)) for text in (left, right)]
    lists = [[part for part in parts if part] for parts in lists]
    return len(lists[1]) > 1 and lists[0] == lists[1]


# Tuples, intervals, sets, lists, matrices -----------------------------------------------------------------------


def _same_structure(given: str, reference: str, left: str, right: str, symbolic: Symbolic, depth: int) -> bool | None:
    """None: neither has any structure that decides."""
    rows = matrix_rows(left), matrix_rows(right)
    if rows[0] is not None and rows[1] is not None:
        if [len(row) for row in rows[0]] != [len(row) for row in rows[1]]:
            return False
        cells = [pair for a, b in zip(rows[0], rows[1]) for pair in zip(a, b)]
        return len(cells) <= _MOST_ELEMENTS and all(_same(a, b, symbolic, depth + 1) for a, b in cells)
    unions = _union(left), _union(right)
    if len(unions[0]) > 1 or len(unions[1]) > 1:
        if len(unions[0]) == len(unions[1]):
            return _match_unordered(unions[0], unions[1], symbolic, depth) or None
        return None
    left_brackets, left_items = _bracketed(_elements_source(given, left))
    right_brackets, right_items = _bracketed(_elements_source(reference, right))
    if len(left_items) == 1 and len(right_items) == 1:
        return None
    if len(left_items) != len(right_items):
        # (1, 2) ∪ … and conditions such as x > 2, x ≠ 3 are for algebra; plain lists of other lengths differ.
        return None if "\\" in left + right and left_brackets != right_brackets else False
    if len(left_items) > _MOST_ELEMENTS:
        return False
    if left_brackets == right_brackets == "":
        named = _assignments(left_items), _assignments(right_items)
        if named[0] is not None and named[1] is not None and len(named[0]) == len(left_items):
            return named[0].keys() == named[1].keys() and all(
                _same(named[0][key], named[1][key], symbolic, depth + 1) for key in named[1]
            )
    unordered = {left_brackets, right_brackets} <= {"", "{}"}
    if unordered:
        return _match_unordered(left_items, right_items, symbolic, depth)
    if left_brackets == right_brackets or {left_brackets, right_brackets} == {"()", ""}:
        return all(_same(a, b, symbolic, depth + 1) for a, b in zip(left_items, right_items))
    return False


def _elements_source(raw: str, normal: str) -> str:
    # Normalising joined "500,750" to a number; the list reading needs the comma back.
    text = strip_math(raw)
    return text if re.fullmatch(r"-?\d{1,3}(?:,\s*-?\d{3})+", text) else normal


def _union(text: str) -> list[str]:
    return [part.strip() for part in re.split(r"\\cup(?![A-Za-z])", right_hand_side(text))]


def _bracketed(text: str) -> tuple[str, list[str]]:
    """Brackets ("()", "[)", "{}" or "" for a bare list) and elements."""
    text = right_hand_side(text).strip()
    if text.startswith(r"\{") and text.endswith(r"\}"):
        inner, brackets = text[2:-2], "{}"
    elif len(text) > 1 and text[0] in "([" and text[-1] in ")]" and _closes_at_end(text):
        inner, brackets = text[1:-1], text[0] + text[-1]
    else:
        inner, brackets = _AND.sub(",", text), ""
    items = [part for part in split_top_level(inner) if part]
    if brackets != "{}" and len(items) == 1 and "\\pm" in inner:
        items = _plus_minus(items[0])
        return "", items
    items = [item for part in items for item in (_plus_minus(part) if brackets in ("", "{}") else [part])]
    return brackets if len(items) > 1 or brackets == "{}" else "", items if len(items) > 1 else [text]


def _closes_at_end(text: str) -> bool:
    depth = 0
    for position, character in enumerate(text):
        depth += (character in "([") - (character in ")]")
        if depth == 0:
            return position == len(text) - 1
    return False


def _plus_minus(text: str) -> list[str]:
    if text.count(r"\pm") + text.count(r"\mp") != 1:
        return [text]
    plus = re.sub(r"\\pm(?![A-Za-z])\s*", "+", re.sub(r"\\mp(?![A-Za-z])\s*", "-", text))
    minus = re.sub(r"\\pm(?![A-Za-z])\s*", "-", re.sub(r"\\mp(?![A-Za-z])\s*", "+", text))
    return [plus.removeprefix("+"), minus.removeprefix("+")]


def _assignments(items: list[str]) -> dict[str, str] | None:
    """{"x": "1", "y": "2"} of ``x=1, y=2``; None if an item is no assignment or a name comes twice."""
    found = {}
    for item in items:
        name, mark, value = item.partition("=")
        if not mark or "=" in value or right_hand_side(item) == item:
            return None
        found[compact(name)] = value
    return found if len(found) == len(items) else None


def _match_unordered(left: list[str], right: list[str], symbolic: Symbolic, depth: int) -> bool:
    rest = list(left)
    for wanted in right:
        for index, item in enumerate(rest):
            if _same(item, wanted, symbolic, depth + 1):
                del rest[index]
                break
        else:
            return False
    return not rest
