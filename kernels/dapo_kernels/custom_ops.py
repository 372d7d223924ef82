"""The fused functions as torch.library operators, so that torch.compile and torch.export keep one graph around them.

Eager calls do not come here: an operator's dispatch costs more than a small loss. Both run the same code on the same
chunks, so compiled results are eager's bit for bit. An operator returns the gradients that its forward made as further
results, as it can save nothing else for a backward that is traced.
"""

# ruff: noqa: ANN001, ANN202 (a fake's arguments are those of the operator above it)

from typing import Any

import torch
from torch import Tensor

from dapo_kernels import checks, logprobs, value
from dapo_kernels.call import Call, kernel_context, on_device
from dapo_kernels.chunk_torch import spread
from dapo_kernels.objectives import FIXED
from dapo_kernels.segment_loss import compute, objective_of

# --------------------------------------------------------------------------------------------- losses of an objective


@torch.library.custom_op("dapo_kernels::objective_loss", mutates_args=())
def objective_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    cu_segments: Tensor | None,
    rows: Tensor | None,
    objective: str,  # name and layout, as objective_arguments gives them
    first: Tensor | None,  # its tensors, in order
    second: Tensor | None,
    third: Tensor | None,
    numbers: list[float],
    per_group: int,
    dtype: torch.dtype,
    softcap: float | None,
    temperature: float,
    ignore_index: int,
    chunk_rows: int | None,
    backend: str,
    cu_name: str,
    statistics: bool,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Loss, segment and token log-probabilities, entropies and log-sum-exps (empty: not asked for), and the gradients
    of hidden, weight and bias (empty: not needed)."""
    call = Call(
        hidden, weight, bias, targets, rows, softcap, temperature, ignore_index, chunk_rows, backend, cu_name,
        statistics, dtype,
    )  # fmt: skip
    if cu_segments is not None:
        checks.cu_segments(cu_name, cu_segments, targets.numel(), hidden)
    function = objective_of(FIXED, objective, (first, second, third), numbers)
    function.check(hidden, targets.numel() if cu_segments is None else cu_segments.numel() - 1, cu_segments)
    with kernel_context(hidden):
        loss, segments, tokens, gradients = compute(call, cu_segments, function, per_group, tuple(needs))
    return loss, segments, *tokens.results(), *_or_empty(gradients, hidden)


@objective_loss.register_fake
def _(hidden, weight, bias, targets, cu_segments, rows, objective, first, second, third, numbers, per_group, dtype,
      softcap, temperature, ignore_index, chunk_rows, backend, cu_name, statistics, needs):  # fmt: skip
    total = _logits_dtype(dtype)
    segments = targets.shape[0] if cu_segments is None else cu_segments.shape[0] - 1
    like = (
        torch.empty_like(hidden, dtype=hidden.dtype if rows is None else total),
        hidden.new_empty(weight.shape, dtype=total),
        None if bias is None else bias.new_empty(bias.shape, dtype=total),
    )
    gradients = _or_empty([g if need else None for g, need in zip(like, needs)], hidden)
    results = (hidden.new_empty(shape, dtype=total) for shape in ((), (segments,)))
    return *results, *_fake_tokens(targets, hidden, dtype, statistics), *gradients


def _keep_gradients(ctx: Any, inputs: tuple, output: tuple) -> None:
    ctx.save_for_backward(*output[-3:])
    ctx.dtypes = [None if t is None or not need else t.dtype for t, need in zip(inputs[:3], inputs[-1])]
    ctx.others = len(inputs) - 3
    ctx.set_materialize_grads(False)


def _scale_gradients(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple:
    found = [None] * 3
    if upstream is not None:
        found = [None if dtype is None else (g * upstream).to(dtype) for g, dtype in zip(ctx.saved_tensors, ctx.dtypes)]
    return *found, *[None] * ctx.others


objective_loss.register_autograd(_scale_gradients, setup_context=_keep_gradients)


# ------------------------------------------------------------------------------------------------- log-probabilities


@torch.library.custom_op("dapo_kernels::token_logprobs", mutates_args=())
def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    rows: Tensor | None,
    dtype: torch.dtype,
    softcap: float | None,
    temperature: float,
    ignore_index: int,
    chunk_rows: int | None,
    backend: str,
    statistics: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(N,) token log-probabilities, entropies and log-sum-exps (empty: not asked for); see linear_token_statistics."""
    call = Call(
        hidden, weight, bias, targets, rows, softcap, temperature, ignore_index, chunk_rows, backend, "cu", statistics,
        dtype,
    )  # fmt: skip
    with kernel_context(hidden):
        return logprobs.forward(call).results()


@token_logprobs.register_fake
def _(hidden, weight, bias, targets, rows, dtype, softcap, temperature, ignore_index, chunk_rows, backend,
      statistics):  # fmt: skip
    return _fake_tokens(targets, hidden, dtype, statistics)


@torch.library.custom_op("dapo_kernels::token_logprobs_backward", mutates_args=())
def token_logprobs_backward(
    upstream: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    rows: Tensor | None,
    dtype: torch.dtype,
    softcap: float | None,
    temperature: float,
    ignore_index: int,
    chunk_rows: int | None,
    backend: str,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of hidden, weight and bias (empty: not needed)."""
    call = Call(
        hidden, weight, bias, targets, rows, softcap, temperature, ignore_index, chunk_rows, backend, "cu", dtype=dtype
    )
    with kernel_context(hidden):
        return _or_empty(logprobs.backward(call, upstream, tuple(needs)), hidden)


@token_logprobs_backward.register_fake
def _(upstream, hidden, weight, bias, targets, rows, dtype, softcap, temperature, ignore_index, chunk_rows, backend,
      needs):  # fmt: skip
    like = [torch.empty_like(t) if need else None for t, need in zip((hidden, weight, bias), needs)]
    return _or_empty(like, hidden)


def _keep_arguments(ctx: Any, inputs: tuple, output: tuple) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.options = inputs[5:-1]


def _redo(ctx: Any, upstream: Tensor, *_: Any) -> tuple:
    needs = list(ctx.needs_input_grad[:3])
    found = torch.ops.dapo_kernels.token_logprobs_backward(upstream, *ctx.saved_tensors, *ctx.options, needs)
    return *(g if need else None for g, need in zip(found, needs)), *[None] * 9


token_logprobs.register_autograd(_redo, setup_context=_keep_arguments)


@torch.library.custom_op("dapo_kernels::segment_sums", mutates_args=())
def segment_sums(tokens: Tensor, cu_segments: Tensor, backend: str) -> Tensor:
    """(N,) token log-probabilities → (S,) sums over cu_segments[s]:cu_segments[s+1]."""
    checks.cu_segments("cu_steps", cu_segments, tokens.numel(), tokens)
    with on_device(tokens):
        return logprobs.sums(tokens, cu_segments.to(tokens.device), backend).clone()


@segment_sums.register_fake
def _(tokens, cu_segments, backend):
    return tokens.new_empty((cu_segments.shape[0] - 1,))


def _keep_offsets(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.tokens, ctx.device = inputs[0].shape[0], inputs[0].device


def _spread(ctx: Any, upstream: Tensor) -> tuple:
    (cu_segments,) = ctx.saved_tensors
    return spread(upstream, cu_segments.to(ctx.device), ctx.tokens), None, None


segment_sums.register_autograd(_spread, setup_context=_keep_offsets)


# ------------------------------------------------------------------------------------------------- the critic's loss


@torch.library.custom_op("dapo_kernels::value_loss", mutates_args=())
def value_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rows: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    normalizer: Tensor,
    kind: str,
    backend: str,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Loss, values, logits, and the gradients of hidden, weight and bias (empty: not needed)."""
    value.check_values(hidden, rows, targets, weights)
    loss, logits, gradients = value.compute(
        hidden, weight, bias, rows, targets, weights, normalizer, kind, backend, tuple(needs)
    )
    return loss, logits.sigmoid(), logits, *_or_empty(gradients, hidden)


@value_loss.register_fake
def _(hidden, weight, bias, rows, targets, weights, normalizer, kind, backend, needs):
    total = _logits_dtype(hidden.dtype)
    like = [torch.empty_like(t) if need else None for t, need in zip((hidden, weight, bias), needs)]
    results = (hidden.new_empty(shape, dtype=total) for shape in ((), (rows.shape[0],), (rows.shape[0],)))
    return *results, *_or_empty(like, hidden)


value_loss.register_autograd(_scale_gradients, setup_context=_keep_gradients)


# ------------------------------------------------------------------------------------------------------------ helpers


def _fake_tokens(targets, hidden, dtype, statistics):
    sizes = (targets.shape[0] if wanted else 0 for wanted in (True, statistics, statistics))
    return tuple(hidden.new_empty((size,), dtype=_logits_dtype(dtype)) for size in sizes)


def _logits_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _or_empty(gradients: Any, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    # An operator returns tensors; nought elements stand for None. Each is a tensor of its own: results may not alias.
    return tuple(like.new_empty(0) if g is None else g for g in gradients)
