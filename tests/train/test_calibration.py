"""The critic's held-out metrics against sums over single completions."""

import pytest
import torch

from dapo_fast.train.calibration import measure


@pytest.mark.parametrize("rewards", [[[1.0, 0.0, 1.0], [0.0]], [[0.5, 0.5, 0.2], [1.0]]])
def test_brier_is_the_mean_over_completions_of_fractions_as_well(rewards):
    values = [0.6, 0.3]
    columns = [[sum(r) for r in rewards], [len(r) for r in rewards], [sum(x * x for x in r) for r in rewards]]
    measured = measure(*(torch.tensor(column, dtype=torch.float64) for column in [values, *columns]))
    errors = [(value - reward) ** 2 for value, of_state in zip(values, rewards, strict=True) for reward in of_state]
    assert measured["brier"] == pytest.approx(sum(errors) / len(errors))


def test_a_saturated_value_that_errs_costs_a_number():
    values = torch.tensor([1.0, 0.0], dtype=torch.float64)
    columns = [torch.tensor(column).double() for column in ([0.0, 2.0], [2.0, 2.0], [0.0, 2.0])]
    sure = measure(values, *columns)
    assert sure["bce"] == pytest.approx(13.8, abs=0.1) and sure["brier"] == 1
