"""Token and step log-probabilities: right, differentiable, never positive."""

import dapo_kernels as dk
import pytest
import torch
from dapo_kernels import reference
from hypothesis import given
from kernel_cases import cases, drawn, error, make_case


@drawn(60)
@given(case=cases())
def test_ragged(case, path):
    if path[1] != "cpu":
        case = make_case([3, 0, 5], device=path[1])
    options = {**case.options, "chunk_rows": case.chunk_rows, "backend": path[0]}
    got, exact = case.leaves(), case.leaves(torch.float64)
    bias = got[2] if case.bias is not None else None
    tokens = dk.linear_token_logprobs(got[0], got[1], case.targets, bias=bias, **options)
    steps = dk.linear_step_logprobs(got[0], got[1], case.targets, case.cu, bias=bias, **options)
    wanted = reference.token_logprobs(
        exact[0], exact[1], case.targets, bias=exact[2] if bias is not None else None, **case.options
    )
    assert tokens.dtype == torch.float32 and (tokens <= 0).all()
    assert (tokens - wanted).abs().max() < 1e-4 if wanted.numel() else tokens.shape == (0,)
    wanted_steps = reference.step_logprobs(wanted, case.cu)
    assert error(steps, wanted_steps) < 1e-4
    generator = torch.Generator().manual_seed(case.segments)
    weights = torch.randn(case.segments, dtype=torch.float64, generator=generator).to(path[1])
    (steps * weights.float()).sum().backward()
    if not case.targets.numel():
        assert all((leaf.grad == 0).all() for leaf in got)
        return
    (wanted_steps * weights).sum().backward()
    for a, b in zip(got, exact):
        # Where the exact gradient is nought (one word in the vocabulary), fp32 leaves a few roundings of 1.
        assert ((a.grad - b.grad).abs() <= 1e-4 * b.grad.abs().max().clamp(min=1e-2)).all()


def adversarial(path):
    """Targets that nearly always win, ties, and logits up to 1e30: rounding at its worst."""
    generator = torch.Generator().manual_seed(1)
    for scale in (1e-3, 1.0, 3e2, 1e4, 1e15):
        hidden = torch.randn(40, 8, generator=generator) * scale
        weight = torch.randn(65, 8, generator=generator) * scale
        yield hidden, weight, (hidden @ weight.T).argmax(1)
        yield hidden, weight, torch.randint(0, 65, (40,), generator=generator)
    one = torch.zeros(4, 8)
    yield one, torch.zeros(65, 8), torch.arange(4)
    yield one, torch.zeros(1, 8), torch.zeros(4, dtype=torch.long)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_log_probability_is_never_positive(dtype, path):
    """verl #2656 was a fused kernel that returned positive ones."""
    for hidden, weight, targets in adversarial(path):
        hidden, weight = hidden.to(dtype).to(path[1]), weight.to(dtype).to(path[1])
        logps = dk.linear_token_logprobs(hidden, weight, targets.to(path[1]), backend=path[0])
        assert torch.isfinite(logps).all() and (logps <= 0).all()


def test_fp16_extremes(path):
    hidden = torch.full((3, 8), 200.0, dtype=torch.float16, device=path[1])
    weight = torch.linspace(-100, 100, 65, dtype=torch.float16, device=path[1])[:, None].repeat(1, 8)
    targets = torch.tensor([0, 30, 64], device=path[1])
    logps = dk.linear_token_logprobs(hidden, weight, targets, backend=path[0])
    wanted = reference.token_logprobs(hidden.double(), weight.double(), targets)
    assert error(logps, wanted) < 1e-6 and (logps <= 0).all()


def test_words_masked_by_a_bias_of_minus_infinity(path):
    case = make_case([6], 9000 if path[0] == "triton" else 90, 4, bias=True, device=path[1])
    case.bias[:4500] = float("-inf") if path[0] == "triton" else 0.0
    case.bias[:40] = float("-inf")
    case.targets[:] = case.bias.numel() - 1
    leaves = case.leaves()
    tokens = dk.linear_token_logprobs(leaves[0], leaves[1], case.targets, bias=case.bias, backend=path[0])
    wanted = reference.token_logprobs(case.hidden, case.weight, case.targets, bias=case.bias)
    torch.testing.assert_close(tokens.detach(), wanted)
    tokens.sum().backward()
    assert all(torch.isfinite(leaf.grad).all() for leaf in leaves[:2])


def test_forward_only_keeps_nothing(path):
    case = make_case([6, 3], device=path[1])
    tokens = dk.linear_token_logprobs(case.hidden, case.weight, case.targets, backend=path[0])
    assert not tokens.requires_grad


def test_the_loss_sees_the_same_log_probabilities(path):
    """Reference and actor log-probs come from the same path, so that a fresh policy has u = 0 exactly."""
    case = make_case([6, 3, 8], 301, 48, chunk_rows=8, device=path[1])
    steps = dk.linear_step_logprobs(case.hidden, case.weight, case.targets, case.cu, chunk_rows=17, backend=path[0])
    out = dk.linear_direct_advantage_loss(
        case.hidden, case.weight, case.targets, case.cu, case.advantages, steps, chunk_rows=17, backend=path[0]
    )
    assert torch.equal(out.step_logps, steps)


def test_gradcheck_in_fp64():
    case = make_case([3, 0, 4, 1], 7, 5, torch.float64, bias=True, shared_rows=True)

    def steps(hidden, weight, bias):
        return dk.linear_step_logprobs(
            hidden, weight, case.targets, case.cu, bias=bias, rows=case.rows, softcap=2.0, temperature=1.3, chunk_rows=3
        )

    assert torch.autograd.gradcheck(steps, case.leaves())
