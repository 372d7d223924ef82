"""linear_cross_entropy called as Liger's and Apple's: batches of sequences, reductions, shifted labels."""

import dapo_kernels as dk
import pytest
import torch
from torch.nn import functional as F


def batch(path, length=7):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, length, 8, generator=generator).to(path[1]).requires_grad_()
    weight = torch.randn(23, 8, generator=generator).to(path[1]).requires_grad_()
    targets = torch.randint(0, 23, (3, length), generator=generator)
    targets[torch.rand(3, length, generator=generator) < 0.3] = -100
    return hidden, weight, targets.to(path[1])


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("shift", [0, 1, 3])
@pytest.mark.parametrize("chunk_rows", [None, 4])
def test_is_torchs_of_shifted_sequences(reduction, shift, chunk_rows, path):
    hidden, weight, targets = batch(path)
    options = {"reduction": reduction, "shift": shift, "chunk_rows": chunk_rows, "backend": path[0]}
    loss = dk.linear_cross_entropy(hidden, weight, targets, **options)
    logits = (hidden @ weight.T)[:, : 7 - shift]
    wanted = F.cross_entropy(logits.flatten(0, 1), targets[:, shift:].flatten(), reduction=reduction)
    assert loss.shape == ((3, 7 - shift) if reduction == "none" else ())
    torch.testing.assert_close(loss.flatten(), wanted.flatten(), atol=1e-5, rtol=1e-5)
    found = torch.autograd.grad(loss.square().sum(), (hidden, weight))
    for a, b in zip(found, torch.autograd.grad(wanted.square().sum(), (hidden, weight)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_one_sequence_and_a_normalizer(path):
    hidden, weight, targets = batch(path)
    options = {"backend": path[0], "shift": 1}
    alone = [dk.linear_cross_entropy(h, weight, t, 4, **options) for h, t in zip(hidden, targets)]
    torch.testing.assert_close(sum(alone), dk.linear_cross_entropy(hidden, weight, targets, 4, **options))


@pytest.mark.parametrize(
    "name,wrong",
    [
        ("reduction", {"reduction": "batchmean"}),
        ("normalizer", {"reduction": "sum", "normalizer": 3}),
        ("shift", {"shift": 8}),
        ("shift", {"shift": -1}),
        ("targets", {"targets": torch.zeros(3, 6, dtype=torch.int64)}),
        ("hidden", {"targets": torch.zeros(21, dtype=torch.int64)}),
        ("rows", {"rows": torch.zeros(21, dtype=torch.int64)}),
    ],
)
def test_names_the_argument(name, wrong):
    hidden, weight, targets = batch(("torch", "cpu"))
    with pytest.raises(ValueError, match=f"^{name}: "):
        dk.linear_cross_entropy(**{"hidden": hidden, "weight": weight, "targets": targets} | wrong)
