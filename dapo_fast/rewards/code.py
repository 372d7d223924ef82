"""Verified rewards for code: run the program in a sandbox against its tests."""

from __future__ import annotations

import logging
import os
import re
import tempfile
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from dapo_fast.errors import InputError
from dapo_fast.rewards.memory import reserved
from dapo_fast.rewards.programs import extract_program
from dapo_fast.rewards.sandbox import Limits, Sandboxed, close_all, method
from dapo_fast.rewards.sandboxed.data import MAX_FRAME, pack

log = logging.getLogger("dapo_fast.rewards")

__all__ = ["extract_program", "same_output", "verify"]

TIMEOUT_S = 10.0
_WHOLE = re.compile(r"-?(?:0|[1-9][0-9]*)")
_REAL = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,4})?")


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
        timeout: Seconds of work or of sleep for all of a function's tests, or for each pair of standard input and
            output. Waiting for a core does not count, up to three times as much and a minute.
        insecure: Run without a sandbox where none works.

    Raises:
        InputError: ``tests`` is none of these, or no sandbox works here.
    """
    if not isinstance(tests, dict):
        tests = {"test_list": list(tests)}
    how = method(insecure)
    program = program.encode("utf-8", "replace").decode()
    if len(program) > MAX_FRAME // 16 or "\x00" in program:
        return False
    by_name = "entry_point" in tests or "test_list" in tests
    if not by_name and ("inputs" not in tests or "outputs" not in tests):
        raise InputError(f"tests: {sorted(tests)} is no known form; see dapo_fast.rewards.code.verify")
    if by_name or tests.get("fn_name"):
        with reserved(Limits.memory_bytes) as memory:
            limits = Limits(timeout, memory)
            return _judged(program, tests if by_name else _as_cases(tests), limits, how)
    return all(
        _prints(program, _text(given), _text(expected), timeout, how)
        for given, expected in zip(tests["inputs"], tests["outputs"], strict=True)
    )


# What the sites that these problems come from import before a program, as LiveCodeBench's own runner does.
_LEETCODE = """
import bisect, collections, copy, functools, heapq, itertools, math, operator, re, string, sys
from bisect import *
from collections import *
from copy import *
from functools import *
from heapq import *
from itertools import *
from math import *
from operator import *
from typing import *
from builtins import *
"""


def _judged(program: str, tests: dict[str, Any], limits: Limits, how: str) -> bool:
    """The program in one sandbox, its tests in another, two pipes between them."""
    asked, requests = os.pipe()
    replies, answered = os.pipe()
    files = [asked, requests, replies, answered]
    try:
        orders = {"program": program, "preamble": _LEETCODE if "method_of" in tests else ""}
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


def _prints(program: str, given: str, expected: str, timeout: float, how: str) -> bool:
    with tempfile.TemporaryFile() as file, reserved(Limits.memory_bytes) as memory:
        file.write(given.encode("utf-8", "replace"))
        file.seek(0)
        # Opened anew, read-only: the program shares no offset and cannot write to it.
        stdin = os.open(f"/proc/self/fd/{file.fileno()}", os.O_RDONLY)
        try:
            with Sandboxed("script", {"program": program}, Limits(timeout, memory), {"stdin": stdin}, how) as run:
                printed = run.output()
                if printed is None or run.exit_code() != 0:
                    return False
        finally:
            os.close(stdin)
    return same_output(printed.decode("utf-8", "surrogateescape"), expected)


def same_output(printed: str, expected: str) -> bool:
    """Equal token by token in equal lines; blanks around and between tokens and blank lines at the ends do not count.

    Tokens compare as text. Only where both are plain numbers and the expected one, or the printed one, is written as a
    real number do their values compare; where the expected one is, to 1e-6 (relative; absolute near zero, but never
    more than half of its last digit).
    """
    lines = [
        [line.strip(" \t\r") for line in text.strip(" \t\r\n").split("\n")]
        for text in (printed.replace("\r\n", "\n"), expected.replace("\r\n", "\n"))
    ]
    if lines[0] == lines[1]:
        return True
    return len(lines[0]) == len(lines[1]) and all(_same_tokens(a, b) for a, b in zip(*lines))


def _same_tokens(printed: str, expected: str) -> bool:
    # Of ASCII's blanks alone: str.split would take a dozen of Unicode's for the one that was asked for.
    pair = [[token for token in re.split(r"[ \t\r]+", text) if token] for text in (printed, expected)]
    return len(pair[0]) == len(pair[1]) and all(a == b or _same_number(a, b) for a, b in zip(*pair))


def _same_number(printed: str, expected: str) -> bool:
    if not _REAL.fullmatch(printed) or not _REAL.fullmatch(expected):
        return False
    a, b = Decimal(printed), Decimal(expected)
    if _WHOLE.fullmatch(expected):
        # 5.0 is 5; two whole numbers were compared as text, and 1e3 is not how a whole number is written.
        return "." in printed and "e" not in printed.lower() and a == b
    if max(abs(a.adjusted()), abs(b.adjusted())) > 1000:
        return False
    exponent = b.as_tuple().exponent
    half_of_last_digit = Decimal(5).scaleb(int(exponent) - 1)
    return abs(a - b) <= max(Decimal("1e-6") * abs(b), min(Decimal("1e-6"), half_of_last_digit))


def _text(value: Any) -> str:
    """TACO gives some inputs as a list of lines, and some lines as a list of words."""
    if not isinstance(value, list):
        return _word(value)
    return "\n".join(" ".join(map(_word, line)) if isinstance(line, list) else _word(line) for line in value)


def _word(value: Any) -> str:
    # str() refuses whole numbers of over 4,300 digits, unless the whole process is told to.
    return str(Decimal(value)) if type(value) is int else str(value)


def _as_cases(tests: dict[str, Any]) -> dict[str, Any]:
    """Arguments and results as the judge takes them."""
    cases = [
        [list(given) if isinstance(given, list) else [given], wanted]
        for given, wanted in zip(tests["inputs"], tests["outputs"], strict=True)
    ]
    return {"entry_point": tests["fn_name"], "cases": pack(cases, _no_plain_data), "method_of": "Solution"}


def _no_plain_data(value: Any) -> None:
    raise InputError(f"tests: {type(value).__name__} is no plain data")
