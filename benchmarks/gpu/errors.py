"""Every kernel against fp64 on the same inputs, at real sizes; the vocabulary of Qwen2.5, and GPT-2's odd one."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from dapo_kernels import linear_direct_advantage_loss, linear_step_logprobs, linear_value_loss, reference
from fused_loss import BETA, Problem, make_problem
from torch import Tensor

from .sections import Setup

SHAPES = [(512, 896, 151936), (512, 896, 50257)]
FORWARD, BACKWARD = 1e-3, 2e-2  # largest difference allowed, relative to the largest value
CHUNK_ROWS = (128, 16)  # by default the rows of a case fit one chunk; 16 also cuts steps in two


def rows(setup: Setup) -> Iterator[dict]:
    """One row an operation and shape; AssertionError, after the last of them, where one is beyond its limit."""
    wrong = []
    for shape in [(24, 16, 53)] if setup.dry else SHAPES:
        problem = make_problem(shape, setup.device.type)
        shared = torch.arange(shape[0], device=setup.device) // 2
        found = {"": _of_losses(problem, None) | _of_values(problem)}
        found |= {f", shared rows, chunks of {n}": _of_losses(problem, shared, n) for n in CHUNK_ROWS}
        for how, errors in found.items():
            for name, (error, limit) in errors.items():
                case = "N={} H={} V={}".format(*shape) + how
                yield {"suite": "gpu_errors", "case": case, "peer": name, "error": error, "limit": limit}
                if not error <= limit:  # NaN is wrong as well
                    wrong.append(f"{name} at {case}: {error:.2g} > {limit:.2g}")
    if wrong:
        raise AssertionError("; ".join(wrong))


def _leaves(problem: Problem, dtype: torch.dtype) -> list[Tensor]:
    return [t.detach().to(dtype).requires_grad_() for t in (problem.hidden, problem.weight)]


def _of_losses(p: Problem, index: Tensor | None, chunk_rows: int | None = None) -> dict[str, tuple[float, float]]:
    own, exact = _leaves(p, p.hidden.dtype), _leaves(p, torch.float64)
    data = (p.targets, p.cu_steps, p.advantages, p.ref_logps, BETA)
    out = linear_direct_advantage_loss(*own, *data, rows=index, statistics=True, chunk_rows=chunk_rows)
    out.loss.backward()
    with torch.no_grad():
        alone = linear_step_logprobs(*own, p.targets, p.cu_steps, rows=index, chunk_rows=chunk_rows)
        entropies, lses = reference.token_statistics(*exact, p.targets, rows=index)
    steps = reference.step_logprobs(reference.token_logprobs(*exact, p.targets, rows=index), p.cu_steps)
    loss = reference.direct_advantage_loss(steps, p.advantages.double(), p.ref_logps.double(), BETA, len(steps))
    loss.backward()
    forward = {"loss": (out.loss, loss), "step log-probabilities": (out.step_logps, steps)}
    forward |= {"linear_step_logprobs": (alone, steps), "entropies": (out.entropies, entropies)}
    forward |= {"log-sum-exps": (out.lses, lses)}
    backward = {"hidden's gradient": (own[0].grad, exact[0].grad), "weight's gradient": (own[1].grad, exact[1].grad)}
    return _errors(forward, FORWARD) | _errors(backward, BACKWARD)


def _of_values(p: Problem) -> dict[str, tuple[float, float]]:
    index = torch.arange(0, len(p.hidden), 3, device=p.hidden.device)
    targets = torch.linspace(0, 1, len(index), device=p.hidden.device)
    hidden, head = p.hidden.detach().requires_grad_(), p.weight[:1].detach().requires_grad_()
    exact = [t.detach().double().requires_grad_() for t in (hidden, head)]
    out = linear_value_loss(hidden, head, None, index, targets)
    out.loss.backward()
    loss, logits = reference.value_loss(*exact, 0.0, index, targets.double(), len(index))
    loss.backward()
    forward = {"value loss": (out.loss, loss), "values": (out.values, logits.sigmoid())}
    backward = {"value, hidden's gradient": (hidden.grad, exact[0].grad), "value, head's": (head.grad, exact[1].grad)}
    return _errors(forward, FORWARD) | _errors(backward, BACKWARD)


def _errors(pairs: dict[str, tuple[Tensor, Tensor]], limit: float) -> dict[str, tuple[float, float]]:
    return {
        name: (float((got.detach().double() - wanted.detach()).abs().max() / wanted.detach().abs().max()), limit)
        for name, (got, wanted) in pairs.items()
    }
