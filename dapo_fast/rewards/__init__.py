"""Verified rewards: who decides whether a response is right."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol

from dapo_fast.errors import InputError
from dapo_fast.rewards.cores import usable_cores

if TYPE_CHECKING:
    from dapo_fast.data.problems import Problem


class Verifier(Protocol):
    """Decides whether a finished response solves a problem. Never raises on any response."""

    def __call__(self, problem: Problem, response: str) -> bool:
        """True if ``response`` is right."""
        ...


def _verify_math(problem: Problem, response: str) -> bool:
    from dapo_fast.rewards import math

    return math.verify(response, str(problem.answer))


def _verify_code(problem: Problem, response: str) -> bool:
    from dapo_fast.rewards import code

    assert problem.tests is not None
    return code.verify(code.extract_program(response, problem.tests), problem.tests)


def verifier_for(problem_kind: str) -> Verifier:
    """The verifier of a kind of problem: "math", "code" or a built-in task's name; InputError for any other."""
    if problem_kind == "math":
        return _verify_math
    if problem_kind == "code":
        return _verify_code
    from dapo_fast.tasks import TASKS

    if problem_kind not in TASKS:
        raise InputError(f"kind {problem_kind!r}: no verifier; there are math, code, {', '.join(sorted(TASKS))}")
    return TASKS[problem_kind].verify


def verify_many(
    pairs: Sequence[tuple[Problem, str]], verify: Verifier | None = None, workers: int | None = None
) -> list[bool]:
    """Verdicts of many (problem, response) pairs, in order.

    Args:
        verify: None: the verifier of each problem's kind.
        workers: Verified at the same time; None: one for each usable core. Threads are enough, since maths and code are
            both judged in other processes.
    """
    if not pairs:
        return []
    verifiers = {kind: verify or verifier_for(kind) for kind in {problem.kind for problem, _ in pairs}}

    def verdict(pair: tuple[Problem, str]) -> bool:
        return bool(verifiers[pair[0].kind](*pair))

    with ThreadPoolExecutor(workers or usable_cores()) as pool:
        return list(pool.map(verdict, pairs))
