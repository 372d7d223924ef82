"""Small batches on a CPU take a path of few operations: the engine's results, and the engine where it cannot."""

import dapo_kernels as dk
import pytest
import torch
from dapo_kernels import direct
from kernel_cases import compare, error, make_case
from test_compile import both, loss_of

CPU = ("torch", "cpu")


@pytest.fixture
def found(monkeypatch):
    """What each call of the direct path found: True, or False where it left the batch to the engine."""
    calls, compute = [], direct.compute

    def noted(*arguments):
        results = compute(*arguments)
        calls.append(results is not None)
        return results

    monkeypatch.setattr(direct, "compute", noted)
    return calls


@pytest.mark.parametrize("options", [{}, {"bias": True, "temperature": 0.7}, {"dtype": torch.float64}])
def test_is_the_definition(options, found):
    compare(make_case([4, 0, 9, 3], **options), CPU[0], tolerance=1e-5)
    assert found == [True]


@pytest.mark.parametrize("name", ["direct_advantage", "clipped", "dpo", "mean_cross_entropy"])
def test_is_the_engine_and_one_graph_with_the_same_bits(name, found):
    case = make_case([4, 6, 0, 2], bias=True)
    for eager, compiled in zip(*both(name, case, CPU, chunk_rows=None), strict=True):
        assert torch.equal(eager, compiled)
    assert found == [True] * 2
    results = []
    for chunk_rows in (None, 100):
        leaves = case.leaves()
        loss, metric = loss_of(name, case, *leaves, CPU[0], chunk_rows=chunk_rows)
        loss.backward()
        results.append([loss, *([] if metric is None else [metric]), *(leaf.grad for leaf in leaves)])
    assert found == [True] * 3 and all(error(a, b) < 1e-5 for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("offset", [-90.0, 80.0])
def test_leaves_unusual_sums_to_the_engine(offset, found):
    case = make_case([4, 9], bias=True)
    case.bias += offset
    compare(case, CPU[0])
    assert found == [False]


def test_a_row_that_is_not_finite(found):
    case = make_case([4, 9])
    case.hidden[3, 1] = float("nan")
    out = dk.linear_cross_entropy(case.hidden, case.weight, case.targets)
    assert out.isnan() and found == [False]


@pytest.mark.parametrize(
    "changes",
    [{"softcap": 3.0}, {"shared_rows": True}, {"ignore": True}, {"vocabulary": 300}, {"dtype": torch.bfloat16}],
)
def test_other_batches_go_to_the_engine(changes, found):
    case = make_case([4, 9], **changes)
    dk.linear_cross_entropy(case.hidden, case.weight, case.targets, **case.options)
    assert found == []
