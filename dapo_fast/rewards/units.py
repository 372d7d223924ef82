"""Units of measurement, which an answer may leave out, but must not change."""

from __future__ import annotations

import re

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
