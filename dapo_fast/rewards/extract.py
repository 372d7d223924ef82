"""Where the answer stands in a response."""

from __future__ import annotations

import re
from fractions import Fraction

from dapo_fast.rewards.normal import MONTH, as_number, compact, is_unit, normalise, strip_math

_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
# Bounds that keep a degenerate response (a megabyte of unclosed boxes) linear.
_MOST_BOXES = 64
_LONGEST_ANSWER = 20_000
_TAIL = 200_000
_LONGEST_LINE = 2_000

_JOINED = re.compile(r"(?:[ \t\n$,;]|\\[()\[\]]|\\quad|\\qquad|\\text\{|\}|and|or|\\,|[A-Za-z](?:_\{?\d\}?)?\s*=)*")
_PHRASE = re.compile(
    r"(?i)(?:\b(?:answer|correct (?:option|choice))s?\b\**\s*(?:(?:is|are|was|equals|becomes|=|:)\s*)+|"
    r"答案\s*[是为:：】]+|选(?:项|择)?\s*[是为:：]*\s*(?=[(（]?[A-HＡ-Ｈ](?![A-Za-z])))"
    r"(?:(?:option|choice)\s+(?=\W{0,3}[A-Z]\b))?"
    r"(therefore|thus|simply|just)?"
)
_DISPLAY = re.compile(
    r"(?:\\\[|\$\$|\\begin\{(?:align|gather|equation)\*?\})((?:(?!\\\[|\$\$).){1,2000}?)"
    r"(?:\\\]|\$\$|\\end\{(?:align|gather|equation)\*?\})",
    re.S,
)
# A dollar before a digit ends nothing: "$20 - $4 = $16".
_INLINE = re.compile(r"(?<!\\)\$((?:\\\$|[^$\n])+?)(?<!\\)\$(?!\d)|\\\((.+?)\\\)|\\\[(.+?)\\\]")
_ALIGNED = re.compile(r"\\(?:begin|end)\{(?:aligned|align\*?|gathered|split)\}|&|\\\\")
_END_TOKEN = re.compile(r"(?:</s>|<\|\w{1,20}\|>)\Z")
# "20 $\text{cm}^2$": the unit alone is set as mathematics.
_UNIT_IN_DOLLARS = re.compile(
    r"(?<![\d.,/])(\d[\d.,/]{0,20}\s?)\$\s*((?:\^|\\%|\\?(?:circ|degree)|\\(?:text|mathrm|mbox|rm)\b|"
    r"(?:[cmk]?m|ft|in|inches|units?|sq)\b)[^$\n]*)\$"
)
_UNIT_APART = re.compile(r"(\d)\s*\$\s*\$\s*(\^|\\%|\\(?:text|mathrm|mbox|rm)\b)")
_NUMBER = re.compile(
    r"(?<![A-Za-z0-9_.])(?<!\d,)[-−]?\s?\$?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+\s\d+(?=/\d)|\d+)(?:\.\d+)?(?:/\d+)?(?:\s?%)?|(?<![A-Za-z0-9_.])[-−]?\.\d+"
)
_SEVERAL = re.compile(r"\d\s*(?:,\s|,?\s*\band\b|\bor\b|[或和、])\s*(?:[A-Za-z]\s*=\s*)?[-−]?\d")
_ITEM = r"(?<![\w.,/])(?:[A-Za-z](?:_\d)?\s*=\s*)?[-−]?\d[\d./]*(?:,\d{3})*(?!\w)"
_LIST_OR_POINT_OR_RATIO = re.compile(
    rf"(?:{_ITEM}(?:\s*(?:,|,?\s+and|,?\s+or)\s+{_ITEM})+|(?:{MONTH})\s+\d{{1,2}}(?:st|nd|rd|th)?(?:,?\s+\d{{4}})?|(?<!\w)[A-Z]?[(\[][^()\[\]]*,[^()\[\]]*[)\]]|(?<![\w.,:])\d[\d.]*(?:(?:\s?:\s?\d+)+(?:\s?[AaPp]\.?\s?[Mm]\b)?|\s+to\s+\d+))"
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
_CHOSEN = re.compile(
    r"(?:\A\W*|\b(?i:option|choice)\s+\W{0,3})([A-H])\W*\Z|"
    r"(?:\A|[\s(*])([A-H])\W{0,3}\s+is\s+(?:the\s+)?(?:correct|right|best)\b"
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
_SENTENCE_END = re.compile(r"(?<!\b[ap]\.m)(?<!!)(?<!\.\.)\.(?=\s|\*|\Z)(?!\s*m\b)|(?i:\s*i hope it)")
_CALCULATION = re.compile(r"\s*\(\s*=?\s*([\d\s.]+(?:[-+*/×][\d\s.]+){1,8})(?:=[\d\s.]+)?\)\s*\.?\Z")
_CALCULATED = re.compile(r"(?<![^\s$])([\d.][\d\s.+*/×-]*)=\s*\$?\s*\Z")
_LIST_MARK = re.compile(r"\s*(?:[,;]|,?\s*\band\b|,?\s*\bor\b)\s*")


def last_boxed(text: str) -> str | None:
    r"""The content of the last complete ``\boxed{…}`` (or ``\fbox``, or ``\boxed 5``); None if there is none."""
    for match in reversed(list(_BOX.finditer(text))[-_MOST_BOXES:]):
        content = _braced(text, match.end())
        if content is not None and content.strip():
            return content.strip()
    return None


def _braced(text: str, start: int) -> str | None:
    if not text.startswith("{", start):
        # MATH's own solutions write "\boxed 5" and "\boxed9" now and then.
        bare = re.match(r"[^\s$\\{}]+", text[start : start + 200])
        return bare.group() if bare else None
    depth = 0
    position = start
    while position < min(len(text), start + _LONGEST_ANSWER):
        character = text[position]
        if character == "\\":
            position += 2  # an escaped brace neither opens nor closes
            continue
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[start + 1 : position]
        position += 1
    return None


def boxed_run(text: str) -> list[str] | None:
    r"""All boxes of the last sentence that boxes several: ``\boxed{1}`` and ``\boxed{2}`` → 1 and 2; else None."""
    found: list[str] = []
    end = None
    for match in list(_BOX.finditer(text))[-_MOST_BOXES:]:
        content = _braced(text, match.end())
        if content is None or (end is not None and match.start() < end):  # one within another
            continue
        if end is not None and not _JOINED.fullmatch(text[end : match.start()][:80]):
            found = []
        found.append(content.strip())
        end = match.end() + len(content) + 2
    return found if len(found) > 1 else None


def extract_answer(response: str) -> str | None:
    """The answer that a response settles on, as it is written there; None if it states none."""
    tail = _ended(response)[-_TAIL:]
    boxed = last_boxed(tail)
    if boxed is not None:
        return boxed
    if _BOX.search(tail):  # one that was cut off
        return None
    for find in (_after_hashes, _after_phrase, _of_last_line):
        answer = find(tail)
        if answer:
            return answer
    return None


def states(response: str, answer: str) -> bool:
    """Whether a response without a box ends in ``answer`` as written: after ``####``, "answer is" or in its lines."""
    wanted = _spelt(answer)
    tail = _ended(response)[-4 * len(answer) - _LONGEST_LINE :]
    if not wanted or len(answer) > _LONGEST_ANSWER or _BOX.search(tail):
        return False
    starts = [tail.rfind("####") + 4] if "####" in tail else [match.end() for match in _PHRASE.finditer(tail)][-8:]
    starts += [match.start(1) for match in _PHRASE.finditer(tail) if match.group(1)][-8:]
    if not starts:
        lines = answer.strip().count("\n") + 1
        starts = [len(tail) - len("\n".join(tail.split("\n")[-lines:]))]
    return any(_spelt(tail[start:]) == wanted for start in starts)


def _spelt(text: str) -> str:
    text = compact(strip_math(text))
    return text.casefold() if text.isalpha() and len(text) > 1 else text


def _ended(text: str) -> str:
    text = re.sub(r"<(/?)answer>", lambda match: "\n" if match[1] else "\n#### ", text).rstrip()
    text = re.sub(r"<<[^<>\n]{1,200}>>", "", text)  # GSM8K's calculator
    while match := _END_TOKEN.search(text, max(0, len(text) - 24)):
        text = text[: match.start()].rstrip()
    return text


def _after_hashes(text: str) -> str | None:
    position = text.rfind("####")
    if position < 0:
        return None
    lines = text[position:].lstrip("#").strip().splitlines()
    if not lines:
        return None
    line = lines[0][:_LONGEST_LINE].strip()
    line = re.sub(r"(?i)\A(?:the\s+)?(?:final\s+)?answer\s*(?:is\s*:?|:)\s*", "", line)
    return _settle(line) if line else None


def _after_phrase(text: str) -> str | None:
    matches = list(_PHRASE.finditer(text))
    for match in reversed(matches[-8:]):
        rest = text[match.end() : match.end() + _LONGEST_LINE].lstrip(" \t*_:\n")
        if match[0].endswith("\n"):
            rest = rest.removeprefix("- ")  # an item of a list, and no minus
        if display := _DISPLAY.match(rest):
            return _ALIGNED.sub(" ", display.group(1)).strip()
        line = rest.splitlines()[0] if rest else ""
        line = _SENTENCE_END.split(line)[0].strip().strip("*").removesuffix("__").strip()
        if line:
            return _settle(line)
    return None


def _of_last_line(text: str) -> str | None:
    stripped = text.rstrip()
    # A display that ends the response is its last line, however many lines it takes.
    ending = stripped[-4 * _LONGEST_LINE :]
    displays = list(_DISPLAY.finditer(ending))
    if displays and displays[-1].end() >= len(ending) - 2:
        return _ALIGNED.sub(" ", displays[-1].group(1)).replace("\n", " ").strip()
    for line in reversed(ending.splitlines()[-3:]):
        line = line[-_LONGEST_LINE:].strip().strip("*").strip()
        if chosen := _CHOSEN.search(line):
            return chosen[1] or chosen[2]
        if _INLINE.search(line) or _NUMBER.search(line):
            return _settle(line, last=True)
    return None


def _settle(line: str, last: bool = False) -> str:
    """The expression, list or number of a sentence, the ``last`` one of a line that ends in it; else the sentence."""
    line = _UNIT_APART.sub(r"\1 \2", line)
    line = _UNIT_IN_DOLLARS.sub(r"$\1\2$", line)
    inline = list(_INLINE.finditer(line))
    if inline and last:
        return _last_run(line, inline)
    line = _ASIDE.split(line)[0].strip() or line
    inline = list(_INLINE.finditer(line))
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
    if last and (ending := _LIST_OR_POINT_OR_RATIO.search(line)):
        return ending.group()
    if last and (ending := _ROOT_OR_PI.search(line)) and not _is_part(line[: ending.start()], last):
        return ending.group()
    if last and (ending := _RELATION.search(line)):
        return ending.group(1)
    numbers = list(_NUMBER.finditer(line))
    if not numbers or (not last and as_number(normalise(line)) is not None):
        return line
    reckoned = (number for number in numbers if _CALCULATION.match(line, number.end()))
    found = next(reckoned, numbers[-1 if last else 0])
    number, before, after = found.group(), line[: found.start()], line[found.end() :]
    if sum_of := _CALCULATION.match(after):
        return number if _value(sum_of.group(1)) == as_number(number) else line
    calculated = last and _CALCULATED.search(re.sub(r"(?<=\d)\s*x\s*(?=\d)", "*", before))
    if calculated and _differ(_value(calculated[1]), as_number(number)):
        return line
    several = last and _SEVERAL.search(line[-80:]) and _SEVERAL.search(line[max(0, found.start() - 12) : found.end()])
    part = _is_part(before, last)
    minus = number[0] in "-−" and re.search(r"[\w)]\s*\Z", before)
    if several or part or (minus and not re.search(r"[A-Za-z]{2}\s*\Z", before)):
        return line
    # A factorial, not an exclamation; digits that go on; numbers said in words.
    if mark := re.match(r"!\s*[.,;]|!(?=\s+[a-z])|\.\.\.|…|\s+(?:hundred|thousand|[mbtr]+illion)\b", after):
        return number + mark.group()
    return number if re.match(r"\s?(?:°\s?[CF]?)?[\s.,;:!?*)]*\Z|[.,;:!?)]\s", after) or is_unit(after) else line


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


def _differ(left: Fraction | None, right: Fraction | None) -> bool:
    """Of whole numbers alone, since others may be rounded."""
    return None not in (left, right) and left != right and left.denominator == right.denominator == 1


def _value(calculation: str) -> Fraction | None:
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
