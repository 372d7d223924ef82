"""Ragged inputs for the fused functions, and how near two results must be."""

import os
from dataclasses import dataclass

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


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
        vocabulary=draw(st.integers(1, 70)),
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
