"""Log-probabilities of tokens and steps from hidden states and the lm_head weight, without the N×V logits."""

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from dapo_kernels import checks
from dapo_kernels.call import Backend, Call, choose_triton, gather_rows, kernel_context, on_device
from dapo_kernels.chunk_torch import segment_sums, spread
from dapo_kernels.gradients import Gradients
from dapo_kernels.tokens import TokenReader, Tokens

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class TokenStatistics(NamedTuple):
    """What linear_token_statistics returns: (N,) fp32 each, 0 for ignored targets."""

    logps: Tensor  # never positive; differentiable in hidden, weight and bias
    entropies: Tensor  # detached: −Σ p log p over the vocabulary, in nats
    lses: Tensor  # detached: log Σ exp(logits)


def linear_token_logprobs(
    hidden: Tensor,  # (N, H), or (T, H) with `rows`
    weight: Tensor,  # (V, H)
    targets: Tensor,  # (N,) int64
    *,
    bias: Tensor | None = None,
    rows: Tensor | None = None,  # (N,) int64: token i is predicted by hidden[rows[i]]
    softcap: float | None = None,
    temperature: float = 1.0,
    ignore_index: int = -100,
    chunk_rows: int | None = None,
    backend: Backend = "auto",
    process_group: "ProcessGroup | None" = None,
) -> Tensor:
    """(N,) fp32 log-probabilities, never positive, 0 for ignored targets; differentiable in hidden, weight and bias.

    One GEMM forward. The gradient of a token is known only in backward, which computes the logits again: four GEMMs
    in training, so a loss over them is cheaper as an objective of linear_segment_loss. Arguments and errors as there.
    """
    call = Call(
        hidden, weight, bias, targets, rows, softcap, temperature, ignore_index, chunk_rows, backend, "cu",
        group=process_group,
    )  # fmt: skip
    return token_statistics(call).logps


def linear_token_statistics(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    rows: Tensor | None = None,
    softcap: float | None = None,
    temperature: float = 1.0,
    ignore_index: int = -100,
    chunk_rows: int | None = None,
    backend: Backend = "auto",
    process_group: "ProcessGroup | None" = None,
) -> TokenStatistics:
    """linear_token_logprobs with each token's entropy and log-sum-exp, from the same pass over the logits.

    Of the distribution that the log-probabilities are of: after softcap and temperature. Not finite where the hidden
    row or all logits are not.
    """
    call = Call(
        hidden, weight, bias, targets, rows, softcap, temperature, ignore_index, chunk_rows, backend, "cu",
        statistics=True, group=process_group,
    )  # fmt: skip
    return token_statistics(call)


def linear_step_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    cu_steps: Tensor,  # (S+1,) int32 or int64
    *,
    bias: Tensor | None = None,
    rows: Tensor | None = None,
    softcap: float | None = None,
    temperature: float = 1.0,
    ignore_index: int = -100,
    chunk_rows: int | None = None,
    backend: Backend = "auto",
    process_group: "ProcessGroup | None" = None,
) -> Tensor:
    """(S,) fp32 sums of token log-probabilities over cu_steps[s]:cu_steps[s+1]; differentiable as the token ones."""
    call = Call(
        hidden, weight, bias, targets, rows, softcap, temperature, ignore_index, chunk_rows, backend, "cu_steps",
        group=process_group,
    )  # fmt: skip
    checks.cu_segments("cu_steps", cu_steps, targets.numel(), hidden)
    tokens = token_statistics(call).logps
    if torch.compiler.is_compiling():
        return torch.ops.dapo_kernels.segment_sums(tokens, cu_steps, backend)
    return _SegmentSums.apply(tokens, cu_steps.to(hidden.device, non_blocking=True), call)


def token_statistics(call: Call) -> TokenStatistics:
    """linear_token_statistics after its checks; without statistics of the call, log-probabilities alone."""
    if torch.compiler.is_compiling():
        logps, entropies, lses = torch.ops.dapo_kernels.token_logprobs(
            call.hidden, call.weight, call.bias, call.targets, call.rows, call.dtype, call.softcap, call.temperature,
            call.ignore_index, call.chunk_rows, call.backend, call.statistics,
        )  # fmt: skip
        return TokenStatistics(logps, entropies.detach(), lses.detach())
    if torch._C._are_functorch_transforms_active():
        raise NotImplementedError(
            "linear_token_logprobs: makes its gradients in backward, which torch.func's transforms cannot trace; use "
            "an objective of linear_segment_loss there, or torch.autograd.grad"
        )
    return TokenStatistics(*_TokenLogprobs.apply(call.hidden, call.weight, call.bias, call))


def forward(call: Call) -> Tokens:
    """Token log-probabilities, no gradients."""
    reader = TokenReader(call)
    chunks = call.chunks(None, 1)
    hidden, weight, bias = call.operands()
    logits = call.logits(weight, bias, chunks)
    for piece in (piece for chunk in chunks for piece in chunk.pieces):
        reader.read(logits, gather_rows(hidden, piece, weight.dtype), piece, False)
    return reader.finished()


def backward(
    call: Call, upstream: Tensor, needs: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of hidden, weight and bias, by those (N,) of the token log-probabilities."""
    call.statistics = False
    gradients = Gradients(call, needs)
    chunks = call.chunks(None, 1)
    hidden, weight, bias = call.operands()
    logits = call.logits(weight, bias, chunks)
    for piece in (piece for chunk in chunks for piece in chunk.pieces):
        x = gather_rows(hidden, piece, weight.dtype)
        logits.forward(x, call.targets[piece.start : piece.stop], piece, True)
        share = upstream[piece.start : piece.stop].to(call.logits_dtype)
        gradients.add(logits.backward(share, weight.dtype), x, weight, piece)
    return gradients.cast(call)


def sums(tokens: Tensor, offsets: Tensor, backend: Backend) -> Tensor:
    """Token log-probabilities (n,) to those of segments, by the backend."""
    if choose_triton(backend, tokens.device, tokens.dtype):
        from dapo_kernels.ops.segment_sum import segment_sum

        return segment_sum(tokens, offsets)
    return segment_sums(tokens, offsets)


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, call: Call
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        ctx.call = call
        ctx.save_for_backward(hidden, weight, bias)
        with kernel_context(hidden):
            tokens = forward(call)
        # Kept through save_for_backward alone, whose hooks may offload or recompute them.
        call.hidden = call.weight = call.bias = None
        ctx.mark_non_differentiable(*(t for t in (tokens.entropies, tokens.lses) if t is not None))
        return tokens.logps, tokens.entropies, tokens.lses

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        call = ctx.call
        call.hidden, call.weight, call.bias = ctx.saved_tensors
        with kernel_context(upstream):
            results = backward(call, upstream, ctx.needs_input_grad[:3])
        call.hidden = call.weight = call.bias = None
        return *results, None


class _SegmentSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, cu_segments: Tensor, call: Call) -> Tensor:
        ctx.save_for_backward(cu_segments)
        ctx.tokens = tokens.numel()
        with on_device(tokens):
            return sums(tokens, cu_segments, call.backend)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (cu_segments,) = ctx.saved_tensors
        return spread(upstream, cu_segments, ctx.tokens), None, None
