"""torch.func.grad through the losses; a clear error where there is no rule."""

import dapo_kernels as dk
import pytest
import torch
from kernel_cases import make_case


def losses(case, backend):
    """name → loss of (hidden, weight, bias)."""
    rows, labels = case.targets % len(case.hidden), case.targets / 100

    def direct(hidden, weight, bias):
        data = (case.targets, case.cu, case.advantages, case.ref_logps, 0.3)
        return dk.linear_direct_advantage_loss(hidden, weight, *data, bias=bias, chunk_rows=5, backend=backend).loss

    def own(hidden, weight, bias):
        return dk.linear_segment_loss(
            hidden, weight, case.targets, case.cu, lambda s, t, a, b: s.square().sum(), bias=bias, backend=backend
        ).loss

    def value(hidden, weight, bias):
        return dk.linear_value_loss(hidden, weight[:1], bias[:1], rows, labels, backend=backend).loss

    return {"direct": direct, "own": own, "value": value}


@pytest.mark.parametrize("name", ["direct", "own", "value"])
def test_grad_is_autograds(name, path):
    case = make_case([4, 6, 2], bias=True, device=path[1])
    loss = losses(case, path[0])[name]
    leaves = case.leaves()
    wanted = torch.autograd.grad(3 * loss(*leaves), leaves)
    plain = [leaf.detach() for leaf in leaves]
    for found, g in zip(torch.func.grad(lambda *t: 3 * loss(*t), argnums=(0, 1, 2))(*plain), wanted, strict=True):
        torch.testing.assert_close(found, g)
    assert not torch.is_tensor(plain[0].grad)


@pytest.mark.parametrize("name", ["direct", "own", "value"])
def test_a_gradient_of_a_gradient_is_refused(name, path):
    case = make_case([4, 2], bias=True, device=path[1])
    hidden, *others = (leaf.detach() for leaf in case.leaves())
    once = torch.func.grad(losses(case, path[0])[name])
    assert once(hidden, *others).abs().sum() > 0
    with pytest.raises(NotImplementedError, match=r"^linear_(segment|value)_loss: .* torch\.func"):
        torch.func.grad(lambda h: once(h, *others).square().sum())(hidden)


def test_log_probabilities_say_that_they_have_no_rule(path):
    case = make_case([4, 2], device=path[1])

    def total(hidden):
        return dk.linear_token_logprobs(hidden, case.weight, case.targets, backend=path[0]).sum()

    with pytest.raises(NotImplementedError, match=r"^linear_token_logprobs: .* torch\.func"):
        torch.func.grad(total)(case.hidden)
