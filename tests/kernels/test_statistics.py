"""Entropies and log-sum-exps on request: right, from the same pass, and of no account to the loss."""

import dapo_kernels as dk
import pytest
import torch
from dapo_kernels import reference
from hypothesis import given
from kernel_cases import cases, drawn, fused, make_case, move


def close(found, wanted, tolerance=1e-5):
    return ((found - wanted).abs() <= tolerance * wanted.abs().clamp(min=1)).all()


def defined(case):
    exact = [None if t is None else t.double() for t in (case.hidden, case.weight, case.bias)]
    return reference.token_statistics(*exact[:2], case.targets, bias=exact[2], **case.options)


@drawn(30)
@given(case=cases(dtypes=(torch.float32, torch.bfloat16)))
def test_ragged(case, path):
    case = move(case, path)
    entropies, lses = defined(case)
    options = case.options | {"bias": case.bias, "chunk_rows": case.chunk_rows, "backend": path[0]}
    alone = dk.linear_token_statistics(case.hidden, case.weight, case.targets, **options)
    data = (case.hidden, case.weight, case.targets, case.cu, case.advantages, case.ref_logps)
    beside = dk.linear_direct_advantage_loss(*data, **options, statistics=True)
    for out in (alone, beside):
        assert out.entropies.dtype == out.lses.dtype == torch.float32
        assert close(out.entropies, entropies) and close(out.lses, lses) and (out.entropies >= 0).all()
    assert torch.equal(alone.logps, dk.linear_token_logprobs(*data[:3], **options))


def test_they_change_nothing_and_carry_no_gradient(path):
    case = make_case([4, 9, 2], 301, 24, bias=True, shared_rows=True, chunk_rows=5, device=path[1])
    without, beside, alone = case.leaves(), case.leaves(), case.leaves()
    loss = fused(case, without, path[0])
    assert loss.entropies is None and loss.lses is None
    out = fused(case, beside, path[0], statistics=True)
    assert torch.equal(out.loss, loss.loss) and not out.entropies.requires_grad and not out.lses.requires_grad
    loss.loss.backward()
    out.loss.backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(without, beside))
    tokens = dk.linear_token_statistics(*alone[:2], case.targets, bias=alone[2], rows=case.rows, backend=path[0])
    assert tokens.logps.requires_grad and not tokens.entropies.requires_grad and not tokens.lses.requires_grad
    tokens.logps.sum().backward()
    assert all(leaf.grad.any() for leaf in alone)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e2, 1e4])
def test_large_logits_do_not_cancel(scale, path):
    """Near-certain and near-uniform rows, more words than a block: to 1e-5 nats whatever the logits' size."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4500, 8, generator=generator).round() * scale
    hidden = torch.randn(5, 8, generator=generator).round()
    case = make_case([5], 4500, 8, device=path[1])
    case.hidden, case.weight = hidden.to(path[1]), weight.to(path[1])
    entropies, lses = defined(case)
    out = dk.linear_token_statistics(case.hidden, case.weight, case.targets, backend=path[0])
    assert (out.entropies - entropies).abs().max() < 1e-5 * entropies.max().clamp(min=1)
    assert close(out.lses, lses, 1e-6)


@pytest.mark.parametrize("masked", [slice(0, 4200), slice(4200, 4500)])
def test_masked_words_add_nothing(masked, path):
    """A bias of −inf, over a whole first block too."""
    case = make_case([3], 4500, 4, bias=True, device=path[1])
    case.bias[masked] = float("-inf")
    entropies, lses = defined(case)
    out = dk.linear_token_statistics(case.hidden, case.weight, case.targets, bias=case.bias, backend=path[0])
    assert close(out.entropies, entropies) and close(out.lses, lses) and torch.isfinite(out.entropies).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("everywhere", [False, True])
def test_what_is_not_finite_stays_so(value, everywhere, path):
    case = make_case([3, 4], 4100, 8, bias=True, device=path[1])
    case.hidden[4, slice(None) if everywhere else 3] = value
    statistics = dk.linear_token_statistics(case.hidden, case.weight, case.targets, backend=path[0])
    data = (case.hidden, case.weight, case.targets, case.cu, case.advantages, case.ref_logps)
    beside = dk.linear_direct_advantage_loss(*data, statistics=True, backend=path[0])
    for found in (statistics.entropies, statistics.lses, beside.entropies, beside.lses):
        assert not torch.isfinite(found[4]) and torch.isfinite(found[[0, 1, 2, 3, 5, 6]]).all()
    case.bias[:] = float("-inf")
    hidden = torch.zeros_like(case.hidden)
    masked = dk.linear_token_statistics(hidden, case.weight, case.targets, bias=case.bias, backend=path[0])
    assert not torch.isfinite(masked.entropies).any() and not torch.isfinite(masked.lses).any()
