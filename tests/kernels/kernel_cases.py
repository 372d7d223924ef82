"""Ragged inputs for the fused functions, the direct advantage loss of them, and how near two results must be."""

import os
from dataclasses import dataclass, replace

import dapo_kernels as dk
import torch
from dapo_kernels import reference
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# On a GPU each power of two is compiled for each combination of options.
VOCABULARIES = st.sampled_from((1, 37, 70)) if torch.cuda.is_available() and not INTERPRETED else st.integers(1, 70)


@dataclass
class Case:
    hidden: torch.Tensor
    weight: torch.Tensor
    targets: torch.Tensor
    cu: torch.Tensor
    bias: torch.Tensor | None
    rows: torch.Tensor | None
    advantages: torch.Tensor
    ref_logps: torch.Tensor
    softcap: float | None
    temperature: float
    chunk_rows: int | None

    @property
    def options(self):
        return {"rows": self.rows, "softcap": self.softcap, "temperature": self.temperature}

    @property
    def segments(self):
        return self.cu.numel() - 1

    def leaves(self, dtype=None):
        """Fresh leaves of hidden, weight and bias (bias last, if there is one)."""
        given = [t for t in (self.hidden, self.weight, self.bias) if t is not None]
        return [t.detach().clone().to(dtype or t.dtype).requires_grad_() for t in given]


def make_case(
    lengths,
    vocabulary=37,
    width=20,
    dtype=torch.float32,
    bias=False,
    shared_rows=False,
    ignore=False,
    softcap=None,
    temperature=1.0,
    chunk_rows=None,
    seed=0,
    device="cpu",
):
    """Random tensors for steps of the given lengths."""
    generator = torch.Generator().manual_seed(seed)
    entries = sum(lengths)
    # With shared rows there are fewer hidden rows than entries, in no order, and some are never read.
    rows = torch.randint(0, max(entries // 2, 1) + 2, (entries,), generator=generator) if shared_rows else None
    height = entries if rows is None else max(entries // 2, 1) + 2
    targets = torch.randint(0, vocabulary, (entries,), generator=generator)
    if ignore:
        targets[torch.rand(entries, generator=generator) < 0.3] = -100
    cu = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    case = Case(
        (normal(height, width) * 0.5).to(dtype),
        (normal(vocabulary, width) * 0.7).to(dtype),
        targets,
        cu,
        normal(vocabulary).to(dtype) if bias else None,
        rows,
        normal(len(lengths)),
        normal(len(lengths)) * 3,
        softcap,
        temperature,
        chunk_rows,
    )
    for name, value in vars(case).items():
        if isinstance(value, torch.Tensor):
            setattr(case, name, value.to(device))
    return case


@st.composite
def cases(draw, dtypes=(torch.float32,), longest=12):
    return make_case(
        draw(st.lists(st.integers(0, longest), max_size=8)),
        vocabulary=draw(VOCABULARIES),
        width=draw(st.integers(1, 40)),
        dtype=draw(st.sampled_from(dtypes)),
        bias=draw(st.booleans()),
        shared_rows=draw(st.booleans()),
        ignore=draw(st.booleans()),
        softcap=draw(st.sampled_from([None, 3.0])),
        temperature=draw(st.sampled_from([1.0, 0.6, 1.7])),
        chunk_rows=draw(st.sampled_from([None, 1, 3, 8])),
        seed=draw(st.integers(0, 10_000)),
    )


def error(got, wanted):
    """Largest difference, relative to the largest wanted value."""
    if wanted.numel() == 0:
        return 0.0
    got, wanted = got.detach().double(), wanted.detach().double()
    return float((got - wanted).abs().max() / wanted.abs().max().clamp(min=1e-12))


def drawn(examples):
    """hypothesis settings: the same draws every time; fewer where each takes the interpreter a second."""
    return settings(
        max_examples=examples // 5 if INTERPRETED else examples,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


def fused(case, leaves, backend, **changes):
    options = {**case.options, "bias": leaves[2] if len(leaves) > 2 else None, "chunk_rows": case.chunk_rows, **changes}
    return dk.linear_direct_advantage_loss(
        leaves[0],
        leaves[1],
        case.targets,
        case.cu,
        case.advantages,
        case.ref_logps,
        beta=0.3,
        normalizer=7,
        backend=backend,
        **options,
    )


def defined(case, leaves):
    bias = leaves[2] if len(leaves) > 2 else None
    tokens = reference.token_logprobs(leaves[0], leaves[1], case.targets, bias=bias, **case.options)
    steps = reference.step_logprobs(tokens, case.cu)
    dtype = steps.dtype
    loss = reference.direct_advantage_loss(steps, case.advantages.to(dtype), case.ref_logps.to(dtype), 0.3, 7)
    return loss, steps


def compare(case, backend, tolerance=1e-4, **changes):
    got, wanted = case.leaves(), case.leaves(torch.float64)
    out = fused(case, got, backend, **changes)
    loss, steps = defined(case, wanted)
    assert out.step_logps.shape == (case.segments,) and not out.step_logps.requires_grad
    assert (out.step_logps <= 0).all()
    assert error(out.step_logps, steps) < tolerance
    assert abs(float(out.loss.detach()) - float(loss.detach())) <= tolerance * max(1.0, abs(float(loss.detach())))
    out.loss.backward()
    if loss.requires_grad and case.targets.numel():
        loss.backward()
    for mine, theirs in zip(got, wanted):
        assert mine.grad.dtype == mine.dtype
        expected = torch.zeros_like(theirs) if theirs.grad is None else theirs.grad
        # A gradient may be zero throughout (V = 1): then measure against the size of the loss's coefficients.
        scale = expected.abs().max().clamp(min=1e-3) if expected.numel() else torch.ones(())
        assert ((mine.grad.double() - expected).abs() <= tolerance * scale).all()
    return out


def move(case, path):
    moved = {k: v.to(path[1]) if isinstance(v, torch.Tensor) else v for k, v in vars(case).items()}
    return replace(case, **moved)
