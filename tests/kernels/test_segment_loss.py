"""The engine and its objectives against the fp64 definition, on ragged everything."""

import dataclasses

import dapo_kernels as dk
import pytest
import torch
from dapo_kernels import reference
from hypothesis import given
from kernel_cases import cases, drawn, error, make_case
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode


def fused(case, leaves, backend, **changes):
    options = {**case.options, "bias": leaves[2] if len(leaves) > 2 else None, "chunk_rows": case.chunk_rows, **changes}
    return dk.linear_direct_advantage_loss(
        leaves[0],
        leaves[1],
        case.targets,
        case.cu,
        case.advantages,
        case.ref_logps,
        beta=0.3,
        normalizer=7,
        backend=backend,
        **options,
    )


def defined(case, leaves):
    bias = leaves[2] if len(leaves) > 2 else None
    tokens = reference.token_logprobs(leaves[0], leaves[1], case.targets, bias=bias, **case.options)
    steps = reference.step_logprobs(tokens, case.cu)
    dtype = steps.dtype
    loss = reference.direct_advantage_loss(steps, case.advantages.to(dtype), case.ref_logps.to(dtype), 0.3, 7)
    return loss, steps


def compare(case, backend, tolerance=1e-4, **changes):
    got, wanted = case.leaves(), case.leaves(torch.float64)
    out = fused(case, got, backend, **changes)
    loss, steps = defined(case, wanted)
    assert out.step_logps.shape == (case.segments,) and not out.step_logps.requires_grad
    assert (out.step_logps <= 0).all()
    assert error(out.step_logps, steps) < tolerance
    assert abs(float(out.loss.detach()) - float(loss.detach())) <= tolerance * max(1.0, abs(float(loss.detach())))
    out.loss.backward()
    if loss.requires_grad and case.targets.numel():
        loss.backward()
    for mine, theirs in zip(got, wanted):
        assert mine.grad.dtype == mine.dtype
        expected = torch.zeros_like(theirs) if theirs.grad is None else theirs.grad
        # A gradient may be zero throughout (V = 1): then measure against the size of the loss's coefficients.
        scale = expected.abs().max().clamp(min=1e-3) if expected.numel() else torch.ones(())
        assert ((mine.grad.double() - expected).abs() <= tolerance * scale).all()
    return out


@drawn(60)
@given(case=cases())
def test_ragged_fp32(case, path):
    compare(move(case, path), path[0])


def move(case, path):
    moved = {k: v.to(path[1]) if isinstance(v, torch.Tensor) else v for k, v in vars(case).items()}
    return dataclasses.replace(case, **moved)


@pytest.mark.parametrize("vocabulary,width,lengths", [(17, 33, [0, 1, 40, 0, 7, 1]), (151_936, 9, [5, 0, 9])])
@pytest.mark.parametrize("shared_rows", [False, True])
def test_small_and_large_vocabulary(vocabulary, width, lengths, shared_rows, path):
    case = make_case(lengths, vocabulary, width, shared_rows=shared_rows, ignore=True, chunk_rows=8, device=path[1])
    compare(case, path[0])


@pytest.mark.parametrize("lengths", [[], [0], [0, 0, 0], [1], [50], [3, 50, 0, 2]])
@pytest.mark.parametrize("chunk_rows", [None, 4])
def test_empty_single_and_longer_than_a_chunk(lengths, chunk_rows, path):
    compare(make_case(lengths, chunk_rows=chunk_rows, bias=True, device=path[1]), path[0])


@pytest.mark.parametrize("offset", [-200.0, -60.0, 0.0, 60.0, 200.0])
@pytest.mark.parametrize("vocabulary", [6, 301])
@pytest.mark.parametrize("shared_rows", [False, True])
def test_logits_whose_exponentials_are_no_numbers(offset, vocabulary, shared_rows, path):
    """Sums that overflow or vanish, and targets whose probabilities do, in a later chunk than the first."""
    case = make_case([3, 4, 5], vocabulary, 5, bias=True, shared_rows=shared_rows, chunk_rows=4, device=path[1])
    case.hidden[-5:] *= 30
    case.bias += offset
    compare(case, path[0], tolerance=2e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shared_rows", [False, True])
def test_low_precision_is_as_close_as_autograd(dtype, shared_rows, path):
    case = make_case(
        [9, 0, 30, 14, 1], 301, 48, dtype, bias=True, shared_rows=shared_rows, chunk_rows=20, device=path[1]
    )
    exact, mine, autograd = case.leaves(torch.float64), case.leaves(), case.leaves()
    loss, steps = defined(case, exact)
    loss.backward()
    out = fused(case, mine, path[0])
    out.loss.backward()
    tokens = dk.linear_token_logprobs(
        case.hidden, case.weight, case.targets, bias=case.bias, **case.options, backend=path[0]
    )
    wanted = reference.token_logprobs(
        *(t.double() for t in (case.hidden, case.weight)), case.targets, bias=case.bias.double(), **case.options
    )
    assert (tokens - wanted).abs().max() < 1e-3
    assert (out.step_logps - steps).abs().max() < 1e-3 * 30
    defined(case, autograd)[0].backward()
    for a, b, c in zip(mine, autograd, exact):
        assert error(a.grad, c.grad) <= error(b.grad, c.grad)
        assert error(a.grad, c.grad) < 2e-2


def test_upstream_scale_and_accumulation(path):
    case = make_case([4, 6, 2], bias=True, chunk_rows=5, device=path[1])
    once, scaled = case.leaves(), case.leaves()
    fused(case, once, path[0]).loss.backward()
    loss = fused(case, scaled, path[0]).loss
    (3 * loss).backward(retain_graph=True)
    (-1 * loss).backward()
    fused(case, scaled, path[0]).loss.backward()
    for a, b in zip(once, scaled):
        torch.testing.assert_close(b.grad, 3 * a.grad)


@pytest.mark.parametrize("needed", [(True, False), (False, True), (False, False)])
def test_only_needed_gradients(needed, path):
    case = make_case([4, 6, 2], chunk_rows=5, device=path[1])
    both, some = case.leaves(), case.leaves()
    fused(case, both, path[0]).loss.backward()
    for leaf, need in zip(some, needed):
        leaf.requires_grad_(need)
    out = fused(case, some, path[0])
    assert out.loss.requires_grad == any(needed)
    if any(needed):
        out.loss.backward()
    for a, b, need in zip(both, some, needed):
        assert (b.grad is not None) == need
        if need:
            torch.testing.assert_close(a.grad, b.grad)


class CountProducts(TorchDispatchMode):
    """Counts matrix products."""

    products = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.products += function.overloadpacket.__name__ in ("mm", "addmm", "addmm_", "bmm", "matmul", "baddbmm")
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "needed,grad,products",
    [((True, True), True, 3), ((True, False), True, 2), ((False, True), True, 2), ((True, True), False, 1)],
)
def test_only_the_products_that_are_needed(needed, grad, products, path):
    """Three in training, two where the lm_head is frozen, one without gradients."""
    case = make_case([4, 6, 2], chunk_rows=100, device=path[1])
    leaves = case.leaves()
    for leaf, need in zip(leaves, needed):
        leaf.requires_grad_(need)
    with CountProducts() as counter, torch.set_grad_enabled(grad):
        loss = fused(case, leaves, path[0]).loss
        if grad:
            loss.backward()
    assert counter.products == products


def test_strided_inputs(path):
    case = make_case([4, 6, 2], vocabulary=40, width=24, chunk_rows=5, device=path[1])
    hidden = torch.randn(24, 26, device=path[1]).t()[::2, :][:12, :24]
    weight = torch.randn(24, 40, device=path[1]).t()
    targets = torch.stack([case.targets, case.targets], 1)[:, 0]
    assert not any(t.is_contiguous() for t in (hidden, weight, targets))
    strided = dataclasses.replace(case, hidden=hidden, weight=weight, targets=targets)
    a, b = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
    out = fused(strided, [a, b], path[0])
    out.loss.backward()
    exact = strided.leaves(torch.float64)
    loss, _ = defined(strided, exact)
    loss.backward()
    assert error(a.grad, exact[0].grad) < 1e-4 and error(b.grad, exact[1].grad) < 1e-4
    assert error(out.loss, loss) < 1e-4


def test_same_bits_every_time(path):
    case = make_case([9, 0, 30, 14, 1], 301, 48, shared_rows=True, bias=True, chunk_rows=20, device=path[1])
    case.rows[:20] = 3
    case.targets[:20] = 5
    results = []
    for _ in range(2):
        leaves = case.leaves()
        out = fused(case, leaves, path[0])
        out.loss.backward()
        results.append([out.loss.detach(), out.step_logps, *(leaf.grad for leaf in leaves)])
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_normalizer_and_beta(path):
    case = make_case([4, 6, 2], device=path[1])
    arguments = (case.hidden, case.weight, case.targets, case.cu, case.advantages, case.ref_logps)
    by_default = dk.linear_direct_advantage_loss(*arguments, 0.2, backend=path[0]).loss
    by_number = dk.linear_direct_advantage_loss(*arguments, 0.2, 3, backend=path[0]).loss
    tensor = torch.tensor(6, device=path[1])
    by_tensor = dk.linear_direct_advantage_loss(*arguments, 0.2, tensor, backend=path[0]).loss
    torch.testing.assert_close(by_default, by_number)
    torch.testing.assert_close(by_default, 2 * by_tensor)


def objective_cases(case):
    """(objective, cu_segments, the same loss written from the papers' formulas)."""
    old = -torch.rand(case.targets.numel(), device=case.targets.device) * 5
    signs = torch.randn(case.targets.numel(), device=case.targets.device)
    ref = case.ref_logps
    cross_entropy = dk.CrossEntropy(11)
    clipped = dk.ClippedPolicyGradient(signs, old, low=0.2, high=0.28, normalizer=13)
    dpo = dk.DPO(ref, beta=0.3, normalizer=2)

    def cross_entropy_defined(tokens, steps):
        return -tokens.sum() / 11

    def clipped_defined(tokens, steps):
        total = tokens.new_zeros(())
        for logp, o, a in zip(tokens, old, signs):
            ratio = torch.exp(logp - o)
            total = total - torch.min(ratio * a, torch.clamp(ratio, 0.8, 1.28) * a)
        return total / 13

    def dpo_defined(tokens, steps):
        total = tokens.new_zeros(())
        for i in range(0, len(steps), 2):
            margin = (steps[i] - ref[i]) - (steps[i + 1] - ref[i + 1])
            total = total - torch.log(torch.sigmoid(0.3 * margin))
        return total / 2

    def own(segment_logps, token_logps, start, stop):
        return (segment_logps.exp() * case.advantages[start:stop]).sum() + token_logps.square().sum()

    def own_defined(tokens, steps):
        return (steps.exp() * case.advantages).sum() + tokens.square().sum()

    return {
        "cross_entropy": (cross_entropy, None, cross_entropy_defined),
        "clipped": (clipped, None, clipped_defined),
        "dpo": (dpo, case.cu, dpo_defined),
        "own": (own, case.cu, own_defined),
    }


@pytest.mark.parametrize("name", ["cross_entropy", "clipped", "dpo", "own"])
@pytest.mark.parametrize("chunk_rows", [None, 5])
@pytest.mark.parametrize("shared_rows", [False, True])
def test_objectives(name, chunk_rows, shared_rows, path):
    case = make_case([4, 1, 0, 3, 9, 2], bias=True, shared_rows=shared_rows, chunk_rows=chunk_rows, device=path[1])
    objective, cu, definition = objective_cases(case)[name]
    got, exact = case.leaves(), case.leaves(torch.float64)
    out = dk.linear_segment_loss(
        got[0],
        got[1],
        case.targets,
        cu,
        objective,
        bias=got[2],
        chunk_rows=chunk_rows,
        backend=path[0],
        **case.options,
    )
    out.loss.backward()
    tokens = reference.token_logprobs(exact[0], exact[1], case.targets, bias=exact[2], **case.options)
    loss = definition(tokens, reference.step_logprobs(tokens, case.cu))
    loss.backward()
    assert error(out.loss, loss) < 1e-4
    assert error(out.token_logps, tokens) < 1e-4
    for a, b in zip(got, exact):
        assert error(a.grad, b.grad) < 1e-4
    with torch.no_grad():
        again = dk.linear_segment_loss(
            *got[:2], case.targets, cu, objective, bias=got[2], backend=path[0], **case.options
        )
    torch.testing.assert_close(again.loss, out.loss.detach())


def test_pairs_are_never_cut():
    case = make_case([3, 3, 2, 4, 1, 1], chunk_rows=4)
    seen = []

    def objective(segment_logps, token_logps, start, stop):
        seen.append((start, stop))
        return segment_logps.sum()

    dk.linear_segment_loss(
        case.hidden, case.weight, case.targets, case.cu, objective, segments_per_group=2, chunk_rows=4
    )
    assert seen == [(0, 2), (2, 4), (4, 6)]


def test_cross_entropy_is_torch_cross_entropy(path):
    case = make_case([20], 53, 16, ignore=True, bias=True, device=path[1])
    got, exact = case.leaves(), case.leaves()
    loss = dk.linear_cross_entropy(got[0], got[1], case.targets, bias=got[2], chunk_rows=7, backend=path[0])
    wanted = F.cross_entropy(exact[0] @ exact[1].T + exact[2], case.targets)
    loss.backward()
    wanted.backward()
    assert error(loss, wanted) < 1e-5
    for a, b in zip(got, exact):
        assert error(a.grad, b.grad) < 1e-4


def test_gradcheck_in_fp64():
    case = make_case([3, 0, 4, 1], 7, 5, torch.float64, bias=True, shared_rows=True, chunk_rows=4)
    case.advantages, case.ref_logps = case.advantages.double(), case.ref_logps.double()

    def loss(*leaves):
        return fused(case, list(leaves), "torch", softcap=2.0, temperature=1.3).loss

    assert torch.autograd.gradcheck(loss, case.leaves())


def test_an_objective_must_return_a_scalar():
    case = make_case([3, 2])
    with pytest.raises(ValueError, match=r"^objective: must return a scalar"):
        dk.linear_segment_loss(case.hidden, case.weight, case.targets, case.cu, lambda s, t, a, b: s)
