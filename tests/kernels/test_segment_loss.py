"""The engine against the fp64 definition, on ragged everything."""

import dataclasses

import dapo_kernels as dk
import pytest
import torch
from dapo_kernels import reference
from hypothesis import given
from kernel_cases import cases, compare, defined, drawn, error, fused, make_case, move


@drawn(60)
@given(case=cases())
def test_ragged_fp32(case, path):
    compare(move(case, path), path[0])


@pytest.mark.parametrize("vocabulary,width,lengths", [(17, 33, [0, 1, 40, 0, 7, 1]), (151_936, 9, [2, 0, 3])])
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
        # As a whole: which single element is furthest off is chance.
        ours, theirs = ((g.grad - c.grad).norm() for g in (a, b))
        assert ours <= theirs
        assert error(a.grad, c.grad) < 2e-2


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


def test_strided_offsets(path):
    """cu_steps, advantages and the like may be columns of a table."""
    case = make_case([4, 6, 2], device=path[1], bias=True)
    columns = {"cu": case.cu, "advantages": case.advantages, "ref_logps": case.ref_logps, "bias": case.bias}
    strided = dataclasses.replace(case, **{name: torch.stack([t, t + 1], 1)[:, 0] for name, t in columns.items()})
    assert not any(getattr(strided, name).is_contiguous() for name in columns)
    compare(strided, path[0])
    arguments = (strided.hidden, strided.weight, strided.targets)
    objective = dk.DPO(strided.ref_logps[:2], 0.3)
    for function in (
        lambda cu: dk.linear_step_logprobs(*arguments, cu, backend=path[0]),
        lambda cu: dk.linear_segment_loss(*arguments, cu[[0, 1, 3]], objective, backend=path[0]).loss,
        lambda cu: dk.linear_segment_loss(*arguments, cu, lambda s, t, a, b: s.square().sum(), backend=path[0]).loss,
    ):
        torch.testing.assert_close(function(strided.cu), function(case.cu))


def test_advantages_of_16_bits(path):
    """They are widened before they are divided by beta, as the kernel does it."""
    case = make_case([4, 6, 2], device=path[1])
    narrow = dataclasses.replace(case, advantages=case.advantages.bfloat16(), ref_logps=case.ref_logps.bfloat16())
    compare(narrow, path[0])


def test_normalizer_and_beta(path):
    case = make_case([4, 6, 2], device=path[1])
    arguments = (case.hidden, case.weight, case.targets, case.cu, case.advantages, case.ref_logps)
    by_default = dk.linear_direct_advantage_loss(*arguments, 0.2, backend=path[0]).loss
    by_number = dk.linear_direct_advantage_loss(*arguments, 0.2, 3, backend=path[0]).loss
    tensor = torch.tensor(6, device=path[1])
    by_tensor = dk.linear_direct_advantage_loss(*arguments, 0.2, tensor, backend=path[0]).loss
    torch.testing.assert_close(by_default, by_number)
    torch.testing.assert_close(by_default, 2 * by_tensor)
