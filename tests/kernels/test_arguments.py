"""Wrong arguments: a ValueError that begins with the argument's name, before any work."""

import dapo_kernels as dk
import pytest
import torch

N, H, V = 6, 4, 9


def good():
    return {
        "hidden": torch.randn(N, H),
        "weight": torch.randn(V, H),
        "targets": torch.tensor([0, 1, 2, 3, 8, -100]),
        "cu_steps": torch.tensor([0, 2, 6], dtype=torch.int32),
        "advantages": torch.randn(2),
        "ref_logps": torch.randn(2),
        "beta": 0.01,
    }


WRONG = {
    "hidden": [torch.randn(N), torch.randn(N, H, 1), torch.ones(N, H, dtype=torch.int64), [1.0], None],
    "weight": [
        torch.randn(V, H + 1),
        torch.randn(V),
        torch.randn(0, H),
        torch.randn(V, H).double(),
        torch.randn(V, H, device="meta"),
    ],
    "targets": [
        torch.zeros(N + 1, dtype=torch.int64),
        torch.zeros(N),
        torch.tensor([0, 1, 2, 3, V, 0]),
        torch.tensor([0, 1, 2, 3, -1, 0]),
        torch.zeros(N, 1, dtype=torch.int64),
        torch.zeros(N, dtype=torch.int64, device="meta"),
    ],
    "cu_steps": [
        torch.tensor([0, 2, 5], dtype=torch.int32),
        torch.tensor([1, 2, 6], dtype=torch.int32),
        torch.tensor([0, 4, 2, 6], dtype=torch.int32),
        torch.tensor([0.0, 2.0, 6.0]),
        torch.tensor([], dtype=torch.int32),
        torch.tensor([[0, 2, 6]], dtype=torch.int32),
        [0, 2, 6],
    ],
    "advantages": [torch.randn(3), torch.ones(2, dtype=torch.int64), torch.tensor([0.0, float("nan")]), 1.0],
    "ref_logps": [torch.randn(1), torch.randn(2, 1), torch.tensor([0.0, float("-inf")])],
    "beta": [0.0, -1.0, float("nan"), float("inf"), None],
    "bias": [torch.randn(V + 1), torch.randn(1, V)],
    "rows": [torch.zeros(N), torch.full((N,), N), torch.full((N,), -1), torch.zeros(N, 1, dtype=torch.int64)],
    "softcap": [0.0, -3.0],
    "temperature": [0.0, -1.0, float("nan")],
    "chunk_rows": [0, -4],
    "backend": ["cuda", "triton"],
}


@pytest.mark.parametrize("name,index", [(n, i) for n, wrong in WRONG.items() for i in range(len(wrong))])
def test_names_the_argument(name, index, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match=f"^{name}: "):
        dk.linear_direct_advantage_loss(**{**good(), name: WRONG[name][index]})


def test_good_arguments_pass():
    assert torch.isfinite(dk.linear_direct_advantage_loss(**good()).loss)


def of_direct(**changes):
    return dk.DirectAdvantage(**{"advantages": torch.randn(2), "ref_logps": torch.randn(2), **changes})


def of_tokens(**changes):
    return dk.ClippedPolicyGradient(**{"advantages": torch.randn(N), "old_logps": torch.randn(N), **changes})


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize(
    "name,objective,cu",
    [
        ("advantages", of_direct(advantages=torch.randn(1), beta=0.1, normalizer=2), [0, 2, 6]),
        ("advantages", of_direct(advantages=torch.randn(3), beta=0.1, normalizer=2), [0, 2, 6]),
        ("ref_logps", of_direct(ref_logps=torch.randn(1), beta=0.1, normalizer=2), [0, 2, 6]),
        ("beta", of_direct(beta=0, normalizer=2), [0, 2, 6]),
        ("normalizer", of_direct(beta=0.1, normalizer=torch.ones(1)), [0, 2, 6]),
        ("normalizer", dk.CrossEntropy(torch.ones(2)), None),
        ("advantages", of_tokens(advantages=torch.randn(1)), None),
        ("old_logps", of_tokens(old_logps=torch.randn(N, 1)), None),
        ("cu_segments", of_tokens(), [0, N]),
        ("cu_segments", dk.DPO(torch.randn(3), 0.1), [0, 1, 2, 6]),
        ("ref_logps", dk.DPO(torch.randn(1), 0.1), [0, 2, 6]),
    ],
)
def test_objectives_check_their_fields(name, objective, cu, backend, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    given = {k: v for k, v in good().items() if k in ("hidden", "weight", "targets")}
    cu = None if cu is None else torch.tensor(cu)
    with pytest.raises(ValueError, match=f"^{name}: "):
        dk.linear_segment_loss(**given, cu_segments=cu, objective=objective, backend=backend)


def test_groups_have_segments():
    given = {k: v for k, v in good().items() if k in ("hidden", "weight", "targets")}
    with pytest.raises(ValueError, match=r"^segments_per_group: must be at least 1, got 0"):
        dk.linear_segment_loss(**given, cu_segments=None, objective=dk.CrossEntropy(1), segments_per_group=0)


@pytest.mark.parametrize("name", ["advantages", "ref_logps", "normalizer"])
def test_constants_that_want_a_gradient(name):
    """None would come back for them: an error says so, except where nothing asks for gradients."""
    wanting = {**good(), name: torch.tensor(2.0) if name == "normalizer" else torch.randn(2)}
    wanting[name].requires_grad_()
    with pytest.raises(ValueError, match=f"^{name}: requires a gradient"):
        dk.linear_direct_advantage_loss(**wanting)
    with torch.no_grad():
        assert torch.isfinite(dk.linear_direct_advantage_loss(**wanting).loss)


@pytest.mark.parametrize("name", ["targets", "normalizer"])
def test_constants_of_the_value_loss(name):
    given = {"hidden": torch.randn(N, H), "weight": torch.randn(H), "bias": None, "rows": torch.tensor([0, 1])}
    given |= {"targets": torch.tensor([0.0, 1.0]), "normalizer": torch.tensor(2.0)}
    given[name].requires_grad_()
    with pytest.raises(ValueError, match=f"^{name}: requires a gradient"):
        dk.linear_value_loss(**given)


def test_normalizer_of_cross_entropy():
    given = {k: v for k, v in good().items() if k in ("hidden", "weight", "targets")}
    for wrong in (torch.ones(1), torch.ones((), requires_grad=True)):
        with pytest.raises(ValueError, match=r"^normalizer: "):
            dk.linear_cross_entropy(**given, normalizer=wrong)


@pytest.mark.parametrize("name", ["hidden", "weight", "targets", "bias", "rows", "temperature"])
def test_every_function_checks(name):
    given = {k: v for k, v in good().items() if k in ("hidden", "weight", "targets")}
    for wrong in WRONG[name]:
        for function in (dk.linear_token_logprobs, dk.linear_cross_entropy):
            with pytest.raises(ValueError, match=f"^{name}: "):
                function(**{**given, name: wrong})
        with pytest.raises(ValueError, match=f"^{name}: "):
            dk.linear_step_logprobs(**{**given, "cu_steps": good()["cu_steps"], name: wrong})
        with pytest.raises(ValueError, match=f"^{name}: "):
            dk.linear_segment_loss(
                **{**given, "cu_segments": good()["cu_steps"], "objective": dk.CrossEntropy(1), name: wrong}
            )


@pytest.mark.parametrize(
    "name,wrong",
    [
        ("hidden", torch.randn(3)),
        ("weight", torch.randn(2, H)),
        ("weight", torch.randn(H + 1)),
        ("bias", torch.randn(2)),
        ("rows", torch.tensor([0, N])),
        ("rows", torch.tensor([0.0, 1.0])),
        ("targets", torch.tensor([0.5, 1.5])),
        ("targets", torch.tensor([0.5])),
        ("weights", torch.tensor([1.0])),
        ("weights", torch.tensor([1, 2])),
        ("weights", torch.tensor([1.0, -0.5])),
        ("weights", torch.tensor([1.0, float("inf")])),
        ("weights", torch.tensor([1.0, float("nan")])),
        ("kind", "l1"),
    ],
)
def test_value_loss_checks(name, wrong):
    arguments = {"hidden": torch.randn(N, H), "weight": torch.randn(H), "bias": torch.randn(1)}
    arguments |= {"rows": torch.tensor([0, 1]), "targets": torch.tensor([0.0, 1.0])}
    assert torch.isfinite(dk.linear_value_loss(**arguments).loss)
    with pytest.raises(ValueError, match=f"^{name}: "):
        dk.linear_value_loss(**{**arguments, name: wrong})


def test_errors_come_before_work(monkeypatch):
    def work(*_):
        raise AssertionError("worked before checking")

    monkeypatch.setattr("dapo_kernels.segment_loss.compute", work)
    with pytest.raises(ValueError, match=r"^ref_logps: "):
        dk.linear_direct_advantage_loss(**{**good(), "ref_logps": torch.randn(5)})
