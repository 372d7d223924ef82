"""No pass over a large tensor that could be spared: gradients are written, not added to nought, and scaled once."""

import dapo_kernels as dk
import pytest
import torch
from kernel_cases import compare, fused, make_case
from torch.utils._python_dispatch import TorchDispatchMode

VIEWS = ("view", "reshape", "t", "slice", "detach", "as_strided", "expand", "alias", "transpose", "unsqueeze", "empty")


class Passes(TorchDispatchMode):
    """Names of the operations that read or write `size` elements or more."""

    def __init__(self, size):
        super().__init__()
        self.size, self.seen = size, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        tensors = [t for t in (out, *args) if isinstance(t, torch.Tensor)]
        if any(t.numel() >= self.size for t in tensors) and not name.startswith(VIEWS):
            self.seen.append(name)
        return out


def wide(path, dtype=torch.float32):
    """(case, leaves): a weight larger than any chunk of logits, hidden as large."""
    case = make_case([3, 2, 4], 50, 200, dtype, chunk_rows=4, device=path[1])
    return case, case.leaves()


def test_the_first_chunk_writes_the_gradient_of_the_weight(path):
    case, leaves = wide(path)
    with Passes(50 * 200) as passes:
        fused(case, leaves, path[0])
    # Of three chunks: the logits' product and the weight's gradient each, and no fill.
    assert len(passes.seen) == 9 and {name for name in passes.seen} <= {"mm", "addmm", "addmm_"}, passes.seen


@pytest.mark.parametrize(
    "dtype,upstream,wanted",
    [(torch.float32, 1, []), (torch.float32, 3, ["mul_"]), (torch.bfloat16, 1, None), (torch.bfloat16, 3, None)],
)
def test_backward_is_one_pass_or_none(dtype, upstream, wanted, path):
    case, leaves = wide(path, dtype)
    loss = fused(case, leaves, path[0]).loss
    with Passes(50 * 200) as passes:
        loss.backward(torch.tensor(float(upstream), device=path[1]))
    if wanted is None:
        wanted = ["_to_copy" if upstream == 1 else "mul"]
    if path[1] == "cpu":
        assert passes.seen == wanted
    else:  # whether upstream is 1 is not known on the host
        assert len(passes.seen) <= 1


def test_a_kept_graph_keeps_its_gradients(path):
    """Neither a second backward nor a hook that writes in place sees or spoils what is saved."""
    case, leaves = wide(path)
    loss = fused(case, leaves, path[0]).loss
    once = [g.clone() for g in torch.autograd.grad(loss, leaves, retain_graph=True)]
    for g in torch.autograd.grad(loss, leaves, retain_graph=True):
        g.zero_()
    handle = leaves[1].register_hook(lambda g: g.mul_(0))
    loss.backward(retain_graph=True)
    handle.remove()
    for leaf in leaves:
        leaf.grad = None
    (2 * loss).backward(retain_graph=True)
    loss.backward()
    for leaf, g in zip(leaves, once):
        torch.testing.assert_close(leaf.grad, 3 * g)
    loss = fused(case, leaves, path[0]).loss
    batched = torch.autograd.grad(loss, leaves, torch.tensor([1.0, 2.0], device=path[1]), is_grads_batched=True)
    for b, g in zip(batched, once):
        torch.testing.assert_close(b, torch.stack([g, 2 * g]))


def test_a_loss_scale_reaches_small_gradients():
    """In fp16 a gradient of 1e-9 is nought; multiplied by the loss scale before it is cast, it is not."""
    case, (hidden, weight) = wide(("torch", "cpu"), torch.float16)  # Triton's dlogits are fp16 themselves

    def gradient(normalizer, scale):
        loss = dk.linear_cross_entropy(hidden, weight, case.targets, normalizer, backend="torch")
        return torch.autograd.grad(scale * loss, weight)[0]

    torch.testing.assert_close(gradient(1e10, 1e10), gradient(1.0, 1.0), rtol=2e-3, atol=1e-6)


def test_a_batch_of_one_chunk_is_not_planned_nor_copied(path):
    """Where all logits fit a cache, each further operation costs as much as a pass over them."""
    case = make_case([4, 9, 3], device=path[1])
    leaves = case.leaves()
    with Passes(0) as passes:
        fused(case, leaves, path[0]).loss.backward()
    if path == ("torch", "cpu"):
        ran = [name for name in passes.seen if name != "_local_scalar_dense"]
        assert len(ran) <= 40 and not {"cat", "copy_", "where", "eq", "clamp", "masked_fill"} & {*ran}, ran


def test_rows_that_none_shares_take_one_pass(path, monkeypatch):
    """As a trainer's flat packs: each entry names its row, and the logits are read once all the same."""
    case = make_case([3, 2, 4], 50, 20, chunk_rows=4, device=path[1])
    case.hidden = torch.cat([case.hidden, case.hidden[:2] + 1])
    case.rows = torch.tensor([10, 3, 8, 0, 1, 7, 5, 2, 4])
    if path[0] == "triton":
        monkeypatch.delattr("dapo_kernels.chunk_triton.dlogits")
    compare(case, path[0])
    case.rows[1] = 10
    if path[0] == "triton":
        with pytest.raises(NameError, match="dlogits"):
            compare(case, path[0])
