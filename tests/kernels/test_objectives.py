"""The engine's objectives, the package's and one's own, against the papers' formulas in fp64."""

import dapo_kernels as dk
import pytest
import torch
from dapo_kernels import reference
from kernel_cases import error, make_case
from torch.nn import functional as F


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


def test_an_objective_must_return_a_scalar():
    case = make_case([3, 2])
    with pytest.raises(ValueError, match=r"^objective: must return a scalar"):
        dk.linear_segment_loss(case.hidden, case.weight, case.targets, case.cu, lambda s, t, a, b: s)
