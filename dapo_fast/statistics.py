"""What a measurement says of a policy: accuracy, its interval, pass@k."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist, fmean, variance
from typing import Any


def reward_of(response: dict[str, Any]) -> float:
    """The reward of a response as it stands in a line of results: it is written out where it is a fraction."""
    return float(response.get("reward", response["correct"]))


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Accuracy, interval, pass@k, truncated fraction and mean length of the rows of one mode."""
    samples = len(rows[0]["responses"])
    right = [sum(map(reward_of, row["responses"])) for row in rows]
    total = len(rows) * samples
    accuracy = sum(right) / total
    effective = _effective_count([c / samples for c in right], accuracy, total)
    low, high = wilson_interval(accuracy * effective, effective)
    responses = [r for row in rows for r in row["responses"]]
    summary: dict[str, Any] = {
        "accuracy": accuracy,
        "low": low,
        "high": high,
        "n": len(rows),
        "truncated": sum(not r["finished"] for r in responses) / total,
        "tokens": fmean(r["tokens"] for r in responses),
    }
    if samples > 1:
        summary["samples"] = samples
        if any("reward" in response for response in responses):
            return summary
        for k in sorted({2**e for e in range(samples.bit_length())} | {samples}):
            summary[f"pass@{k}"] = fmean(pass_at_k(samples, int(c), k) for c in right)
    return summary


def with_interval(measured: Mapping[str, Any]) -> str:
    """An accuracy and its interval, in per cent."""
    return f"{measured['accuracy']:.1%} [{measured['low']:.1%}, {measured['high']:.1%}]"


def mean_of_problems(rewards: Sequence[float]) -> dict[str, Any]:
    """Accuracy, its 95 % interval and the number of problems, of which each has one reward."""
    mean = fmean(rewards)
    low, high = wilson_interval(mean * len(rewards), len(rewards))
    return {"accuracy": mean, "low": low, "high": high, "n": len(rewards)}


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Unbiased pass@k of one problem: 1 − C(n−c, k) / C(n, k) (arXiv 2107.03374, equation 1)."""
    if not 0 <= correct <= n or not 1 <= k <= n:
        raise ValueError(f"pass@{k} of {correct} right in {n}")
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def wilson_interval(successes: float, n: float) -> tuple[float, float]:
    """95 % Wilson score interval of a proportion (Wilson 1927). ``n`` 0: nothing is known, (0, 1)."""
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.975)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(max(0.0, p * (1 - p) / n + z * z / (4 * n * n)))
    # At p = 0 and p = 1 the bound is exact; rounding must not move it.
    return (0.0 if p <= 0 else max(0.0, centre - half)), (1.0 if p >= 1 else min(1.0, centre + half))


def _effective_count(means: Sequence[float], accuracy: float, total: int) -> float:
    """How many independent samples would give the mean its variance: p(1−p) / Var(mean), between problems and total."""
    problems = len(means)
    if total == problems or problems == 1:
        return float(problems)
    spread = variance(means, accuracy) / problems
    if spread == 0:
        return float(total) if 0 < accuracy < 1 else float(problems)
    return min(float(total), max(float(problems), accuracy * (1 - accuracy) / spread))
