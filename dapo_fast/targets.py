"""What the actor's log-ratios are regressed onto: β by rule from the data, and the log-partition of each state.

Under KL the best policy at a state is π*(a|s) ∝ π_ref(a|s)·exp(A(s, a)/β) (paper, theorem 3.1), so that its log-ratio
is A/β − log Z(s), Z(s) = E_ref exp(A/β). The paper leaves log Z out, which is right to first order in A/β, and so does
the default here: Z of estimated advantages is too large, by exp(½σ²/β²) where they err by σ, so that every sampled step
is pushed down and the mass goes to steps that nobody sampled. With exact advantages log Z makes targets feasible.
"""

from __future__ import annotations

import logging
import math

import numpy as np

from dapo_fast.config import FIRST_BETA
from dapo_fast.data.tree import State

log = logging.getLogger("dapo_fast.targets")


def beta_of(advantages: np.ndarray, beta: float | str) -> float:
    """β itself, or by rule: ``"std/C"`` is std(Â)/C over the pairs that are trained on, ``"auto"`` that of a first
    iteration.

    Args:
        advantages: ``(pairs,)`` Â of these.

    Raises:
        ValueError: by rule, but all advantages are zero.
    """
    if not isinstance(beta, str):
        return beta
    divisor = float((FIRST_BETA if beta == "auto" else beta).removeprefix("std/"))
    # Â has mean zero at each state, so the spread is about zero: that of what a target can be.
    found = math.sqrt(float(np.square(advantages).mean())) / divisor
    if found == 0:
        raise ValueError("beta: every advantage is zero")
    log.info("β = std(Â)/%g = %.4g over %d pairs", divisor, found, len(advantages))
    return found


def log_partition(state: State, beta: float) -> float:
    """log Z(s) = log mean_j exp(Â_j/β) over the steps sampled at the state, duplicates counted; nats."""
    exponents = [(c.count, c.advantage / beta) for c in state.candidates if c.count]
    top = max(exponent for _, exponent in exponents)
    total = sum(count for count, _ in exponents)
    return top + math.log(sum(count * math.exp(exponent - top) for count, exponent in exponents) / total)
