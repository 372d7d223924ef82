"""Direct evidence of Q(s, a): the outcomes of every sampled continuation that passes through the step.

The paper keeps of a completion its first step and adds its reward to the state's mean. But each continuation that
passes through s∘a, from wherever it was sampled at or above s∘a, is a draw from the policy at s∘a: its outcome says
what Q(s, a) is. The critic is shrunk towards these outcomes,

    Q̂ = (right + k·V(s∘a)) / (n + k),

the posterior mean of a success rate with prior Beta(k·V, k·(1−V)). k says how many outcomes the critic is worth, and is
fitted by the beta-binomial likelihood of outcomes on problems that the critic has not seen. Where rewards are fractions
the same formula is the best linear estimate (credibility, Bühlmann 1967), and k is the variance of one outcome at a
state over that of the critic's errors, which for right and wrong is the same k.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

ASSUMED = 2.0  # k where it cannot be fitted: the middle of what was found on the built-in tasks (1 to 3)
LARGEST = 1024.0  # a critic worth more outcomes than this is as good as exact
_SMALLEST = 1 / 16
_EDGE = 1e-4  # values are kept this far from 0 and 1, where one contrary outcome would be impossible


@dataclass(frozen=True, slots=True)
class Continuation:
    """A sampled response, known from ``start`` on.

    Attributes:
        ids: The whole response's token ids.
        start: Tokens that were given: sampling began after them.
        reward: From 0 (wrong) to 1 (right); 0 when truncated.
    """

    ids: tuple[int, ...]
    start: int
    reward: float


class Outcomes:
    """The continuations of one problem, by what they pass through.

    They are kept in lexicographic order, so that those through a prefix are neighbours: finding them takes time that
    grows with their number and not with that of all.
    """

    def __init__(self, continuations: Iterable[Continuation]) -> None:
        self._sorted = sorted(continuations, key=lambda c: c.ids)
        self._ids = [c.ids for c in self._sorted]

    def through(self, prefix: Sequence[int]) -> tuple[float, int]:
        """(right, n) of the continuations that pass through ``prefix`` and were sampled at or above its end; right is
        the sum of their rewards.

        One that began below says nothing: that it stands on ``prefix`` was given, not sampled. One that ends exactly at
        ``prefix`` passes through it too.
        """
        start = tuple(prefix)
        first = bisect_left(self._ids, start)
        last = bisect_left(self._ids, (*start, math.inf), lo=first)
        found = [c.reward for c in self._sorted[first:last] if c.start <= len(start)]
        return sum(found), len(found)


def shrunk(right: float, n: float, value: float, k: float) -> float:
    """Q̂ = (right + k·value) / (n + k); the value alone where there is no outcome."""
    return (right + k * value) / (n + k) if n else value


def fit_shrinkage(
    values: Sequence[float], right: Sequence[float], n: Sequence[int], squares: Sequence[float] | None = None
) -> dict[str, Any]:
    """k by maximum beta-binomial likelihood: right_i of n_i with success rate ~ Beta(k·V_i, k·(1−V_i)).

    Args:
        values: V of each state, of problems that the critic was not trained on.
        right: Right ones of its completions: the sum of their rewards.
        n: Completions; states with fewer than two say nothing about k and are left out.
        squares: Sum of their squared rewards. Where it differs from ``right``, rewards are fractions, and k is the
            ratio of two variances.

    Returns:
        ``k``; ``fitted``: False where no state has two completions, and k is ``ASSUMED``; ``states``: how many were
        used; ``curve``: [k, mean log-likelihood a state] pairs, for a picture; none for fractions.
    """
    used = [i for i in range(len(n)) if n[i] >= 2]
    if not used:
        return {"k": ASSUMED, "fitted": False, "states": 0, "curve": []}
    v = np.clip(np.array([values[i] for i in used], dtype=np.float64), _EDGE, 1 - _EDGE)
    hits = np.array([right[i] for i in used], dtype=np.float64)
    total = np.array([n[i] for i in used], dtype=np.int64)
    squared = hits if squares is None else np.array([squares[i] for i in used], dtype=np.float64)
    if (hits != squared).any():
        return {"k": _ratio_of_variances(v, hits, total, squared), "fitted": True, "states": len(used), "curve": []}

    def likelihood(log_k: float) -> float:
        return _log_likelihood(math.exp(log_k), v, hits, total)

    grid = np.linspace(math.log(_SMALLEST), math.log(LARGEST), 29).tolist()
    heights = [likelihood(point) for point in grid]
    best = int(np.argmax(heights))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    k = math.exp(_maximum(likelihood, low, high))
    curve = [[math.exp(point), height] for point, height in zip(grid, heights, strict=True)]
    return {"k": k, "fitted": True, "states": len(used), "curve": curve}


def _ratio_of_variances(values: np.ndarray, right: np.ndarray, n: np.ndarray, squares: np.ndarray) -> float:
    """Variance of one outcome at a state over that of (success rate − V): E n(right/n − V)² = n·error + noise."""
    noise = (squares - right**2 / n).sum() / (n - 1).sum()
    error = ((n * (right / n - values) ** 2).sum() - len(n) * noise) / n.sum()
    return float(np.clip(noise / error, _SMALLEST, LARGEST)) if error > 0 else LARGEST


def _log_likelihood(k: float, values: np.ndarray, right: np.ndarray, n: np.ndarray) -> float:
    """Mean over states of log P(right of n): products of (kV + i), (k(1−V) + j) over (k + m), as rising factorials."""
    steps = np.arange(int(n.max()))

    def rising(base: np.ndarray, count: np.ndarray) -> np.ndarray:
        terms = np.log(base[:, None] + steps[None])
        return np.where(steps[None] < count[:, None], terms, 0.0).sum(1)

    k_all = np.full_like(values, k)
    return float((rising(k * values, right) + rising(k * (1 - values), n - right) - rising(k_all, n)).mean())


def _maximum(function: Any, low: float, high: float) -> float:
    """Where a function with one peak is highest between two points, to a thousandth: golden-section search."""
    ratio = (math.sqrt(5) - 1) / 2
    while high - low > 1e-3:
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if function(left) < function(right):
            low = left
        else:
            high = right
    return (low + high) / 2
