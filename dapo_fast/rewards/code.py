"""Verified rewards for code: run the program in a sandbox against its tests."""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

from dapo_fast.errors import InputError
from dapo_fast.rewards.sandbox import Limits, Sandboxed, close_all, method
from dapo_fast.rewards.sandbox_init import MAX_FRAME

log = logging.getLogger("dapo_fast.rewards")

TIMEOUT_S = 10.0
_FENCE = re.compile(r"^[ \t]*```[ \t]*([A-Za-z0-9_+-]*)[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.S | re.M)
_COMPLETION_ENDS = re.compile(r"\n(?=(?:class|def|if|print|assert|@|#|```|<)\b|[@#`<])")


def verify(
    program: str, tests: dict[str, Any] | Sequence[str], timeout: float = TIMEOUT_S, insecure: bool = False
) -> bool:
    """Whether ``program`` passes all of its tests.

    Args:
        program: A whole Python program.
        tests: One of
            ``{"entry_point", "test", "prompt"?}`` (HumanEval: ``test`` defines ``check(candidate)``),
            ``{"test_list", "test_setup_code"?}`` or a list of assert statements (MBPP),
            ``{"inputs", "outputs"}`` (standard input and output: TACO, APPS, LiveCodeBench),
            ``{"inputs", "outputs", "fn_name"}`` (arguments and results of a function or of a ``Solution`` method).
        timeout: CPU seconds for all of a function's tests, or for each pair of standard input and output; the wall
            clock allows three times as much and a second.
        insecure: Run without a sandbox where none works.

    Raises:
        InputError: ``tests`` is none of these, or no sandbox works here.
    """
    if not isinstance(tests, dict):
        tests = {"test_list": list(tests)}
    limits = Limits(seconds=timeout)
    how = method(insecure)
    program = program.encode("utf-8", "replace").decode()
    if len(program) > MAX_FRAME // 16 or "\x00" in program:
        return False
    if "entry_point" in tests or "test_list" in tests:
        return _judged(program, tests, limits, how)
    if "inputs" not in tests or "outputs" not in tests:
        raise InputError(f"tests: {sorted(tests)} is no known form; see dapo_fast.rewards.code.verify")
    if tests.get("fn_name"):
        return _judged(program, _as_asserts(tests), limits, how)
    return all(
        _prints(program, _text(given), _text(expected), limits, how)
        for given, expected in zip(tests["inputs"], tests["outputs"], strict=True)
    )


def _judged(program: str, tests: dict[str, Any], limits: Limits, how: str) -> bool:
    """The program in one sandbox, its tests in another, two pipes between them."""
    asked, requests = os.pipe()
    replies, answered = os.pipe()
    files = [asked, requests, replies, answered]
    try:
        orders = {"program": program}
        with Sandboxed("program", orders, limits, {"requests": asked, "replies": answered}, how):
            # The program never holds the judge's ends, and the judge never the program's.
            close_all((asked, answered))
            with Sandboxed("judge", {}, limits, {"requests": requests, "replies": replies}, how) as judge:
                close_all((requests, replies))
                files = []
                judge.send(tests)
                verdict = judge.output()
        if verdict != b"right":
            log.debug("program is wrong: %s", verdict)
        return verdict == b"right"
    finally:
        close_all(files)


def _prints(program: str, given: str, expected: str, limits: Limits, how: str) -> bool:
    with tempfile.TemporaryFile() as file:
        file.write(given.encode("utf-8", "replace"))
        file.seek(0)
        # Opened anew, read-only: the program shares no offset and cannot write to it.
        stdin = os.open(f"/proc/self/fd/{file.fileno()}", os.O_RDONLY)
        try:
            with Sandboxed("script", {"program": program}, limits, {"stdin": stdin}, how) as run:
                printed = run.output()
                if printed is None or run.exit_code() != 0:
                    return False
        finally:
            os.close(stdin)
    return same_output(printed.decode("utf-8", "replace"), expected)


def same_output(printed: str, expected: str) -> bool:
    """Equal line by line but for blanks at line ends and blank lines at the end; numbers by value (relative 1e-6)."""
    lines = [[line.strip() for line in text.strip().splitlines()] for text in (printed, expected)]
    if lines[0] == lines[1]:
        return True
    if len(lines[0]) != len(lines[1]):
        return False
    return all(_same_tokens(a.split(), b.split()) for a, b in zip(*lines))


def _same_tokens(printed: list[str], expected: list[str]) -> bool:
    return len(printed) == len(expected) and all(a == b or _same_number(a, b) for a, b in zip(printed, expected))


def _same_number(printed: str, expected: str) -> bool:
    try:
        a, b = Decimal(printed), Decimal(expected)
    except InvalidOperation:
        return False
    if not a.is_finite() or not b.is_finite() or max(abs(a.adjusted()), abs(b.adjusted())) > 1000:
        return False
    # Only a real number may be off by rounding.
    return a == b or ("." in expected and abs(a - b) <= Decimal("1e-6") * max(1, abs(b)))


def _text(value: Any) -> str:
    """TACO gives some inputs as a list of lines."""
    return "\n".join(str(line) for line in value) if isinstance(value, list) else str(value)


def _as_asserts(tests: dict[str, Any]) -> dict[str, Any]:
    """Call-based tests as judge's code; JSON has no tuples, so results are compared as lists."""
    cases = [
        [list(given) if isinstance(given, list) else [given], wanted]
        for given, wanted in zip(tests["inputs"], tests["outputs"], strict=True)
    ]
    source = f"""
import json, math
def _plain(value):
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {{str(key): _plain(item) for key, item in value.items()}}
    return value
def _number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)
def _same(found, wanted):
    if _number(found) and _number(wanted) and float in (type(found), type(wanted)):
        return found == wanted or (math.isfinite(wanted) and abs(found - wanted) <= 1e-6 * max(1, abs(wanted)))
    if isinstance(found, list) and isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(_same, found, wanted))
    return type(found) is type(wanted) and found == wanted
def check(candidate):
    for given, wanted in json.loads({json.dumps(json.dumps(cases))}):
        found, wanted = _plain(candidate(*given)), _plain(wanted)
        # APPS wraps some results into a list of one.
        assert _same(found, wanted) or (isinstance(wanted, list) and len(wanted) == 1 and _same(found, wanted[0]))
"""
    return {"entry_point": tests["fn_name"], "test": source, "method_of": "Solution"}


# From a response to a program ---------------------------------------------------------------------------------------


def extract_program(response: str, tests: dict[str, Any]) -> str:
    """The program of a response: its last fenced block (the last that defines the function, where tests name one),
    else the response itself; a HumanEval completion gets its prompt before it."""
    blocks = [match.group(2) for match in _FENCE.finditer(response) if match.group(1).lower() in _PYTHON]
    entry_point = tests.get("entry_point")
    prompt = str(tests.get("prompt", ""))
    if blocks:
        defining = [block for block in blocks if entry_point and _defines(block, entry_point)]
        program = (defining or blocks)[-1]
    else:
        program = response
    if not entry_point:
        return program
    if _defines(program, entry_point):
        # Imports and helper functions that the prompt gives may be left out of an answer that repeats the function.
        preamble = re.split(rf"^def {re.escape(entry_point)}\b", prompt, maxsplit=1, flags=re.M)[0]
        return f"{preamble}\n{program}"
    if not blocks:
        program = _COMPLETION_ENDS.split(program, maxsplit=1)[0]
    return prompt + program


_PYTHON = {"", "python", "python3", "py"}


def _defines(program: str, name: str) -> bool:
    return re.search(rf"^[ \t]*(?:async )?def {re.escape(name)}\b", program, re.M) is not None
