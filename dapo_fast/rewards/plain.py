"""Answers that need no algebra and have no elements: exact numbers, letters of choices, numbers in a base, words."""

from __future__ import annotations

import re
from fractions import Fraction

from dapo_fast.rewards.parts import BETWEEN, compact, split_top_level

_CHOICE = re.compile(
    r"(?:(?i:option|choice)\s+)?\(?([A-Za-z])(?:\)?\Z|[.:)](?!\s*(?:or\b|and\b|[,;&/+]|\(?[A-H]\b)).*\Z)", re.S
)
_CHOICES = re.compile(r"(?:(?:\s|,|;|and|&)*\(?[A-H]\)?){2,9}")
_BASE = re.compile(r"\(?(-?[0-9A-Fa-f.]+)\)?_\{?(\d+)\}?\Z")
_WORDS = re.compile(r"[A-Za-z][A-Za-z\s.,'’-]+\Z")
_NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)\Z")
_FRACTION = re.compile(r"([-+]?)\\frac\{([-+]?\d*\.?\d+)\}\{([-+]?\d*\.?\d+)\}\Z|([-+]?)(\d*\.?\d+\.?)/(\d*\.?\d+)\Z")
_POWER = re.compile(r"([-+]?)(?:(\d*\.?\d+)\\cdot)?10\^(?:\{([-+]?\d{1,3})\}|(\d))\Z")
_MIXED = re.compile(r"([-+]?)\((\d+)\+\\frac\{(\d+)\}\{(\d+)\}\)\Z")
THOUSANDS = re.compile(r"(?<![\d.])\d{1,3}(?:,\d{3})+(?!\d)")
_SYMBOL = (
    r"(?:alpha|beta|gamma|delta|zeta|eta|iota|kappa|lambda|mu|nu|xi|rho|sigma|tau|chi|psi|omega|hbar|ell|nabla|partial|"
    r"(?:var)?(?:epsilon|theta|phi)|vec|hat|bar|d?dot)(?![A-Za-z])"
)


def same_plain(left: str, right: str, reference: str) -> bool | None:
    """Whether two normalised texts are the same; None where they are nothing plain. ``reference``: as ``right`` was."""
    numbers = as_number(left), as_number(right)
    if numbers[0] is not None and numbers[1] is not None:
        return _same_number(numbers[0], numbers[1], left, right)
    if _CHOICES.fullmatch(left) and _CHOICES.fullmatch(right) and left.isalpha() != right.isalpha():
        return sorted(re.findall("[A-H]", left)) == sorted(re.findall("[A-H]", right))
    base = _same_base(left, right)
    if base is None and _is_words(reference, right):
        return _same_words(left, right)
    return base


def _same_number(left: Fraction, right: Fraction, left_text: str, right_text: str) -> bool:
    pairs = [(left, right)]
    if ("%" in left_text) != ("%" in right_text):
        bare, share = (right, left / 100) if "%" in left_text else (left, right / 100)
        if bare.denominator > 1 or abs(bare) <= 1:  # 150% is 1.5, but no one writes 1000% for ten
            pairs.append((bare, share))
    tolerance = tolerance_between(left_text, right_text)
    return any(
        a == b or (a.denominator > 1 < b.denominator and abs(a - b) <= tolerance * max(abs(a), abs(b)))
        for a, b in pairs
    )


def _same_base(left: str, right: str) -> bool | None:
    """Numbers written in a base: the subscript may be left out, and may not differ. None if ``right`` has none."""
    wanted = _BASE.match(right.replace(" ", ""))
    if wanted is None:
        return None
    found = _BASE.match(left.replace(" ", ""))
    if found:
        return [part.casefold() for part in found.groups()] == [part.casefold() for part in wanted.groups()]
    return left.replace(" ", "").casefold() == wanted.group(1).casefold()


def _is_words(reference: str, right: str) -> bool:
    if re.fullmatch(r"\\(?:text|mathrm|textbf|mbox)\{[^{}]*\}", reference):
        return True
    if re.fullmatch(r"\(?[A-H]\)?|(?i:no)", right):
        return True
    return bool(_WORDS.match(right)) and len(re.sub(r"[^A-Za-z]", "", right)) > 2


def _same_words(left: str, right: str) -> bool:
    choice = re.fullmatch(r"\(?([A-Z])\)?", right)
    if choice:
        found = _CHOICE.match(left)
        return found is not None and found.group(1).upper() == choice.group(1)

    def letters(text: str) -> str:
        text = re.sub(r"\\(?:text|mathrm|textbf|mbox)|[{}$\\]", "", text).casefold()
        text = re.sub(r"\b(?:the|an?)\s+(?=\w)", " ", text)
        return re.sub(r"[\s.,'’\"-]+", "", text)

    if letters(left) == letters(right) != "":
        return True
    # "Saturday and Sunday": order is free between items.
    lists = [
        sorted(letters(part) for part in split_top_level(text, BETWEEN) if letters(part)) for text in (left, right)
    ]
    return len(lists[1]) > 1 and lists[0] == lists[1]


def as_number(text: str) -> Fraction | None:
    """The exact value of a plain integer, decimal, fraction, mixed number or power of ten; None for anything else."""
    if len(text) > 400 or re.search(r"[\d.]\s+[\d.]|,\s", text.strip()):  # several numbers
        return None
    text = compact(text).removesuffix("%")
    text = THOUSANDS.sub(lambda match: match.group().replace(",", ""), text)
    if match := _MIXED.match(text):
        value = int(match[2]) + Fraction(int(match[3]), int(match[4]))
        return -value if match[1] == "-" else value
    if text.startswith("(") and text.endswith(")") and text.count("(") == 1:
        text = text[1:-1]
    if _NUMBER.match(text):
        return Fraction(text.removesuffix("."))
    if match := _POWER.match(text):
        value = Fraction(match[2] or 1) * Fraction(10) ** int(match[3] or match[4])
        return -value if match[1] == "-" else value
    if match := _FRACTION.match(text):
        top, bottom = Fraction((match[2] or match[5]).removesuffix(".")), Fraction(match[3] or match[6])
        return (-1 if "-" in (match[1], match[4]) else 1) * top / bottom if bottom else None
    return None


def tolerance_between(left: str, right: str) -> Fraction:
    """Relative: 1e-4, as in Qwen2.5-Math's grader, where a decimal meets what is none or has other places; else 0."""
    places = [sorted(map(len, re.findall(r"\.(\d*)", text))) for text in (left, right)]
    return Fraction(places[0] != places[1], 10_000)


def is_calculation(text: str) -> bool:
    r"""Whether there is no letter in it but i and those of commands: ``3 + 4``, ``\\log_4(8)``, ``i^6``."""
    return not re.search(r"[A-Za-z]", re.sub(rf"\\(?!{_SYMBOL})[a-z]+|(?<![A-Za-z\\])i(?![A-Za-z])", "", text))


def total(calculation: str) -> Fraction | None:
    """Of a sum of products, such as ``5 + 7``; None if it is anything else."""
    total = Fraction()
    for sign, product in re.findall(r"(\A|[-+])([^-+]+)", calculation.replace("×", "*").replace(" ", "")):
        value = Fraction(-1 if sign == "-" else 1)
        for mark, factor in re.findall(r"(\A|[*/])([^*/]+)", product):
            number = as_number(factor)
            if number is None or (mark == "/" and not number):
                return None
            value = value / number if mark == "/" else value * number
        total += value
    return total
