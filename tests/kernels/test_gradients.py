"""Which gradients are made, with how many products, what scales them; the same bits every time."""

import pytest
import torch
from kernel_cases import fused, make_case
from torch.utils._python_dispatch import TorchDispatchMode


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


def test_gradcheck_in_fp64():
    case = make_case([3, 0, 4, 1], 7, 5, torch.float64, bias=True, shared_rows=True, chunk_rows=4)
    case.advantages, case.ref_logps = case.advantages.double(), case.ref_logps.double()

    def loss(*leaves):
        return fused(case, list(leaves), "torch", softcap=2.0, temperature=1.3).loss

    assert torch.autograd.gradcheck(loss, case.leaves())
