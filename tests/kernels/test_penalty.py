"""Label smoothing and z-loss: F.cross_entropy's and a squared log-sum-exp, with their gradients."""

import dapo_kernels as dk
import pytest
import torch
from dapo_kernels import reference
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import cases, drawn, make_case, move

PENALTIES = [(0.1, 0.0), (0.0, 1e-2), (0.2, 1e-3), (1.0, 0.0)]


def fused(case, leaves, penalties, backend, **changes):
    options = {**case.options, "bias": leaves[2] if len(leaves) > 2 else None, "chunk_rows": case.chunk_rows} | changes
    smoothing, z_loss = penalties
    return dk.linear_cross_entropy(
        *leaves[:2], case.targets, 7, label_smoothing=smoothing, z_loss=z_loss, backend=backend, **options
    )


def compare(case, penalties, backend, tolerance, **changes):
    got, exact = case.leaves(), case.leaves(torch.float64)
    loss = fused(case, got, penalties, backend, **changes)
    bias = exact[2] if len(exact) > 2 else None
    wanted = reference.cross_entropy(*exact[:2], case.targets, 7, *penalties, bias=bias, **case.options)
    assert abs(loss.detach() - wanted.detach()) <= tolerance * max(1.0, abs(wanted.detach()))
    (3 * loss).backward()
    if case.targets.numel():
        (3 * wanted).backward()
    for mine, theirs in zip(got, exact):
        expected = torch.zeros_like(theirs) if theirs.grad is None else theirs.grad
        scale = expected.abs().max().clamp(min=1e-2) if expected.numel() else 1
        assert ((mine.grad - expected).abs() <= tolerance * scale).all()


@drawn(40)
@given(case=cases(), penalties=st.sampled_from(PENALTIES))
def test_ragged(case, penalties, path):
    case = move(case, path)
    if case.softcap is not None:
        penalties = (0.0, penalties[1])
    compare(case, penalties, path[0], 1e-4)


@pytest.mark.parametrize("shared_rows", [False, True])
def test_low_precision(shared_rows, path):
    options = {"shared_rows": shared_rows, "bias": True, "ignore": True, "chunk_rows": 20, "device": path[1]}
    case = make_case([9, 0, 30, 14], 301, 48, torch.bfloat16, **options)
    compare(case, (0.2, 1e-2), path[0], 2e-2)


def test_is_torchs_and_a_mean_of_tokens_that_count(path):
    case = make_case([9, 6], ignore=True, device=path[1])
    options = {"label_smoothing": 0.3}
    loss = dk.linear_cross_entropy(case.hidden, case.weight, case.targets, backend=path[0], **options)
    wanted = torch.nn.functional.cross_entropy(case.hidden @ case.weight.T, case.targets, **options)
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("penalties", PENALTIES[:3])
def test_one_graph_and_the_same_bits(penalties, path):
    case = make_case([4, 6, 2], bias=True, device=path[1])
    found = []
    torch._dynamo.reset()

    def model(*leaves):
        return 2 * fused(case, [3 * leaves[0], *leaves[1:]], penalties, path[0])

    for function in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        leaves = case.leaves()
        loss = function(*leaves)
        loss.backward()
        found.append([loss.detach(), *(leaf.grad for leaf in leaves)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_gradcheck_and_segments_longer_than_a_chunk():
    case = make_case([3, 0, 9, 1], 7, 5, torch.float64, bias=True, shared_rows=True)

    def loss(*leaves):
        data = (case.targets, case.cu, dk.CrossEntropy(3.0, 0.2, 0.1))
        options = case.options | {"temperature": 1.3, "chunk_rows": 4}
        return dk.linear_segment_loss(*leaves[:2], *data, bias=leaves[2], **options).loss

    assert torch.autograd.gradcheck(loss, case.leaves())


def test_a_row_that_is_not_finite(path):
    case = make_case([4, 5], device=path[1])
    case.hidden[3, 2] = float("nan")
    assert not torch.isfinite(fused(case, case.leaves(), (0.1, 1e-2), path[0]))


@pytest.mark.parametrize(
    "name,wrong",
    [
        ("label_smoothing", {"label_smoothing": 1.5}),
        ("label_smoothing", {"label_smoothing": 0.1, "softcap": 30.0}),
        ("label_smoothing", {"label_smoothing": 0.1, "reduction": "none"}),
        ("z_loss", {"z_loss": -1.0}),
        ("z_loss", {"z_loss": float("nan")}),
        ("z_loss", {"z_loss": 1e-4, "reduction": "none"}),
    ],
)
def test_names_the_argument(name, wrong):
    case = make_case([4])
    with pytest.raises(ValueError, match=f"^{name}: "):
        dk.linear_cross_entropy(case.hidden, case.weight, case.targets, **wrong)
