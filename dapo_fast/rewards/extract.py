"""Where the answer stands in a response."""

from __future__ import annotations

import re

from dapo_fast.rewards.parts import compact, strip_math
from dapo_fast.rewards.sentence import INLINE, NUMBER, settle

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
_ALIGNED = re.compile(r"\\(?:begin|end)\{(?:aligned|align\*?|gathered|split)\}|&|\\\\")
_END_TOKEN = re.compile(r"(?:</s>|<\|\w{1,20}\|>)\Z")
_CHOSEN = re.compile(
    r"(?:\A\W*|\b(?i:option|choice)\s+\W{0,3})([A-H])\W*\Z|"
    r"(?:\A|[\s(*])([A-H])\W{0,3}\s+is\s+(?:the\s+)?(?:correct|right|best)\b"
)
_SENTENCE_END = re.compile(r"(?<!\b[ap]\.m)(?<!!)(?<!\.\.)\.(?=\s|\*|\Z)(?!\s*m\b)|(?i:\s*i hope it)")


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
    return settle(line) if line else None


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
            return settle(line)
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
        if INLINE.search(line) or NUMBER.search(line):
            return settle(line, last=True)
    return None
