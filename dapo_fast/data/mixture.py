"""Several sets of problems as one: how many of each, by weight, and which."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from dapo_fast.data.problems import Problem


def mixed(
    sets: Mapping[str, Sequence[Problem]], weights: Sequence[float | None], limit: int | None, seed: int | None
) -> list[Problem]:
    """Problems of all ``sets`` in the proportions of ``weights``, as many as there are without repeating one.

    Args:
        sets: By the name that comes before their problems' ids where there are several.
        weights: A share of each; without them sets are taken whole, and a limit leaves them in proportion.
        limit: Most problems.
        seed: Which problems of a set that is not taken whole; None: its first.
    """
    shares = [len(problems) if weight is None else weight for problems, weight in zip(sets.values(), weights)]
    found: list[Problem] = []
    for (name, problems), count in zip(sets.items(), _counts([len(p) for p in sets.values()], shares, limit)):
        chosen = list(range(count))
        if seed is not None and count < len(problems):
            order = torch.randperm(len(problems), generator=torch.Generator().manual_seed(seed))
            chosen = sorted(order[:count].tolist())
        found += [replace(problems[i], id=f"{name}/{problems[i].id}") if len(sets) > 1 else problems[i] for i in chosen]
    return found


def _counts(sizes: Sequence[int], shares: Sequence[float], limit: int | None) -> list[int]:
    """Whole numbers in the proportions of ``shares``, none above its size, that add up to at most ``limit``."""
    whole = math.fsum(shares)
    # Rounded against a set that is just large enough: 3 · (1 / 3) must be 1.
    most = min(math.floor(round(size / share * whole, 6)) for size, share in zip(sizes, shares))
    total = most if limit is None else min(most, limit)
    exact = [total * share / whole for share in shares]
    counts = [min(size, math.floor(round(count, 6))) for size, count in zip(sizes, exact)]
    # Largest remainders first, as seats are given.
    by_remainder = sorted(range(len(exact)), key=lambda i: (counts[i] - exact[i], i))
    for i in by_remainder[: total - sum(counts)]:
        counts[i] = min(sizes[i], counts[i] + 1)
    return counts
