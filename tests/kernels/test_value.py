"""The critic's head and loss."""

import dapo_kernels as dk
import pytest
import torch
from dapo_kernels import reference
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import drawn, error


@drawn(60)
@given(
    length=st.integers(1, 30),
    width=st.integers(1, 70),
    entries=st.integers(0, 90),
    seed=st.integers(0, 999),
    kind=st.sampled_from(["bce", "mse"]),
    with_bias=st.booleans(),
    flat=st.booleans(),
    weighted=st.booleans(),
)
def test_ragged(length, width, entries, seed, kind, with_bias, flat, weighted, path):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(length, width, generator=generator).to(path[1]).requires_grad_()
    weight = torch.randn(*((width,) if flat else (1, width)), generator=generator).to(path[1]).requires_grad_()
    bias = torch.randn(1, generator=generator).to(path[1]).requires_grad_() if with_bias else None
    rows = torch.randint(0, length, (entries,), generator=generator).to(path[1])
    targets = torch.rand(entries, generator=generator).to(path[1])
    weights = (torch.rand(entries, generator=generator) * 3).to(path[1]) if weighted else None
    leaves = [t for t in (hidden, weight, bias) if t is not None]
    out = dk.linear_value_loss(hidden, weight, bias, rows, targets, 5, weights=weights, kind=kind, backend=path[0])
    got = torch.autograd.grad(2 * out.loss, leaves)
    exact = [t.detach().double().requires_grad_() for t in leaves]
    exact_bias = exact[2] if with_bias else torch.zeros((), dtype=torch.float64, device=path[1])
    exact_weights = weights.double() if weighted else None
    loss, logits = reference.value_loss(exact[0], exact[1], exact_bias, rows, targets.double(), 5, kind, exact_weights)
    wanted = torch.autograd.grad(2 * loss, exact)
    assert abs(float(out.loss.detach()) - float(loss.detach())) <= 1e-4 * max(1.0, float(loss.detach()))
    assert error(out.logits, logits) < 1e-4 and error(out.values, logits.sigmoid()) < 1e-4
    assert not out.values.requires_grad and out.values.dtype == torch.float32
    for a, b in zip(got, wanted):
        assert a.shape == b.shape and ((a - b).abs() <= 1e-4 * b.abs().max().clamp(min=1e-2)).all()


def test_wide_and_low_precision(path):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(20, 2500, generator=generator).to(torch.bfloat16).to(path[1]).requires_grad_()
    weight = (torch.randn(2500, generator=generator) / 50).to(torch.bfloat16).to(path[1]).requires_grad_()
    rows = torch.tensor([3, 3, 19, 0, 3], device=path[1])
    targets = torch.tensor([0.0, 1.0, 0.5, 0.25, 1.0], device=path[1])
    out = dk.linear_value_loss(hidden, weight, None, rows, targets, backend=path[0])
    got = torch.autograd.grad(out.loss, (hidden, weight))
    exact = [t.detach().double().requires_grad_() for t in (hidden, weight)]
    loss, logits = reference.value_loss(*exact, torch.zeros((), dtype=torch.float64), rows, targets.double(), 5)
    assert (out.logits - logits).abs().max() < 1e-4
    for a, b in zip(got, torch.autograd.grad(loss, exact)):
        assert a.dtype == torch.bfloat16 and error(a, b) < 5e-3


def test_strided_inputs(path):
    """Every argument may be a column of a table."""
    case = [torch.linspace(-1, 1, 8, device=path[1]), torch.tensor([2, 0, 2], device=path[1])]
    case += [torch.tensor([0.0, 1.0, 0.5], device=path[1]), torch.tensor([1.0, 2.0, 3.0], device=path[1])]
    hidden = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)).to(path[1]).t()
    found = []
    for head, rows, targets, weights in (case, [torch.stack([t, 1 - t], 1)[:, 0] for t in case]):
        leaves = hidden.detach().requires_grad_(), head.detach().requires_grad_()
        out = dk.linear_value_loss(leaves[0], leaves[1], None, rows, targets, weights=weights, backend=path[0])
        found.append([out.logits, *torch.autograd.grad(out.loss, leaves)])
    assert not head.is_contiguous() and not rows.is_contiguous()
    for got, wanted in zip(*found):
        torch.testing.assert_close(got, wanted)


def test_certain_and_wrong_stays_finite(path):
    hidden = torch.tensor([[1e4], [-1e4]], device=path[1], requires_grad=True)
    weight = torch.ones(1, device=path[1])
    rows = torch.tensor([0, 1], device=path[1])
    out = dk.linear_value_loss(hidden, weight, None, rows, torch.tensor([0.0, 1.0], device=path[1]), backend=path[0])
    assert float(out.loss.detach()) == pytest.approx(1e4)
    (grad,) = torch.autograd.grad(out.loss, hidden)
    assert grad.flatten().tolist() == pytest.approx([0.5, -0.5])


def test_gradcheck_in_fp64():
    hidden, weight, bias = (torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((6, 4), (1, 4), (1,)))
    rows, targets = torch.tensor([5, 0, 0, 2]), torch.rand(4, dtype=torch.float64)
    for kind in ("bce", "mse"):
        for weights in (None, torch.tensor([0.3, 0.0, 2.0, 1.5])):

            def loss(h, w, b, kind=kind, weights=weights):
                return dk.linear_value_loss(h, w, b, rows, targets, weights=weights, kind=kind).loss

            assert torch.autograd.gradcheck(loss, (hidden, weight, bias))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_weights_count_values(dtype, path):
    """A weight of 2 is the value twice, one of 0 is none; the mean is over the weights' sum, and shards add up."""
    hidden = torch.randn(7, 5, generator=torch.Generator().manual_seed(3)).to(path[1]).requires_grad_()
    head, rows = torch.linspace(-1, 1, 5, device=path[1]), torch.tensor([6, 0, 0, 2], device=path[1])
    targets = torch.tensor([0.1, 0.9, 0.4, 1.0], device=path[1])
    weights = torch.tensor([2.0, 0.0, 1.0, 3.0], device=path[1]).to(dtype)
    twice = torch.tensor([0, 0, 2, 3, 3, 3], device=path[1])

    def loss(at, normalizer=None, weights=None):
        out = dk.linear_value_loss(
            hidden, head, None, rows[at], targets[at], normalizer, weights=weights, backend=path[0]
        )
        return out.loss, *torch.autograd.grad(out.loss, hidden)

    weighted, repeated = loss(slice(None), weights=weights), loss(twice)
    shards = [loss(at, weights.sum(), weights[at]) for at in (slice(0, 3), slice(3, 4))]
    for found, wanted, one, other in zip(weighted, repeated, *shards):
        torch.testing.assert_close(found, wanted)
        torch.testing.assert_close(found, one + other)
    nothing = loss(slice(None), weights=torch.zeros_like(weights))
    assert nothing[0].item() == 0 and not nothing[1].any()
