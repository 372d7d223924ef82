"""Rewards: what a response is worth, by the verifier of its kind of problem or by functions of one's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import fsum, nan  # the name ``math`` is the submodule's here, once that is imported
from typing import TYPE_CHECKING, Any, Protocol

from dapo_fast.errors import InputError, from_outside
from dapo_fast.limits import LEAST_WEIGHT, MOST_WEIGHT
from dapo_fast.names import check_name, resolve
from dapo_fast.rewards.cores import usable_cores

if TYPE_CHECKING:
    from dapo_fast.data.problems import Problem


class Reward(Protocol):
    """What a finished response to a problem is worth, from 0 (wrong) to 1 (right); True and False are 1 and 0.

    It is called from several threads, once for each distinct response, and must say the same whenever it is asked.
    """

    def __call__(self, problem: Problem, response: str) -> float:
        """The reward of ``response``, a text without special tokens."""
        ...


def _verify_math(problem: Problem, response: str) -> bool:
    from dapo_fast.rewards import math

    if problem.answer is None:
        raise InputError(f"problem {problem.id!r}: has no answer to judge by")
    return math.verify(response, problem.answer)


def _verify_code(problem: Problem, response: str) -> bool:
    from dapo_fast.rewards import code

    if problem.tests is None:
        raise InputError(f"problem {problem.id!r}: has no tests to judge by")
    return code.verify(code.extract_program(response, problem.tests), problem.tests)


VERIFIERS: dict[str, Reward] = {"math": _verify_math, "code": _verify_code}


def verifier_for(problem_kind: str) -> Reward:
    """The verifier of a kind of problem, "math" or "code"; InputError for any other."""
    if problem_kind not in VERIFIERS:
        raise InputError(f"kind {problem_kind!r}: no verifier; there are {', '.join(VERIFIERS)}")
    return VERIFIERS[problem_kind]


def verify_by_kind(problem: Problem, response: str) -> float:
    """The reward of runs that name none: the verifier of the problem's kind."""
    return verifier_for(problem.kind)(problem, response)


class WeightedReward:
    """The mean of several rewards by weight."""

    def __init__(self, rewards: Mapping[str, Reward], weights: Mapping[str, float]) -> None:
        """Take ``rewards`` by name, and a weight above 0 for each."""
        self._rewards = rewards
        self._weights = weights

    def __call__(self, problem: Problem, response: str) -> float:
        """Σ w·r / Σ w: exactly 1 where all are."""
        rewards = {name: rate(reward, problem, response, name) for name, reward in self._rewards.items()}
        return fsum(self._weights[name] * r for name, r in rewards.items()) / fsum(self._weights.values())


def named_reward(setting: str | Mapping[str, float], given: Mapping[str, Any] | None = None) -> Reward:
    """The reward that ``setting`` names: "math", "code", ``module:function``, or several of them with weights.

    Args:
        given: Rewards that a program gave, by name.

    Raises:
        InputError: one that cannot be had.
    """
    known = VERIFIERS | dict(given or {})
    if isinstance(setting, str):
        return resolve("reward", setting, known)
    return WeightedReward({name: resolve("reward", name, known) for name in setting}, setting)


def check_reward(setting: Any) -> None:
    """InputError unless all that ``setting`` names can be had, or is a program's to give, with weights in range."""
    weights = {setting: 1.0} if isinstance(setting, str) else setting
    if not isinstance(weights, Mapping) or not weights or not all(isinstance(name, str) for name in weights):
        raise InputError("a name, or names with their weights")
    for name, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not LEAST_WEIGHT <= weight <= MOST_WEIGHT:
            limits = f"from {LEAST_WEIGHT:g} to {MOST_WEIGHT:g}"
            raise InputError(f"{name}: a weight is a number {limits}, not {weight!r}")
        check_name(name, VERIFIERS)


def rate(reward: Reward, problem: Problem, response: str, name: str = "") -> float:
    """The reward of one response.

    Raises:
        InputError: ``reward`` gave something that is no number from 0 to 1, or failed on a file or a server.
    """
    who = f"reward {name or getattr(reward, '__qualname__', type(reward).__name__)}"
    try:
        found = reward(problem, response)
    except Exception as error:
        # Its files, servers and parsers are not the run's.
        message = from_outside(error, "it")
        if message is not None:
            raise InputError(f"{who}: failed on problem {problem.id!r}: {message}") from error
        error.add_note(f"{who}, problem {problem.id!r}")
        raise
    try:
        value = nan if isinstance(found, str | bytes) else float(found)
    except (TypeError, ValueError):
        value = nan
    if not 0 <= value <= 1:
        raise InputError(f"{who}: gave {found!r} for problem {problem.id!r}; a reward is a number from 0 to 1")
    return value


def verify_many(
    pairs: Sequence[tuple[Problem, str]], verify: Reward | None = None, workers: int | None = None
) -> list[float]:
    """Rewards of many (problem, response) pairs, in order.

    Args:
        verify: None: the verifier of each problem's kind.
        workers: Verified at the same time; None: one for each usable core. Threads are enough, since maths and code are
            both judged in other processes.

    Raises:
        InputError: ``verify`` gave something that is no number from 0 to 1, or there is no verifier.
    """
    if not pairs:
        return []
    judge = verify or verify_by_kind
    with ThreadPoolExecutor(workers or usable_cores()) as pool:
        return list(pool.map(lambda pair: rate(judge, *pair), pairs))
