"""One plain form for the many ways of writing a short answer in LaTeX."""

from __future__ import annotations

import re
from fractions import Fraction

_ENVIRONMENT = re.compile(r"\\begin\{([pbvBV]?matrix|array)\}(?:\{[lcr|]*\})?(.*?)\\end\{\1\}", re.S)
_NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d{1,3})?\Z")
_FRACTION = re.compile(r"([-+]?)\\frac\{([-+]?\d+(?:\.\d+)?)\}\{([-+]?\d+(?:\.\d+)?)\}\Z")
_SLASH = re.compile(r"([-+]?\d+)/(\d+)\Z")
_SCIENTIFIC = re.compile(r"([-+]?\d+(?:\.\d+)?)(?:\\times|\*|x)10\^(?:\{([-+]?\d{1,3})\}|(\d))\Z")
_MIXED = re.compile(r"([-+]?)(\d+)\\frac\{(\d+)\}\{(\d+)\}\Z")
_THOUSANDS = re.compile(r"(?<![\d.])\d{1,3}(?:,\d{3})+(?![\d])")
_ASSIGNMENT = re.compile(
    r"(?:[A-Za-z]{1,2}|\\[a-z]+|[A-Za-z]_\{?\w+\}?|[A-Za-z]\([^()=]{1,8}\))(?:=|\\in(?![a-z]))(.+)\Z", re.S
)
_CURRENCY = re.compile(r"\\\$|[$€£¥]|\\(?:pounds|euro)\b")
_SPACING = re.compile(
    r"(?<!\\)\\(?:[,;:!> ]|quad|qquad|hspace\{[^{}]*\}|thinspace|displaystyle|textstyle|limits|nolimits)|~|&nbsp;"
)
_DEGREES = re.compile(r"\^\{?\\?(?:circ|degree)\b\}?|\\degree\b|°|º")
_WRAPPED_UNIT = re.compile(
    r"(?<=[\d.})])\s*\\(?:text|mbox|mathrm|textrm|rm|operatorname)\s*\{([^{}]*)\}(?:\^\{?[23]\}?)?"
)
_WRAPPER = re.compile(
    r"\\(?:text|textbf|textit|textrm|textnormal|mathrm|mathbf|mathit|mathsf|boldsymbol|mbox|operatorname|emph|bm|"
    r"bold|underline)\s*\*?\{((?:[^{}]|\{[^{}]*\})*)\}"
)
_NO_UNIT = re.compile(r"\b(?:and|or|if|for|when|to|pi|i|hundred|thousand|million|billion|trillion|dozen)\b", re.I)
_UNIT_WORDS = (
    r"degrees?|radians?|dollars?|cents?|percent|pounds?|euros?|units?|square|sq|cubic|cu|inches|inch|in|feet|foot|ft|"
    r"yards?|yds?|miles?|mi|mph|meters?|metres?|centimeters?|millimeters?|kilometers?|km|cm|mm|m|kg|kilograms?|grams?|"
    r"g|mg|lbs?|ounces?|oz|liters?|litres?|ml|gallons?|cups?|seconds?|secs?|s|minutes?|mins?|hours?|hrs?|h|days?|"
    r"weeks?|months?|years?|yrs?|people|persons?|students?|children|boys|girls|men|women|ways|times|points?|"
    r"apples|oranges|books?|pages|marbles|cookies|balls|cards|coins|tickets|words|sides|vertices|faces|edges|"
    r"solutions?|integers?|numbers|values|terms|digits?|games|pairs|triangles|subsets|divisors|arrangements|"
    r"committees|paths|outcomes|combinations|permutations|members|toothpicks|blocks|cubes|pieces|per|of|each"
)
_UNITS = re.compile(rf"(?<=[\d.}})])\s*(?:(?:{_UNIT_WORDS})\b\.?\s*(?:\^\{{?[23]\}}?)?[\s/*]*)+\Z", re.I)
_MORE_UNITS = re.compile(r"(?<=[\d.})])\s*[A-Za-z][A-Za-z\s/]*[A-Za-z]\.?\Z")


def strip_math(text: str) -> str:
    r"""Without surrounding ``$``, ``\( \)``, ``\[ \]``, Markdown emphasis and final punctuation."""
    text = text.strip()
    while True:
        before = text
        text = text.strip().strip("*`_" if text.startswith(("*", "`", "_")) else "*`").strip()
        text = re.sub(r"(?<!\\)[.,;:]+\Z", "", text).strip()
        for left, right in (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), (r"{", "}")):
            inside = text[len(left) : len(text) - len(right)]
            if (
                len(text) > len(left) + len(right)
                and text.startswith(left)
                and text.endswith(right)
                and left not in inside
                and right not in inside
                and not inside.endswith("\\")
            ):
                text = inside
                break
        if text == before:
            return text


_SAME = (
    *(("−", "-"), ("–", "-"), ("×", r"\times"), ("π", r"\pi"), ("∞", r"\infty"), ("≤", r"\le"), ("≥", r"\ge")),
    *(("∪", r"\cup"), ("√", r"\sqrt"), ("\\\\%", "%"), (r"\bigcup", r"\cup"), (r"\varnothing", r"\emptyset")),
    *((r"\leqslant", r"\le"), (r"\geqslant", r"\ge"), (r"\leq", r"\le"), (r"\geq", r"\ge"), (r"\neq", r"\ne")),
    *((r"\lbrace", r"\{"), (r"\rbrace", r"\}"), (r"\lvert", "|"), (r"\rvert", "|"), (r"\cdot", r"\times")),
)


def normalise(text: str) -> str:
    """A canonical spelling: two answers with the same one are the same answer. Keeps LaTeX that carries meaning."""
    text = strip_math(text)
    for spelling, ours in _SAME:
        text = text.replace(spelling, ours)
    text = _SPACING.sub(" ", text)
    text = re.sub(r"\\(?:left|right|big|Big|bigg|Bigg|bigl|bigr|Bigl|Bigr)(?![A-Za-z])\s*\.?", "", text)
    text = re.sub(r"\\[dtc]frac(?![A-Za-z])", r"\\frac", text)
    text = _braced_fractions(text)
    text = re.sub(r"\\(?:mid|vert)(?![A-Za-z])", "|", text)
    text = _DEGREES.sub("", text)
    text = re.sub(r"\\?%|\\text\{\s*percent\s*\}|\bpercent\b", "%", text)
    text = re.sub(r"\{,\}", ",", text)
    text = _CURRENCY.sub("", text)
    unit = _WRAPPED_UNIT.search(text)
    if unit and unit.end() == len(text) and not _NO_UNIT.search(unit.group(1)):
        text = text[: unit.start()]
    for _ in range(4):
        unwrapped = _WRAPPER.sub(r"\1", text)
        if unwrapped == text:
            break
        text = unwrapped
    text = _UNITS.sub("", text.strip())
    text = _THOUSANDS.sub(lambda match: match.group().replace(",", ""), text) if not _is_list(text) else text
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r"(?<!\\)[.;:]+\Z", "", text)
    return text


def _is_list(text: str) -> bool:
    # "(1,000)" is never a number, and in "1, 234" the blank says list.
    return any(mark in text for mark in ("(", "[", r"\{"))


def _braced_fractions(text: str) -> str:
    r"""``\frac12`` and ``\frac 1{2}`` to ``\frac{1}{2}``, ``\sqrt2`` to ``\sqrt{2}``."""
    text = re.sub(r"\\frac\s*([0-9a-zA-Z])\s*([0-9a-zA-Z])", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac\s*([0-9a-zA-Z])\s*\{", r"\\frac{\1}{", text)
    text = re.sub(r"\\frac\s*(\{(?:[^{}]|\{[^{}]*\})*\})\s*([0-9a-zA-Z])", r"\\frac\1{\2}", text)
    text = re.sub(r"\\frac\s*\{\s*([^{}]*?)\s*\}\s*\{\s*([^{}]*?)\s*\}", r"\\frac{\1}{\2}", text)
    return re.sub(r"\\sqrt\s*([0-9a-zA-Z])", r"\\sqrt{\1}", text)


def compact(text: str) -> str:
    """For comparing spellings: no blanks, no case in words."""
    text = re.sub(r"\s+", "", text)
    return re.sub(r"([_^])\{(\w)\}", r"\1\2", text).casefold() if len(text) > 1 else text


def right_hand_side(text: str) -> str:
    r"""``5`` of ``x = 5``, and what follows ``x \in``; the text itself when it is no assignment."""
    match = _ASSIGNMENT.match(
        re.sub(r"\s+", " ", text).replace(" = ", "=").replace("= ", "=").replace(" =", "=").replace(r" \in", r"\in")
    )
    return match.group(1).strip() if match and "=" not in match.group(1) else text


def as_number(text: str) -> Fraction | None:
    """The exact value of a plain integer, decimal, fraction or mixed number; None for anything else."""
    text = re.sub(r"\s+", "", text).removesuffix("%")
    if len(text) > 400:
        return None
    text = _THOUSANDS.sub(lambda match: match.group().replace(",", ""), text)
    if text.startswith("(") and text.endswith(")") and text.count("(") == 1:
        text = text[1:-1]
    if _NUMBER.match(text):
        return Fraction(text)
    if match := _SLASH.match(text):
        return Fraction(int(match[1]), int(match[2])) if int(match[2]) else None
    if match := _SCIENTIFIC.match(text):
        return Fraction(match[1]) * Fraction(10) ** int(match[2] or match[3])
    if match := _FRACTION.match(text):
        bottom = Fraction(match[3])
        return (-1 if match[1] == "-" else 1) * Fraction(match[2]) / bottom if bottom else None
    if (match := _MIXED.match(text)) and int(match[4]):
        value = int(match[2]) + Fraction(int(match[3]), int(match[4]))
        return -value if match[1] == "-" else value
    return None


def is_calculation(text: str) -> bool:
    r"""Whether there is no letter in it but those of commands: ``3 + 4``, ``\\log_4(8)``."""
    return not re.search(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", text))


def split_top_level(text: str, separator: str = ",") -> list[str]:
    """Split at separators outside every bracket and matrix."""
    parts, depth, start, position = [], 0, 0, 0
    while position < len(text):
        character = text[position]
        if character == "\\":
            if text.startswith((r"\begin", r"\{"), position):
                depth += 1
            elif text.startswith((r"\end", r"\}"), position):
                depth -= 1
            position += 2
            continue
        depth += (character in "([{") - (character in ")]}")
        if character == separator and depth <= 0:
            parts.append(text[start:position])
            start = position + 1
        position += 1
    parts.append(text[start:])
    return [part.strip() for part in parts]


def matrix_rows(text: str) -> list[list[str]] | None:
    """The cells of a text that is one matrix; None otherwise."""
    match = _ENVIRONMENT.fullmatch(text.strip())
    if match is None:
        return None
    body = re.sub(r"\\hline", "", match.group(2)).strip().removesuffix("\\\\")
    return [[cell.strip() for cell in row.split("&")] for row in re.split(r"\\\\(?:\[[^\]]*\])?", body)]
