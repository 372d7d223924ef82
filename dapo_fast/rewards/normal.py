"""One plain spelling for the many ways of writing a short answer in LaTeX, and the numbers that need no algebra."""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

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
_NUMBER_WORDS = (
    r"(?:hundred|thousand|[mb]illion|trillion|third|(?:four|fif|six|seven|eigh|nin|ten|hundred|thousand)th)s?|"
    r"dozen|half|halves|quarter|double|twice|(?<![a-z]\s)(?:squared|cubed)"
)
_NO_UNIT = re.compile(
    rf"\b(?:{_NUMBER_WORDS}|and|or|if|for|when|where|to|pi|sin|cos|tan|cot|sec(?=\s+\S)|csc|log|exp|sqrt|mod|choose|factorial|"
    r"alpha|beta|gamma|delta|theta|lambda|sigma|phi|omega|(?:st|nd|rd|th)|of(?=\s+[\d$])|"
    r"plus|minus|times?(?=\s+\S)(?!\s+as\b)|over|below|under|above|negative|not|abc|less|than|least|most|between|with|except|(?:more|fewer|greater|smaller|larger)(?=\s+than)|[ieknxyz])\b",
    re.I,
)
_WORD = (
    r"(?:(?=[a-z]{0,19}[aeiouy])[a-z]{3,20}|as|in|ft|yds?|mi|mph|[ckm]m|[km]g|lbs?|oz|ml|hrs?|sq|cu|of|[ap]m|[mgshl])"
)
_UNITS = re.compile(
    rf"(?<=[\d.}}%)])(?:\s+|-|/(?=day|[a-z]{{4}}))(?:{_WORD}\b\.?\s*(?:\^\{{?-?[1-4]\}}?)?(?:(?:[\s/*]|\\cdot)+|\Z))+\Z",
    re.I,
)
_GLUED = (
    r"cm|mm|km|kg|mg|lbs?|ft|mph|ml|(?<=:\d\d)[ap]m|"
    r"\s?(?![和或到至百万亿十半成折以多余]|分之|千(?![米克瓦卡]))[\u4e00-\u9fff]{1,4}(?:/[\u4e00-\u9fff]{1,3})?(?![\u4e00-\u9fff])"
)
_GLUED_UNIT = re.compile(rf"(?<=[\d}}])(?:{_GLUED})(?:\^\{{?[23]\}}?)?\Z")
# Capitals stand for letters too, so a blank sets them apart, and a plain number stands before it.
_OF_MEASURE = r"(?:[kMGmcn]?(?:Hz|eV|Pa|Wh|mol|[WJNVAKgms])|\\Omega|Ω|AU)(?:\^\{?-?\d\}?)?"
_SYMBOL_UNIT = re.compile(rf"(?<=[\d.}}])\s+{_OF_MEASURE}(?:(?:\s|\\cdot|/)+{_OF_MEASURE})*\Z")
_POWERS = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12, "百": 2, "千": 3, "万": 4, "亿": 8}
_SAID = re.compile(rf"(?<![\w.,^/])(-?\d+(?:\.\d+)?)\s*({'|'.join(_POWERS)})(?![a-z]|[米克瓦卡])")
_TEXT_UNIT = re.compile(
    r"(?:(?<=[\d.})%])|(?<=\\pi)|(?<=\\pi ))\s*"
    r"\\(?:text|mbox|mathrm|textrm|rm|operatorname)\s*\{([^{}]*)\}(?:\^\{?-?\d\}?)?"
)
_WORDS = [
    (
        re.compile(r"(?i)(?:there (?:is|are) )?no (?:real )?(?:solutions?|roots?)|none|(?:the )?empty set"),
        r"\emptyset ",
    ),
    (re.compile(r"(?i)does not exist"), "DNE"),
]
_LEAD = re.compile(r"\A(?:(?:so|the|there|are|is|it|we|get|answer|final|total|exactly|:)\s+)+(?=[-\d\\.])", re.I)
_NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)\Z")
_FRACTION = re.compile(r"([-+]?)\\frac\{([-+]?\d*\.?\d+)\}\{([-+]?\d*\.?\d+)\}\Z|([-+]?)(\d*\.?\d+\.?)/(\d*\.?\d+)\Z")
_POWER = re.compile(r"([-+]?)(?:(\d*\.?\d+)\\cdot)?10\^(?:\{([-+]?\d{1,3})\}|(\d))\Z")
_MIXED = re.compile(r"([-+]?)\((\d+)\+\\frac\{(\d+)\}\{(\d+)\}\)\Z")
_THOUSANDS = re.compile(r"(?<![\d.])\d{1,3}(?:,\d{3})+(?!\d)")


_QUOTES = (('"', '"'), ("'", "'"), ("“", "”"), ("‘", "’"), ("__", "__"))


def strip_math(text: str) -> str:
    r"""Without surrounding ``$``, ``\( \)``, ``\[ \]``, Markdown emphasis and final punctuation."""
    text = text.strip()
    while True:
        before = text
        text = text.strip().strip("*`_" if text.startswith(("*", "`", "_")) else "*`").strip()
        text = _without_stop(text)
        for left, right in (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("{", "}"), *_QUOTES):
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


def normalise(text: str) -> str:
    """A canonical spelling: two answers with the same one are the same answer. Keeps LaTeX that carries meaning."""
    text = re.sub(r"(?<!\$)\$\s*\n\s*\$(?!\$)", ", ", strip_math(text))
    for pattern, ours in _SPELLINGS:
        text = pattern.sub(ours, text)
    text = _numbers(_arguments(text))
    unit = _TEXT_UNIT.search(text)
    if unit and unit.end() == len(text) and not _NO_UNIT.search(re.sub(r"\b[kxyA-Z]\b", "", unit.group(1))):
        text = text[: unit.start()]
    text = re.sub(rf"(\\[A-Za-z]+)(?={_WRAPPER.pattern})", r"\1 ", text)  # \cdot\text{s} is no \cdots
    for _ in range(4):
        unwrapped = _WRAPPER.sub(lambda match: match.group(1)[1:-1], text)
        unwrapped = unwrapped[1:-1] if re.fullmatch(_BRACES, unwrapped) else unwrapped
        if unwrapped == text:
            break
        text = unwrapped
    text = _LEAD.sub("", re.sub(r"\s+", " ", text).strip())
    text = re.sub(rf"\b((?:{MONTH})\.?\s\d{{1,2}})(?:st|nd|rd|th)\b", r"\1", text)
    text = _SAID.sub(lambda match: rf"{match[1]}\cdot10^{{{_POWERS[match[2]]}}}", text)
    symbol = _SYMBOL_UNIT.search(text)
    units = symbol or _UNITS.search(text) or _GLUED_UNIT.search(text)
    if units and (symbol or not _NO_UNIT.search(units.group())):
        # A single letter is a unit of a plain number, else a factor: "5 m", but "\\pi r^2 h".
        bare, letter = text[: units.start()], symbol or len(units.group().strip()) == 1
        text = bare if not letter or is_calculation(bare.rpartition("=")[2]) else text
    if not any(mark in text for mark in ("(", "[", r"\{")):  # "(1,000)" is never a number, and "1, 234" is a list
        text = _THOUSANDS.sub(lambda match: match.group().replace(",", ""), text)
    text = _without_stop(text)
    return next((ours for pattern, ours in _WORDS if pattern.fullmatch(text)), text)


def is_unit(text: str) -> bool:
    """Whether what follows a number in a sentence is plain words that only say what is counted."""
    if re.match(rf"\s+{_OF_MEASURE}[\s.]*\Z", text):
        return True
    word = re.match(rf"(?:\s+(?:an?\s+)?|-)({_WORD})\b|(?:{_GLUED})\b", text, re.I)
    return word is not None and not _NO_UNIT.match(text.lstrip(" -"))


def _without_stop(text: str) -> str:
    if re.search(rf"\d\.\d+{_DOTS}\Z", text):
        return text
    return text.rstrip(" .,;:。．\\").strip()


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


_DOTS = r"(?:\\[lcd]?dots|\.\.\.|…)(?![A-Za-z])"
# 0.1\overline{6}, 0.(6), 0.66..., 0.1666...: whole, fixed and repeated digits.
_REPEATING = [
    re.compile(rf"(?<![\d.])(\d{{0,9}})\.{digits}")
    for digits in (
        r"(\d{0,9})\\(?:overline|bar|dot)\s*\{?(\d{1,9})\}?",
        r"()\((\d{1,9})\)",
        rf"()(\d{{1,9}}?)\3+\s*{_DOTS}",
        rf"(\d{{0,9}}?)(\d{{1,9}}?)\3\3+\s*{_DOTS}",
    )
]


def _numbers(text: str) -> str:
    r"""``1e-6`` to ``1\cdot10^{-6}``, mixed numbers to ``(2+\frac{1}{4})``, ``10 000`` to ``10000``."""
    text = re.sub(r"(?<![A-Za-z\d.])(\d+(?:\.\d*)?|\.\d+)[eE]([-+]?)0*(\d{1,3})(?![\d.A-Za-z])", _scientific, text)
    for repeating in _REPEATING:
        text = repeating.sub(_repeating, text)
    text = re.sub(rf"(\d\.\d+)\s*{_DOTS}\Z", r"\1", text)
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


def compact(text: str) -> str:
    """For comparing spellings: no blanks but those between digits, no braces around a single sign."""
    text = re.sub(r"(?<=[\d.])\s+(?=[\d.])", "␣", text)
    return re.sub(r"([_^])\{(\w)\}", r"\1\2", re.sub(r"\s+", "", text))


def as_number(text: str) -> Fraction | None:
    """The exact value of a plain integer, decimal, fraction, mixed number or power of ten; None for anything else."""
    if len(text) > 400 or re.search(r"[\d.]\s+[\d.]|,\s", text.strip()):  # several numbers
        return None
    text = compact(text).removesuffix("%")
    text = _THOUSANDS.sub(lambda match: match.group().replace(",", ""), text)
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


_SYMBOL = (
    r"(?:alpha|beta|gamma|delta|zeta|eta|iota|kappa|lambda|mu|nu|xi|rho|sigma|tau|chi|psi|omega|hbar|ell|nabla|partial|"
    r"(?:var)?(?:epsilon|theta|phi)|vec|hat|bar|d?dot)(?![A-Za-z])"
)


def is_calculation(text: str) -> bool:
    r"""Whether there is no letter in it but i and those of commands: ``3 + 4``, ``\\log_4(8)``, ``i^6``."""
    return not re.search(r"[A-Za-z]", re.sub(rf"\\(?!{_SYMBOL})[a-z]+|(?<![A-Za-z\\])i(?![A-Za-z])", "", text))
