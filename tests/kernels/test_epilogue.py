"""The product whose epilogue leaves exponentials, in Triton's interpreter: against fp64, alone and in the losses."""

import dapo_kernels as dk
import pytest
import torch
from dapo_kernels import reference
from dapo_kernels.ops import gemm_exponentials as ops
from dapo_kernels.ops.final_logits import padded_width
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import INTERPRETED, cases, compare, drawn, error, make_case, move

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="test_triton.py runs these in a process of their own")
BF16 = torch.bfloat16


@pytest.fixture(autouse=True)
def switched(monkeypatch, request):
    """On, with blocks so small that tiny cases have several, and edges."""
    monkeypatch.setenv("DAPO_KERNELS_EPILOGUE", "1")
    for name in ("BLOCK_ROWS", "BLOCK_WORDS", "BLOCK_WIDTH"):
        monkeypatch.setattr(ops, name, 32)


def run(case, words, softcap=None, temperature=1.0):
    """(splits, values in fp64 with their origins put back, the reference's of each), of a case in bf16."""
    rows, vocabulary = case.hidden.shape[0], case.weight.shape[0]
    memory = torch.full((rows, padded_width(vocabulary)), float("nan"), dtype=BF16)
    bias = None if case.bias is None else case.bias.float()
    out = memory[:, :vocabulary]
    splits = ops.gemm_exponentials(case.hidden, case.weight, bias, case.targets, out, words, softcap, temperature)
    exact = [None if t is None else t.double() for t in (case.hidden, case.weight, case.bias)]
    wanted = reference.split_exponentials(*exact[:2], case.targets, words, exact[2], softcap, temperature)
    return splits, out, wanted


@given(st.integers(0, 40), st.integers(1, 120), st.integers(1, 40), st.booleans(), st.sampled_from([None, 3.0]))
@drawn(30)
def test_splits_are_the_definition(rows, vocabulary, width, bias, softcap):
    case = make_case([rows], vocabulary, width, BF16, bias=bias)
    for words in (32, 64):
        splits, values, wanted = run(case, words, softcap, 0.7)
        assert splits.origins.shape == (-(-vocabulary // words), rows)
        moved = (splits.origins.double() - wanted.origins).exp()
        torch.testing.assert_close(splits.totals.double() * moved, wanted.totals, rtol=1e-4, atol=0)
        torch.testing.assert_close(splits.picked.double(), wanted.picked, rtol=1e-5, atol=1e-5)
        moved = moved.repeat_interleave(words, 0)[:vocabulary].t()
        torch.testing.assert_close(values.double() * moved, wanted.values, rtol=8e-3, atol=1e-30)


@pytest.mark.parametrize("step", [40, -40, 2000])
def test_an_origin_that_moves(step):
    """Blocks far above the first: what was written is scaled once more, of the rows that need it alone."""
    case = make_case([20], 80, 16, BF16)
    case.hidden[:, 0] = 1.0
    case.hidden[::3, 0] = 0.0
    case.weight[:, 0] = torch.arange(80) // 32 * step
    splits, values, wanted = run(case, 96)
    assert torch.isfinite(values.float()).all() and torch.isfinite(splits.totals).all()
    lse = splits.origins.double() + splits.totals.double().log()
    torch.testing.assert_close(lse, wanted.origins + wanted.totals.log(), rtol=1e-6, atol=1e-4)
    p = values.double() / splits.totals.double()[0, :, None]
    torch.testing.assert_close(p, wanted.values / wanted.totals[0, :, None], rtol=1e-2, atol=1e-9)


@given(cases(dtypes=(BF16,)))
@drawn(15)
def test_losses_and_gradients_are_the_definition(case):
    compare(case, "triton", tolerance=2e-2)


@pytest.mark.parametrize(
    "options", [{}, {"bias": True, "softcap": 3.0, "temperature": 0.7}, {"ignore": True}, {"chunk_rows": 30}]
)
def test_gradients_are_as_near_as_todays(options, monkeypatch):
    """Also with a split that has all of the probability, and one that has none."""
    case = make_case([4, 0, 30, 1, 7], 150, 24, BF16, **options)
    case.weight[:64] *= 6
    exact = case.leaves(torch.float64)
    errors = []
    for switch in ("1", "0"):
        monkeypatch.setenv("DAPO_KERNELS_EPILOGUE", switch)
        leaves = case.leaves()
        bias = {"bias": leaves[2]} if len(leaves) > 2 else {}
        settings = case.options | bias | {"chunk_rows": case.chunk_rows, "backend": "triton"}
        loss = dk.linear_segment_loss(*leaves[:2], case.targets, case.cu, dk.CrossEntropy(7), **settings).loss
        errors.append([error(g, w) for g, w in zip(torch.autograd.grad(loss, leaves), of_fp64(case, exact))])
    assert all(new < 1.5 * old + 2e-3 for new, old in zip(*errors)), errors


def of_fp64(case, leaves):
    bias = leaves[2] if len(leaves) > 2 else None
    logps = reference.token_logprobs(*leaves[:2], case.targets, bias=bias, **case.options)
    return torch.autograd.grad(-logps.sum() / 7, leaves)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_row_that_is_not_finite(value):
    case = make_case([3, 4, 2], 61, 20, BF16)
    case.hidden[4, 3] = value
    leaves = case.leaves()
    tokens = dk.linear_token_logprobs(*leaves, case.targets, backend="triton")
    assert not torch.isfinite(tokens[4]) and not tokens[4] > 0
    assert torch.isfinite(tokens[:4]).all() and torch.isfinite(tokens[5:]).all()
    loss = dk.linear_cross_entropy(*leaves, case.targets, backend="triton")
    assert not torch.isfinite(loss)
    loss.backward()
    assert not torch.isfinite(leaves[0].grad[4]).all() and not torch.isfinite(leaves[1].grad).all()


@pytest.mark.parametrize("masked", [slice(0, 32), slice(32, 64), slice(None)])
def test_masked_words(masked):
    """A split without a word, its target among them; and a vocabulary without one."""
    case = make_case([6], 70, 20, BF16, bias=True)
    case.bias[masked] = float("-inf")
    case.targets[0], case.targets[1:] = 40, 69
    leaves = case.leaves()
    logps = dk.linear_token_logprobs(*leaves[:2], case.targets, bias=leaves[2], backend="triton")
    if masked == slice(None):
        assert logps.isnan().all()
        return
    assert torch.isfinite(logps[1:]).all()
    logps.backward(torch.ones(6))
    assert all(torch.isfinite(leaf.grad).all() for leaf in leaves)
    exact = case.leaves(torch.float64)
    wanted = reference.token_logprobs(*exact[:2], case.targets, bias=exact[2])
    wanted.sum().backward()
    assert error(leaves[0].grad[1:], exact[0].grad[1:]) < 2e-2
    assert logps[0] == wanted[0] if masked == slice(32, 64) else error(logps, wanted) < 1e-3


def test_what_it_cannot_do_goes_todays_way(monkeypatch):
    """Rows of several entries, fp32, penalties and statistics: the switch changes nothing."""
    calls = []
    monkeypatch.setattr("dapo_kernels.chunk_epilogue.EpilogueLogits", calls.append)
    for options in ({"shared_rows": True}, {"dtype": torch.float32}):
        case = make_case([3, 2], **({"dtype": BF16} | options))
        compare(move(case, ("triton", "cpu")), "triton", tolerance=2e-2)
    case = make_case([3, 2], dtype=BF16)
    dk.linear_token_statistics(case.hidden, case.weight, case.targets, backend="triton")
    dk.linear_cross_entropy(case.hidden, case.weight, case.targets, z_loss=0.1, backend="triton")
    assert calls == []
