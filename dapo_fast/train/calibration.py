"""How good predicted success rates are, from counts of successes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

BINS = 10
_EDGE = 1e-6  # values are kept off 0 and 1: an fp32 sigmoid rounds to these, and would cost without bound where it errs


def measure(values: Tensor, correct: Tensor, sampled: Tensor, squares: Tensor) -> dict[str, Any]:
    """Loss, discrimination and calibration of predictions against completions.

    Args:
        values: ``(M,)`` fp64 predicted probabilities of a correct end, in (0, 1).
        correct: ``(M,)`` fp64 correct completions of each state: the sum of their rewards.
        sampled: ``(M,)`` fp64 completions of each state.
        squares: ``(M,)`` fp64 sum of their squared rewards; ``correct`` where these are all 0 or 1.

    Returns:
        ``bce``: mean over states of −m log V − (1−m) log(1−V), m the share correct; ``bce_floor``: the same with
        V = m, the least possible; ``squared_error``: mean of (V − m)²; ``brier``: mean over completions of
        (V − reward)²; ``auc``: probability that a correct completion's state is valued above a wrong one's, ties half,
        over all completions (None where all agree); ``calibration``: for each of ten bins of V its count, mean V and
        share correct; ``calibration_error``: their mean distance weighted by completions.
    """
    share = correct / sampled
    return {
        "bce": _cross_entropy(share, values),
        "bce_floor": _cross_entropy(share, share),
        "squared_error": (values - share).square().mean().item(),
        "brier": ((squares - 2 * values * correct + sampled * values.square()).sum() / sampled.sum()).item(),
        "auc": _auc(values, correct, sampled - correct),
        **_calibration(values, correct, sampled),
    }


def _cross_entropy(targets: Tensor, values: Tensor) -> float:
    values = values.clamp(_EDGE, 1 - _EDGE)
    return -(torch.special.xlogy(targets, values) + torch.special.xlogy(1 - targets, 1 - values)).mean().item()


def _auc(values: Tensor, right: Tensor, wrong: Tensor) -> float | None:
    levels, place = torch.unique(values, return_inverse=True)
    rights = torch.zeros_like(levels).index_add_(0, place, right)
    wrongs = torch.zeros_like(levels).index_add_(0, place, wrong)
    below = wrongs.cumsum(0) - wrongs
    pairs = right.sum() * wrong.sum()
    return ((rights * (below + wrongs / 2)).sum() / pairs).item() if pairs > 0 else None


def _calibration(values: Tensor, correct: Tensor, sampled: Tensor) -> dict[str, Any]:
    place = (values * BINS).long().clamp(0, BINS - 1)
    rows = []
    error = 0.0
    for index in range(BINS):
        inside = place == index
        if not bool(inside.any()):
            continue
        weight = sampled[inside].sum()
        predicted = ((values * sampled)[inside].sum() / weight).item()
        observed = (correct[inside].sum() / weight).item()
        error += abs(predicted - observed) * (weight / sampled.sum()).item()
        rows.append(
            {
                "low": index / BINS,
                "high": (index + 1) / BINS,
                "states": int(inside.sum()),
                "predicted": predicted,
                "observed": observed,
            }
        )
    return {"calibration": rows, "calibration_error": error}
