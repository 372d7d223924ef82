"""What a sentence settles on: an expression, a list, a relation or a number, or itself."""

from __future__ import annotations

import re

from dapo_fast.rewards.normal import MONTH, normalise
from dapo_fast.rewards.plain import as_number, total
from dapo_fast.rewards.units import is_unit

# A dollar before a digit ends nothing: "$20 - $4 = $16".
INLINE = re.compile(r"(?<!\\)\$((?:\\\$|[^$\n])+?)(?<!\\)\$(?!\d)|\\\((.+?)\\\)|\\\[(.+?)\\\]")
# "20 $\text{cm}^2$": the unit alone is set as mathematics.
_UNIT_IN_DOLLARS = re.compile(
    r"(?<![\d.,/])(\d[\d.,/]{0,20}\s?)\$\s*((?:\^|\\%|\\?(?:circ|degree)|\\(?:text|mathrm|mbox|rm)\b|"
    r"(?:[cmk]?m|ft|in|inches|units?|sq)\b)[^$\n]*)\$"
)
_UNIT_APART = re.compile(r"(\d)\s*\$\s*\$\s*(\^|\\%|\\(?:text|mathrm|mbox|rm)\b)")
NUMBER = re.compile(
    r"(?<![A-Za-z0-9_.])(?<!\d,)[-−]?\s?\$?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+\s\d+(?=/\d)|\d+)(?:\.\d+)?(?:/\d+)?(?:\s?%)?|(?<![A-Za-z0-9_.])[-−]?\.\d+"
)
_SEVERAL = re.compile(r"\d\s*(?:,\s|,?\s*\band\b|\bor\b|[或和、])\s*(?:[A-Za-z]\s*=\s*)?[-−]?\d")
_ITEM = r"(?<![\w.,/])(?:[A-Za-z](?:_\d)?\s*=\s*)?[-−]?\d[\d./]*(?:,\d{3})*(?!\w)"
_ENDING = re.compile(
    rf"(?:{_ITEM}(?:\s*(?:,|,?\s+and|,?\s+or)\s+{_ITEM})+|"  # a list
    r"(?<!\w)[A-Z]?[(\[][^()\[\]]*,[^()\[\]]*[)\]]|"  # a point, an interval
    rf"(?:{MONTH})\s+\d{{1,2}}(?:st|nd|rd|th)?(?:,?\s+\d{{4}})?|"
    r"(?<![\w.,:])\d[\d.]*(?:(?:\s?:\s?\d+)+(?:\s?[AaPp]\.?\s?[Mm]\b)?|\s+to\s+\d+))"  # a ratio, a time
    r"\s*\.?\Z"
)
_LATEX = re.compile(r"\\[A-Za-z]|[_^]")
_ASIDE = re.compile(
    r",?\s+(?:which|because|since|i\.e\.|that is)\s|(?<=[\w$%])\s+\((?=[^()]*[A-Za-z]{3})(?!\\?[bp]?mod\b)[^()]*\)"
)
_ROOT_OR_PI = re.compile(
    r"(?<![\w.,√])[-−]?(?:\d[\d.]*(?:/\d+)?\s?)?(?:(?:√|\bsqrt)(?:\(\d+\)|\d+)|π)(?:/\d+)?\s*\.?\Z"
)
_TERMS = r"(?:[-+*/^()√π²³.\d\s]|(?<![A-Za-z])[A-Za-z](?![A-Za-z]))+"
# "y = 2x + 1", "-1 < x < 3"; what is but a number on its right side is read as that number.
_RELATION = re.compile(
    rf"(?:\A|(?<=\s))({_TERMS}(?:=(?!\s*[-−]?[\d.,/%]+\s*\.?\Z){_TERMS}|(?:(?:[<>]=?|[≤≥]){_TERMS})+))\.?\Z"
)
_QUALIFIED = re.compile(
    r"(?i)(?:\b(?:(?:is|can|could|was)(?:n['’]t|\s?not)(?:\s+be)?|not|log|ln|sqrt|sin|cos|tan|mod|modulo|minus|negative|"
    r"between|\d+\s+(?:out\s+)?of|half(?:\s+of)?|twice|thrice|divisible\s+by|exceeds|anything\s+but|"
    r"(?:square|cube|root|multiple|factor|divisor|power|logarithm)\s+of|"
    r"[a-z]\s+(?:is|must\s+be)\s+(?:at\s+(?:least|most)|(?:less|more|greater|smaller|larger)\s+than))\W*|"
    r"(?:[大小]于|不是|负|第)\s*)\Z"
)
_BOUNDED = re.compile(r"(?i)\b(?:least|most|than|not)\s*\Z")
_LEFT_SIDE = re.compile(r"(?:(?<![A-Za-z])[A-Za-z](?![A-Za-z])|[-+*/^²³|()<>\d.\s])*=\s*\Z")
_CALCULATION = re.compile(r"\s*\(\s*=?\s*([\d\s.]+(?:[-+*/×][\d\s.]+){1,8})(?:=[\d\s.]+)?\)\s*\.?\Z")
_CALCULATED = re.compile(r"(?<![^\s$])([\d.][\d\s.+*/×-]*)=\s*\$?\s*\Z")
_LIST_MARK = re.compile(r"\s*(?:[,;]|,?\s*\band\b|,?\s*\bor\b)\s*")


def settle(line: str, last: bool = False) -> str:
    """The expression, list or number of a sentence, the ``last`` one of a line that ends in it; else the sentence."""
    line = _UNIT_APART.sub(r"\1 \2", line)
    line = _UNIT_IN_DOLLARS.sub(r"$\1\2$", line)
    inline = list(INLINE.finditer(line))
    if inline and last:
        return _last_run(line, inline)
    line = _ASIDE.split(line)[0].strip() or line
    inline = list(INLINE.finditer(line))
    if len(inline) == 1:
        before, after = line[: inline[0].start()], line[inline[0].end() :]
        apart = not re.search(r"\d", before) and not _LIST_MARK.match(after) and not _BOUNDED.search(before)
        return _content(inline[0]) if apart else line
    if inline or (not last and (_LATEX.search(line) or _SEVERAL.search(line))):
        return line
    return _number_of(line, last)


def _content(match: re.Match) -> str:
    return next(group for group in match.groups() if group)


def _last_run(line: str, inline: list[re.Match]) -> str:
    """The last expression of a line, with those before it that it is one list with: ``$x=1$ or $x=2$``."""
    run, joint = [_content(inline[-1])], ", "
    for before, after in zip(reversed(inline[:-1]), reversed(inline[1:])):
        mark, item = line[before.end() : after.start()], _content(before)
        alike = _kind(item) == _kind(run[0]) != "relation"
        if not _LIST_MARK.fullmatch(mark) or not (alike or "or" in mark):
            break
        run.insert(0, item)
        joint = " or " if "or" in mark else joint
    return joint.join(run)


def _kind(item: str) -> str:
    return next((kind for kind, pattern in _KINDS.items() if pattern.match(item)), "value")


_KINDS = {
    "assignment": re.compile(r"\s*[A-Za-z](?:_\w)?\s*=[^=]*\Z"),
    "bound": re.compile(r"[^<>=]*[<>][^<>=]*\Z|[^<>=]*\\(?:le|ge)q?(?:slant)?(?![A-Za-z])[^<>=\\]*\Z"),
    "relation": re.compile(r".*(?:=.*=|[<>]|\\(?:le|ge|ne)|[^\sA-Za-z].*=)"),
}


def _number_of(line: str, last: bool) -> str:
    """The first or last number of plain words; the line itself where the number is only a part of something."""
    line = line.replace(r"\$", "$")
    if last and (ending := _ending_of(line)):
        return ending
    numbers = list(NUMBER.finditer(line))
    if not numbers or (not last and as_number(normalise(line)) is not None):
        return line
    reckoned = (number for number in numbers if _CALCULATION.match(line, number.end()))
    found = next(reckoned, numbers[-1 if last else 0])
    number, before, after = found.group(), line[: found.start()], line[found.end() :]
    if sum_of := _CALCULATION.match(after):
        return number if total(sum_of.group(1)) == as_number(number) else line
    several = last and _SEVERAL.search(line[-80:]) and _SEVERAL.search(line[max(0, found.start() - 12) : found.end()])
    minus = number[0] in "-−" and re.search(r"[\w)]\s*\Z", before) and not re.search(r"[A-Za-z]{2}\s*\Z", before)
    if several or minus or _is_part(before, last) or (last and _is_miscounted(before, number)):
        return line
    # A factorial, not an exclamation; digits that go on; numbers said in words.
    if mark := re.match(r"!\s*[.,;]|!(?=\s+[a-z])|\.\.\.|…|\s+(?:hundred|thousand|[mbtr]+illion)\b", after):
        return number + mark.group()
    return number if re.match(r"\s?(?:°\s?[CF]?)?[\s.,;:!?*)]*\Z|[.,;:!?)]\s", after) or is_unit(after) else line


def _ending_of(line: str) -> str | None:
    """The list, point, ratio, date, root or relation in which a line ends."""
    if ending := _ENDING.search(line):
        return ending.group()
    if (ending := _ROOT_OR_PI.search(line)) and not _is_part(line[: ending.start()], last=True):
        return ending.group()
    ending = _RELATION.search(line)
    return ending[1] if ending else None


def _is_part(before: str, last: bool) -> bool:
    """Whether what stands before a number makes it a part of something: "x - 5", "at least 5", "x + y = 5"."""
    if _QUALIFIED.search(before):
        return True
    if not last:
        return bool(re.search(r"[^\s\w,'’]|\b[b-zB-Z]\s", before) or _BOUNDED.search(before))
    found = _LEFT_SIDE.search(before)
    left = re.sub(r"(?<=\d)\s?x\s?(?=\d)", "*", found.group()) if found else ""
    equation = re.search("[A-Za-z]", left) and re.search(r"[-+*/^²³|<>]|\d\s?[A-Za-z]", left)
    return bool(equation or re.search(r"[-+*/^(<>\\√≠≤≥±∓·×÷]\s*\Z|(?<!['’])\b[b-hj-zB-HJ-Z]\s*\Z", before))


def _is_miscounted(before: str, number: str) -> bool:
    """``2 + 2 = 5``: of whole numbers alone, since others may be rounded."""
    calculated = _CALCULATED.search(re.sub(r"(?<=\d)\s*x\s*(?=\d)", "*", before))
    left, right = calculated and total(calculated[1]), as_number(number)
    return None not in (left, right) and left != right and left.denominator == right.denominator == 1
