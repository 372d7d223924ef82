"""Means over seeds with Student's 95% intervals, and differences taken seed by seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

# Student's t, two-sided 95%, by degrees of freedom.
_T = (math.inf, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


@dataclass(frozen=True)
class Interval:
    """A mean over ``n`` seeds and the half width of its interval (infinite for one seed)."""

    mean: float
    half: float
    n: int

    def text(self, sign: str = "") -> str:
        """In percent or percentage points; ``sign`` "+" writes one always."""
        form = f"{sign}.1f"
        if self.n == 1:
            return f"{format(100 * self.mean, form)} (one seed)"
        return f"{format(100 * self.mean, form)} ± {100 * self.half:.1f}"

    @property
    def differs(self) -> bool:
        """Whether zero lies outside."""
        return abs(self.mean) > self.half


def interval(values: Sequence[float]) -> Interval:
    """The mean of ``values``, one a seed, with its interval."""
    n = len(values)
    t = _T[n - 1] if n - 1 < len(_T) else 1.96
    return Interval(fmean(values), t * stdev(values) / math.sqrt(n) if n > 1 else math.inf, n)


def paired(values: dict[int, float], others: dict[int, float]) -> Interval:
    """The mean difference ``values − others`` over the seeds that both have."""
    return interval([values[seed] - others[seed] for seed in sorted(values.keys() & others.keys())])
