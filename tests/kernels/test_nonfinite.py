"""What is not a number stays so: never a log-probability of 0 (p = 1), never a finite loss."""

import os

import dapo_kernels as dk
import pytest
import torch
from kernel_cases import make_case

BAD = [float("nan"), float("inf"), float("-inf")]


def spoilt(path, how, dtype=torch.float32, **options):
    """A case whose hidden row 4 is not finite (in one place, or throughout), read by the entry 4 alone."""
    case = make_case([3, 4, 2], 4100 if path[0] == "triton" else 61, 8, dtype, device=path[1], **options)
    value, everywhere = how
    case.hidden[4, slice(None) if everywhere else 3] = value
    return case


@pytest.mark.parametrize("how", [(value, everywhere) for value in BAD for everywhere in (False, True)])
@pytest.mark.parametrize("dtype,bias", [(torch.float32, False), (torch.bfloat16, True)])
def test_log_probabilities_of_a_row_that_is_not_finite(how, dtype, bias, path):
    case = spoilt(path, how, dtype, bias=bias)
    leaves = case.leaves()
    arguments = {"bias": leaves[2] if bias else None, "backend": path[0]}
    with torch.no_grad():
        forward_only = dk.linear_token_logprobs(leaves[0], leaves[1], case.targets, **arguments)
    tokens = dk.linear_token_logprobs(leaves[0], leaves[1], case.targets, **arguments)
    steps = dk.linear_step_logprobs(leaves[0], leaves[1], case.targets, case.cu, **arguments)
    for found in (forward_only, tokens.detach()):
        assert not torch.isfinite(found[4]) and not found[4] > 0
        assert torch.isfinite(found[:4]).all() and torch.isfinite(found[5:]).all()
    assert not torch.isfinite(steps[1]) and torch.isfinite(steps[[0, 2]]).all()
    tokens.sum().backward()
    assert leaves[1].grad.isnan().any()


def direct_advantage(case, data, old, **options):
    return dk.linear_direct_advantage_loss(*data, case.cu, case.advantages, case.ref_logps, **options).loss


def cross_entropy(case, data, old, **options):
    return dk.linear_cross_entropy(*data, **options)


def clipped(case, data, old, **options):
    return dk.linear_segment_loss(*data, None, dk.ClippedPolicyGradient(-old, old), **options).loss


def dpo(case, data, old, **options):
    return dk.linear_segment_loss(*data, case.cu[[0, 1, 3]], dk.DPO(case.ref_logps[:2], 0.1), **options).loss


@pytest.mark.parametrize("loss_of", [direct_advantage, cross_entropy, clipped, dpo])
@pytest.mark.parametrize("value,chunk_rows", [(float("nan"), None), (float("nan"), 3), (float("inf"), 3)])
def test_losses_of_a_row_that_is_not_finite(loss_of, value, chunk_rows, path):
    case = spoilt(path, (value, False))
    leaves = case.leaves()
    old = torch.full(case.targets.shape, -3.0, device=case.hidden.device)
    loss = loss_of(case, (*leaves, case.targets), old, chunk_rows=chunk_rows, backend=path[0])
    assert not torch.isfinite(loss)
    loss.backward()
    assert not torch.isfinite(leaves[0].grad[4]).all() and not torch.isfinite(leaves[1].grad).all()
    with torch.no_grad():
        again = loss_of(case, (*leaves, case.targets), old, chunk_rows=chunk_rows, backend=path[0])
    assert not torch.isfinite(again)


@pytest.mark.parametrize("vocabulary", [1, 4100])
def test_a_wholly_masked_vocabulary(vocabulary, path):
    case = make_case([3], vocabulary, 4, bias=True, device=path[1])
    case.bias[:] = float("-inf")
    leaves = case.leaves()
    tokens = dk.linear_token_logprobs(leaves[0], leaves[1], case.targets, bias=leaves[2], backend=path[0])
    assert tokens.isnan().all()
    out = dk.linear_cross_entropy(leaves[0], leaves[1], case.targets, bias=leaves[2], backend=path[0])
    assert out.isnan()


def test_a_masked_target_is_minus_infinity(path):
    case = make_case([3], 30, 4, bias=True, device=path[1])
    case.bias[case.targets[1]] = float("-inf")
    case.targets[0] = case.targets[2] = (case.targets[1] + 1) % 30
    tokens = dk.linear_token_logprobs(case.hidden, case.weight, case.targets, bias=case.bias, backend=path[0])
    assert tokens[1] == float("-inf") and torch.isfinite(tokens[[0, 2]]).all()


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("kind", ["bce", "mse"])
@pytest.mark.parametrize("target", [0.0, 0.4, 1.0])
def test_values_of_a_row_that_is_not_finite(value, kind, target, path):
    hidden = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).to(path[1])
    hidden[2, 3] = value
    hidden.requires_grad_()
    weight = torch.linspace(-1, 1, 6, device=path[1]).requires_grad_()
    rows, targets = torch.tensor([0, 2, 3], device=path[1]), torch.full((3,), target, device=path[1])
    out = dk.linear_value_loss(hidden, weight, None, rows, targets, kind=kind, backend=path[0])
    assert not torch.isfinite(out.loss) and not torch.isfinite(out.logits[1])
    _, d_weight = torch.autograd.grad(out.loss, (hidden, weight))
    assert not torch.isfinite(d_weight).all()


if os.environ.get("TRITON_INTERPRET") == "1":
    import triton
    import triton.language as tl

    @triton.jit
    def _minimum_kernel(x_ptr, out_ptr):
        x = tl.load(x_ptr)
        tl.store(out_ptr, tl.minimum(x, 0.0))
        tl.store(out_ptr + 1, tl.maximum(x, 0.0))

    def test_the_interpreter_drops_nan_as_a_gpu_does():
        """Else the tests above prove nothing about a GPU."""
        out = torch.full((2,), 7.0)
        _minimum_kernel[(1,)](torch.tensor([float("nan")]), out)
        assert out.tolist() == [0.0, 0.0]
