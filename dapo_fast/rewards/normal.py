"""One plain spelling for the many ways of writing a short answer in LaTeX."""

from __future__ import annotations

import re
import unicodedata

from dapo_fast.rewards.parts import DOTS, strip_math, without_stop
from dapo_fast.rewards.plain import THOUSANDS
from dapo_fast.rewards.units import without_text_unit, without_unit

_BRACES = r"\{(?:[^{}]|\{[^{}]*\})*\}"
_WRAPPER = re.compile(
    r"\\(?:text|textbf|textit|textrm|textnormal|mathrm|mathbf|mathit|mathsf|boldsymbol|mbox|operatorname|emph|bm|"
    rf"bold|underline)\s*\*?({_BRACES})"
)


def _plain(match: re.Match) -> str:
    """Full width, raised and lowered characters as those they stand for."""
    return unicodedata.normalize("NFKC", match[0])


_DEGREES = (
    r"\^\s*\{?\s*\\?(?:circ|degree)(?![A-Za-z])\s*\}?|\\(?:degree|circ)(?![A-Za-z])|°|º|"
    r"(?<=\d)\s*\^\s*\{?\s*(?:\\(?:text|mathrm)\s*\{\s*o\s*\}|o(?![A-Za-z]))\s*\}?"
)
_BASES = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "twelve": 12}
# Spellings, in order. Sizes and spaces that only typesetting needs, signs with several names, numbers said in words.
_SPELLINGS = [
    (re.compile(pattern), ours)
    for pattern, ours in (
        (r"[¼-¾⅐-⅞]", lambda match: r"\frac{{{}}}{{{}}}".format(*_plain(match).split("⁄"))),
        (r"[²³¹⁰⁴-⁹⁻ⁿ]+", lambda match: f"^{{{_plain(match)}}}"),
        (r"[₀-₉]+", lambda match: f"_{{{_plain(match)}}}"),
        (r"[！-～]", _plain),
        (r"\\(?:text)?color\s*\{[^{}]*\}|\\[hv]?phantom\s*\{[^{}]*\}|\\(?:[lL]arge|LARGE|[hH]uge|small|tiny|bf)(?![A-Za-z])",
         ""),
        (r"\A\s*(?:\\approx(?![A-Za-z])|≈)", ""),
        (r"、", ","), (r"或", " or "), (r"(?<=\d)\s*和\s*(?=-?[\d.]+\s*\Z)", " and "),
        (r"(?<=\d)\s*\{\s*([a-z]{2,20})\s*\}\s*\Z", r" \1"),
        (r"¢", " cents"),
        (rf"_\s*\{{\s*\\(?:text|mathrm)\s*\{{\s*({'|'.join(_BASES)})\s*\}}\s*\}}",
         lambda match: f"_{{{_BASES[match[1]]}}}"),
        (r"\\log\s*_\s*\{?\s*e\s*\}?(?![A-Za-z])", r"\\ln "),
        (r"(?<![A-Za-z\\])(sin|cos|tan|cot|csc|ln|log)(?=\s*[\^(]|\s+\\|\s+\d*[a-z](?![A-Za-z]))", r"\\\1"),
        (r"\^\s*(-\d+)", r"^{\1}"), (r"\\(sin|cos|tan)\s*\^\s*\{-1\}", r"\\arc\1 "),
        (r"\A\s*(\d+)\s*(?:\\text\s*\{\s*to\s*\}|\bto\b)\s*(\d+)\s*\Z", r"\1:\2"),
        (r"(?<=\d)(\s*(?:\\(?:text|mathrm)\s*\{\s*)?)([AaPp])\.?\s?[Mm](?![A-Za-z])\.?",
         lambda match: f"{match[1]}{match[2].lower()}m"),
        (r"\\dot\s*\{?(\d)\}?(\d*)\\dot\s*\{?(\d)\}?", r"\\overline{\1\2\3}"),
        (r"[−–‐]", "-"),
        # Of vectors it is another product than the dot.
        (r"(\\nabla)\s*(?:×|\\times(?![A-Za-z]))|([A-Za-z}])\s*(?:×|\\times)(?=\s*\\(?:vec|hat|math|bold|bm|overr))",
         r"\1\2\\cross "),
        (r"×|\\times(?![A-Za-z])", r"\\cdot "),
        (r"π", r"\\pi "),
        (r"∞|\\inf(?![A-Za-z])|(?<![A-Za-z\\])(?:infinity|inf|oo)(?![A-Za-z])", r"\\infty "),
        (r"[≤≦]|<=|\\leq(?:slant|q)?(?![A-Za-z])", r"\\le "),
        (r"[≥≧]|>=|\\geq(?:slant|q)?(?![A-Za-z])", r"\\ge "),
        (r"≠|(?<=\s)!=|\\neq(?![A-Za-z])", r"\\ne "),
        (r"\\colon(?![A-Za-z])|∶", ":"), (r"\\lt(?![A-Za-z])", "<"), (r"\\gt(?![A-Za-z])", ">"),
        (r"≡", r"\\equiv "),
        (r"≈|~=|\\(?:approxeq|simeq|doteq)(?![A-Za-z])", r"\\approx "),
        (r"∪|\\bigcup(?![A-Za-z])|(?<=[)\]])\s*U\s*(?=[(\[])", r"\\cup "),
        (r"∈", r"\\in "),
        (r"√|(?<![A-Za-z\\])sqrt(?![A-Za-z])", r"\\sqrt "),
        (r"\\langle(?![A-Za-z])|⟨|\\left\s*<", "("),
        (r"\\rangle(?![A-Za-z])|⟩|\\right\s*>", ")"),
        (r"(?:\\begin\{cases\}|(?:\\left\s*)?\\\{\s*\\begin\{array\}\{[lcr]+\})([^&]*?)\\end\{(?:cases|array)\}"
         r"(?:\s*\\right\s*\.)?",
         lambda match: match[1].strip().removesuffix("\\\\").replace("\\\\", ",")),
        (r"\s*\(\s*([a-z]\s*\\in\s*\\mathbb\s*\{?[A-Z]\}?)\s*\)\s*\Z", r", \1"),
        (r"\\lbrace(?![A-Za-z])", r"\\{"), (r"\\rbrace(?![A-Za-z])", r"\\}"),
        (r"\\[lr]vert(?![A-Za-z])|\\mid(?![A-Za-z])|\\vert(?![A-Za-z])", "|"),
        (r"\\(?:varnothing|oslash)(?![A-Za-z])|∅|\\\{\s*\\\}", r"\\emptyset "),
        (r"\\(?:left|right|middle|[bB]igg?[lr]?)(?![A-Za-z])\s*\.?", ""),
        # ]1,2[ is open.
        (r"([\[\]])([^\[\],]+,[^\[\],]+)([\[\]])", lambda m: "[("[m[1] == "]"] + m[2] + "])"[m[3] == "["]),
        (r"\\[dtc](frac|binom)(?![A-Za-z])", r"\\\1"),
        (r"(?:\{|\A)([^{}]*?)\\(choose|over)(?![A-Za-z])([^{}]*?)(?:\}|\Z)",
         lambda match: rf"\{'binom' if match[2] == 'choose' else 'frac'}{{{match[1].strip()}}}{{{match[3].strip()}}}"),
        (r"\\overrightarrow(?![A-Za-z])|\\hat(?=\s*\{?\s*(?:\\(?:math\w\w|bm|boldsymbol)\s*\{?\s*)?[ijk](?![A-Za-z]))",
         r"\\vec"),
        # A point's name: P(2,3).
        (r"((?:\A|,|\band\b)\s*)([A-Z])\s*(\([^()=,]{1,99}(?:,[^()=,]{1,99}){1,9}\))(?=\s*(?:\Z|,|and\b))", r"\1\2=\3"),
        (r"\\(?:text|mathrm)\s*\{\s*mod\s*\}|\\[pb]?mod(?![A-Za-z])|(?<![A-Za-z\\])mod(?![A-Za-z])", r"\\mod "),
        (r"\(\s*\\mod\s*([^()]*)\)|\\mod\s*\{([^{}]*)\}", r"\\mod \1\2"),
        (r"\\frac\{\\(?:text|mathrm)\{([^{}]*)\}\}\{\\(?:text|mathrm)\{([^{}]*)\}(\^\d)?\}", r"\\text{ \1/\2}\3"),
        (r"\\(?:lor|vee)(?![A-Za-z])\s*(?=[^\\]{1,9}(?:[=<>]|\\[lgn]e(?![A-Za-z])))", "or "),
        (r"([\d})])\s*(?:\\q?quad(?![A-Za-z])\s*)+(?=[A-Za-z](?:_\w)?\s*=)", r"\1, "),
        (rf"(\\(?:sin|cos|tan|cot|sec|csc)(?:\s*\^\s*\{{?\d\}}?)?)\s*[({{]?\s*(-?\d+(?:\.\d+)?)\s*(?:{_DEGREES})\s*[)}}]?",
         r"\1(\\frac{\2\\pi}{180})"),
        (rf"(?:{_DEGREES})\s*[CF](?![A-Za-z])|{_DEGREES}", ""),
        (r"\^\s*\{(?:\s*\\prime(?![A-Za-z]))+\s*\}|\^\s*\\prime(?![A-Za-z])", lambda m: "'" * m[0].count("\\prime")),
        (r"’|′", "'"),
        (r"\\?%|\\text\{\s*percent\s*\}|\bpercent\b", "%"),
        (r"\\\$|[$€£¥₹]|\\(?:textdollar|pounds|euro)(?![A-Za-z])|\A\s*(?:USD|EUR|GBP|RMB|INR|Rs\.?)\s*(?=\d)", ""),
        # Thousands: 10{,}000 and 11,\!111, 10\,000; a wider blank between digits says that they are two numbers.
        (r"\{([,:])\}", r"\1"), (r"(?<=illion)\s+dollars?\b", ""),
        (r"(?<=\d),\\!\s*(?=\d{3})", ","),
        (r"(?<=\d)\s*\\[,!]\s*(?=\d{3}(?!\d))", ""),
        (r"(?<!\\)\\(?:[,;:!> ]|(?:quad|qquad|thinspace|displaystyle|textstyle|limits|nolimits)(?![A-Za-z])"
         r"|hspace\{[^{}]*\})|~|&nbsp;|\n", " "),
    )
]  # fmt: skip
MONTH = (
    "January|February|March|April|May|June|July|August|September|October|November|December|"
    "Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec"
)
_POWERS = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12, "百": 2, "千": 3, "万": 4, "亿": 8}
_SAID = re.compile(rf"(?<![\w.,^/])(-?\d+(?:\.\d+)?)\s*({'|'.join(_POWERS)})(?![a-z]|[米克瓦卡])")
_WORDS = [
    (
        re.compile(r"(?i)(?:there (?:is|are) )?no (?:real )?(?:solutions?|roots?)|none|(?:the )?empty set"),
        r"\emptyset ",
    ),
    (re.compile(r"(?i)does not exist"), "DNE"),
]
_LEAD = re.compile(r"\A(?:(?:so|the|there|are|is|it|we|get|answer|final|total|exactly|:)\s+)+(?=[-\d\\.])", re.I)


def normalise(text: str) -> str:
    """A canonical spelling: two answers with the same one are the same answer. Keeps LaTeX that carries meaning."""
    text = re.sub(r"(?<!\$)\$\s*\n\s*\$(?!\$)", ", ", strip_math(text))
    for pattern, ours in _SPELLINGS:
        text = pattern.sub(ours, text)
    text = without_text_unit(_numbers(_arguments(text)))
    text = re.sub(rf"(\\[A-Za-z]+)(?={_WRAPPER.pattern})", r"\1 ", text)  # \cdot\text{s} is no \cdots
    for _ in range(4):
        unwrapped = _WRAPPER.sub(lambda match: match.group(1)[1:-1], text)
        unwrapped = unwrapped[1:-1] if re.fullmatch(_BRACES, unwrapped) else unwrapped
        if unwrapped == text:
            break
        text = unwrapped
    text = _LEAD.sub("", re.sub(r"\s+", " ", text).strip())
    text = re.sub(rf"\b((?:{MONTH})\.?\s\d{{1,2}})(?:st|nd|rd|th)\b", r"\1", text)
    text = without_unit(_SAID.sub(lambda match: rf"{match[1]}\cdot10^{{{_POWERS[match[2]]}}}", text))
    if not any(mark in text for mark in ("(", "[", r"\{")):  # "(1,000)" is never a number, and "1, 234" is a list
        text = THOUSANDS.sub(lambda match: match.group().replace(",", ""), text)
    text = without_stop(text)
    return next((ours for pattern, ours in _WORDS if pattern.fullmatch(text)), text)


def _arguments(text: str) -> str:
    r"""``\frac12`` and ``\frac 1{2}`` to ``\frac{1}{2}``, ``\sqrt2`` and ``\sqrt(2)`` to ``\sqrt{2}``."""
    text = re.sub(r"\\frac\s*\\pi(?![A-Za-z])", r"\\frac{\\pi}", text)
    text = re.sub(r"\\(frac|binom)\s*([0-9a-zA-Z])\s*([0-9a-zA-Z])", r"\\\1{\2}{\3}", text)
    text = re.sub(r"\\(frac|binom)\s*([0-9a-zA-Z])\s*\{", r"\\\1{\2}{", text)
    text = re.sub(rf"\\(frac|binom)\s*({_BRACES})\s*([0-9a-zA-Z])", r"\\\1\2{\3}", text)
    text = re.sub(r"\\frac\s*\{\s*([^{}]*?)\s*\}\s*\{\s*([^{}]*?)\s*\}", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\log\s*_\s*(\d)(?![\d.])", r"\\log_{\1}", text)
    text = re.sub(r"\\(vec|hat|bar|d?dot|math(?:bf|rm|it)|bm|bold(?:symbol)?)\s+([A-Za-z])", r"\\\1{\2}", text)
    text = re.sub(r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}", text)
    return re.sub(r"\\sqrt\s*([0-9a-zA-Z])", r"\\sqrt{\1}", text)


# 0.1\overline{6}, 0.(6), 0.66..., 0.1666...: whole, fixed and repeated digits.
_REPEATING = [
    re.compile(rf"(?<![\d.])(\d{{0,9}})\.{digits}")
    for digits in (
        r"(\d{0,9})\\(?:overline|bar|dot)\s*\{?(\d{1,9})\}?",
        r"()\((\d{1,9})\)",
        rf"()(\d{{1,9}}?)\3+\s*{DOTS}",
        rf"(\d{{0,9}}?)(\d{{1,9}}?)\3\3+\s*{DOTS}",
    )
]


def _numbers(text: str) -> str:
    r"""``1e-6`` to ``1\cdot10^{-6}``, mixed numbers to ``(2+\frac{1}{4})``, ``10 000`` to ``10000``."""
    text = re.sub(r"(?<![A-Za-z\d.])(\d+(?:\.\d*)?|\.\d+)[eE]([-+]?)0*(\d{1,3})(?![\d.A-Za-z])", _scientific, text)
    for repeating in _REPEATING:
        text = repeating.sub(_repeating, text)
    text = re.sub(rf"(\d\.\d+)\s*{DOTS}\Z", r"\1", text)
    text = re.sub(r"(\d)\s*(?:\*|x)\s*10\s*\^", r"\1\\cdot 10^", text)
    text = re.sub(r"(?<![\d.^_/])(\d+)\s*\\frac\{(\d+)\}\{(\d+)\}", _mixed, text)
    text = re.sub(r"(?<![\d.^_/])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\d.])", _mixed, text)
    return text.replace(" ", "") if re.fullmatch(r"\s*-?\d{1,3}(?: \d{3})+(?:\.\d+)?\s*", text) else text


def _scientific(match: re.Match) -> str:
    return rf"{match[1]}\cdot10^{{{match[2].replace('+', '')}{match[3]}}}"


def _repeating(match: re.Match) -> str:
    whole, fixed, period = match.groups()
    bottom = 10 ** len(fixed) * (10 ** len(period) - 1)
    return rf"\frac{{{int(whole + fixed + period) - int(whole + fixed or 0)}}}{{{bottom}}}"


def _mixed(match: re.Match) -> str:
    whole, top, bottom = match.groups()
    proper = len(top) < 20 and len(bottom) < 20 and 0 < int(top) < int(bottom)
    return rf"({whole}+\frac{{{top}}}{{{bottom}}})" if proper else match.group()
