"""Units, and words for what is counted: an answer may leave them out, but must not change them."""

from __future__ import annotations

import re

from dapo_fast.rewards.plain import is_calculation

_NAMES = {
    name: names.split()[0]
    for names in (
        "mm millimeter millimetre",
        "cm centimeter centimetre",
        "m meter metre",
        "km kilometer kilometre",
        "in inch inche",
        "ft foot feet",
        "yd yds yard",
        "mi mile",
        "g gram",
        "kg kilogram",
        "oz ounce",
        "lb lbs pound",
        "ml milliliter millilitre",
        "L l liter litre",
        "s sec second",
        "min minute",
        "h hr hrs hour",
        "day",
        "week",
        "month",
        "year",
        "cent",
        "dollar",
        "degree",
        "radian rad",
        "unit",
        "pair",
        "dm",
        "yuan",
        "jiao",
        "am",
        "pm",
        "celsius",
        "fahrenheit",
        "oclock",
        "ohm",
        *("N", "J", "W", "V", "A", "K", "pa", "hz", "khz", "mhz", "kw", "kj", "kpa", "ev", "kev", "mev", "ma"),
    )
    for name in names.split()
}
_KNOWN = set(_NAMES.values())
_SIGNS = {
    **{r"\Omega": "ohm", "Ω": "ohm", "mph": "mi/h", "kph": "km/h"},
    **{"平方": "sq ", "立方": "cu ", "毫米": "mm", "厘米": "cm", "分米": "dm", "千米": "km", "公里": "km", "米": "m"},
    **{"千克": "kg", "公斤": "kg", "克": "g", "元": "yuan", "角": "jiao", "小时": "h", "分钟": "min", "秒": "s"},
    **{"天": "day", "周": "week", "月": "month", "年": "year", "点": "oclock", "分": "min", "时": "h"},
}
_DEGREE = r"(?:\^\s*\{?\s*\\?circ\s*\}?|°)\s*(?:\\(?:text|mathrm)\s*\{\s*)?"
_SPELT = re.compile("|".join([rf"{_DEGREE}(?P<scale>[CF](?![A-Za-z]))?", *map(re.escape, _SIGNS)]))
_SCALES = {None: "degree", "C": "celsius", "F": "fahrenheit"}
_TYPESETTING = re.compile(r"\\(?:text|mathrm|mbox|textrm|rm)(?![A-Za-z])|\\[,;! ]|[{}$~*]")
_WORD = r"(?:(?:square|cubic|sq|cu)\s+)?[A-Za-z][A-Za-z.]*(?:\s*\^\s*-?\d|[²³]|\s+(?:squared|cubed))?"
_UNIT = re.compile(rf"[\d.)]\s*({_WORD}(?:\s*(?:/|per\b)\s*{_WORD})*)\s*\Z")
_POWER = re.compile(r"\s*(²|³|\bsquared|\bcubed)")
_LONGEST = 80
# What may follow a number and only says what is counted.
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
_COUNTED = (
    r"(?:(?=[a-z]{0,19}[aeiouy])[a-z]{3,20}|as|in|ft|yds?|mi|mph|[ckm]m|[km]g|lbs?|oz|ml|hrs?|sq|cu|of|[ap]m|[mgshl])"
)
_UNITS = re.compile(
    rf"(?<=[\d.}}%)])(?:\s+|-|/(?=day|[a-z]{{4}}))(?:{_COUNTED}\b\.?\s*(?:\^\{{?-?[1-4]\}}?)?(?:(?:[\s/*]|\\cdot)+|\Z))+\Z",
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
_TEXT_UNIT = re.compile(
    r"(?:(?<=[\d.})%])|(?<=\\pi)|(?<=\\pi ))\s*"
    r"\\(?:text|mbox|mathrm|textrm|rm|operatorname)\s*\{([^{}]*)\}(?:\^\{?-?\d\}?)?"
)


def without_text_unit(text: str) -> str:
    r"""``5`` of ``5\text{ apples}``."""
    unit = _TEXT_UNIT.search(text)
    if unit and unit.end() == len(text) and not _NO_UNIT.search(re.sub(r"\b[kxyA-Z]\b", "", unit.group(1))):
        return text[: unit.start()]
    return text


def without_unit(text: str) -> str:
    """``5`` of ``5 km/h``, ``5 N`` and ``5 apples``."""
    symbol = _SYMBOL_UNIT.search(text)
    units = symbol or _UNITS.search(text) or _GLUED_UNIT.search(text)
    if not units or (not symbol and _NO_UNIT.search(units.group())):
        return text
    # A single letter is a unit of a plain number, else a factor: "5 m", but "\\pi r^2 h".
    bare, letter = text[: units.start()], symbol or len(units.group().strip()) == 1
    return bare if not letter or is_calculation(bare.rpartition("=")[2]) else text


def is_unit(text: str) -> bool:
    """Whether what follows a number in a sentence is plain words that only say what is counted."""
    if re.match(rf"\s+{_OF_MEASURE}[\s.]*\Z", text):
        return True
    word = re.match(rf"(?:\s+(?:an?\s+)?|-)({_COUNTED})\b|(?:{_GLUED})\b", text, re.I)
    return word is not None and not _NO_UNIT.match(text.lstrip(" -"))


def units_differ(left: str, right: str) -> bool:
    """Whether two answers end in units of which both are known, and not the same one; pairs are no other thing."""
    units = [_unit(text[-_LONGEST:]) for text in (left, right)]
    words = [re.findall("[A-Za-z]+", unit) for unit in units]
    if not all(words) or not (_KNOWN.issuperset(words[0] + words[1]) or "pair" in words[0] + words[1]):
        return False
    if "unit" in words[0] + words[1]:  # "12 units" of whatever it is, but no square ones for plain ones
        units = [re.sub("[A-Za-z]+", "", unit) for unit in units]
    return units[0] != units[1]


def _unit(text: str) -> str:
    """``m/s^2`` of "3 meters per square second"; empty where no unit ends the text."""
    text = re.sub(r"\\\$\s*(\d[\d.,]*)", r"\1 dollar", text)
    text = _SPELT.sub(lambda found: _SIGNS.get(found[0]) or _SCALES[found["scale"]], text)
    match = _UNIT.search(_TYPESETTING.sub(" ", text))
    if match is None:
        return ""
    unit = re.sub(r"\s*(?:/|\bper\b)\s*", "/", _POWER.sub(lambda m: "^3" if m[1] in ("³", "cubed") else "^2", match[1]))
    unit = re.sub(r"\b(sq|cu)(?:uare|bic)?\s+([A-Za-z.]+)", lambda m: f"{m[2]}^{'23'[m[1] == 'cu']}", unit)
    return re.sub(r"[A-Za-z.]+", lambda m: _name(m[0].replace(".", "")), unit.replace(" ", ""))


def _name(word: str) -> str:
    word = word if len(word) == 1 else word.lower()
    return _NAMES.get(word) or _NAMES.get(word.removesuffix("s") if len(word) > 3 else word) or word
