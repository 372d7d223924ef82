"""The segment-aligned engine: hidden states, lm_head weight and an objective over segments → loss and gradients."""

import logging
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from dapo_kernels import checks
from dapo_kernels.chunk_torch import TorchLogits, segment_sums, spread
from dapo_kernels.compiling import breaks_graph
from dapo_kernels.gradients import Gradients, save_gradients, scaled
from dapo_kernels.plan import Chunk, Piece, default_chunk_rows, make_chunks

log = logging.getLogger("dapo_fast.kernels")

Backend = Literal["auto", "triton", "torch"]
Objective = Callable[[Tensor, Tensor, int, int], Tensor]
OWN_OBJECTIVE = (
    "dapo_kernels.linear_segment_loss: the objective is a Python function of one's own, which runs between two graphs; "
    "dapo_kernels.DirectAdvantage, CrossEntropy, ClippedPolicyGradient and DPO stay within one"
)


class SegmentLoss(NamedTuple):
    """What linear_segment_loss returns."""

    loss: Tensor  # 0-d, differentiable in hidden, weight and bias
    segment_logps: Tensor  # (S,) fp32, detached: for metrics
    token_logps: Tensor  # (N,) fp32, detached


def linear_segment_loss(
    hidden: Tensor,  # (N, H), or (T, H) with `rows`; bf16, fp16, fp32 or fp64
    weight: Tensor,  # (V, H) lm_head, hidden's dtype (any under autocast)
    targets: Tensor,  # (N,) int64 or int32
    cu_segments: Tensor | None,  # (S+1,) int32 or int64; None: every token is a segment
    objective: Objective,
    *,
    bias: Tensor | None = None,  # (V,)
    rows: Tensor | None = None,  # (N,) int64: token i is predicted by hidden[rows[i]]
    softcap: float | None = None,
    temperature: float = 1.0,
    ignore_index: int = -100,
    segments_per_group: int | None = None,
    chunk_rows: int | None = None,
    backend: Backend = "auto",
) -> SegmentLoss:
    """A loss over log-probabilities of segments, with its gradients, never holding the N×V logits.

    Segment s owns tokens cu_segments[s]:cu_segments[s+1]; its log-probability is their sum (0 where it has none).
    Logits are `hidden @ weight.T + bias`, then `softcap * tanh(logits / softcap)`, then divided by temperature.

    `objective(segment_logps, token_logps, start, stop)` gets the (stop-start,) log-probabilities of segments
    start:stop, and those of their tokens, and returns a scalar; the loss is the sum over chunks. It may be any
    differentiable PyTorch function whose value for the whole batch is that sum: no dependence between segments of
    different chunks, except that `segments_per_group` adjacent segments (a preference pair: 2) always come together
    (None: the objective's attribute of that name, or 1). An ignored token (target == ignore_index) has log-probability
    0 and no gradient.

    Where a gradient is needed, it is made in this call, chunk by chunk: three GEMMs, or fewer where hidden or weight
    needs none; without gradients one. Logits and their reductions are fp32 (fp64 for fp64 inputs); the weight's
    gradient is summed in fp32, and cast once, in backward. A group longer than `chunk_rows` is still exact: its logits
    are computed twice (a fourth GEMM for its tokens). The result is differentiable once.

    On a GPU, keep cu_segments and rows on the CPU if you can: cutting chunks reads them on the host.
    Same inputs, same bits, on the same device and thread count.

    Under torch.compile this is one operator in the graph where the objective is one of this package's; any other
    function breaks the graph.

    Raises ValueError, naming the argument, for wrong shapes, dtypes, devices; values (targets, cu_segments, rows) are
    checked on a CPU, and on a GPU under DAPO_KERNELS_DEBUG=1.
    """
    if torch.compiler.is_compiling() and not getattr(objective, "is_operator", False):
        return breaks_graph(linear_segment_loss, OWN_OBJECTIVE)(
            hidden, weight, targets, cu_segments, objective, bias=bias, rows=rows, softcap=softcap,
            temperature=temperature, ignore_index=ignore_index, segments_per_group=segments_per_group,
            chunk_rows=chunk_rows, backend=backend,
        )  # fmt: skip
    checks.linear(hidden, weight, targets, bias, rows, softcap, temperature, ignore_index)
    if cu_segments is not None:
        checks.cu_segments("cu_segments", cu_segments, targets.numel(), hidden)
    if segments_per_group is None:
        segments_per_group = getattr(objective, "segments_per_group", 1)
    call = Call(
        hidden, weight, bias, targets, rows, softcap, temperature, ignore_index, chunk_rows, backend, "cu_segments"
    )
    return segment_loss(call, cu_segments, objective, segments_per_group)


@dataclass
class Call:
    """The arguments that every linear function has, checked."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    targets: Tensor
    rows: Tensor | None
    softcap: float | None
    temperature: float
    ignore_index: int
    chunk_rows: int | None
    backend: Backend
    cu_name: str
    dtype: torch.dtype | None = None  # of the products; None: autocast's, or hidden's

    def __post_init__(self) -> None:
        if self.chunk_rows is not None and self.chunk_rows < 1:
            raise ValueError(f"chunk_rows: must be at least 1, got {self.chunk_rows}")
        if self.dtype is None:
            device = self.hidden.device.type
            autocast = torch.is_autocast_enabled(device)
            self.dtype = torch.get_autocast_dtype(device) if autocast else self.hidden.dtype
        self.logits_dtype = torch.float64 if self.dtype == torch.float64 else torch.float32
        if not torch.compiler.is_compiling():  # else the operator chooses, when it runs
            self.triton = choose_triton(self.backend, self.hidden.device, self.dtype)

    def chunks(self, cu_segments: Tensor | None, per_group: int) -> list[Chunk]:
        rows = self.chunk_rows or default_chunk_rows(self.weight.shape[0], self.hidden.device)
        return make_chunks(
            cu_segments, self.rows, self.targets.numel(), rows, per_group, self.hidden.device, self.cu_name
        )

    def operands(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """hidden, weight and bias as the GEMMs read them."""
        hidden, weight = self.hidden.to(self.dtype), self.weight.to(self.dtype)
        if not self.triton and hidden.device.type == "cpu":
            # A CPU has no GEMM from low precision into fp32: widen the weight once, and each chunk of hidden.
            weight = weight.to(self.logits_dtype)
        bias = None if self.bias is None else self.bias.to(self.logits_dtype)
        return hidden, weight, bias

    def sums(self, tokens: Tensor, offsets: Tensor | None) -> Tensor:
        """Token log-probabilities (n,) to those of segments, by the backend."""
        if self.triton and offsets is not None:
            from dapo_kernels.ops.segment_sum import segment_sum

            return segment_sum(tokens, offsets)
        return segment_sums(tokens, offsets)

    def logits(self, weight: Tensor, bias: Tensor | None, chunks: list[Chunk]) -> "TorchLogits":
        """The backend's buffer, large enough for the largest piece."""
        pieces = [piece for chunk in chunks for piece in chunk.pieces]
        size = max((p.stop - p.start if p.rows is None else p.rows.numel() for p in pieces), default=0)
        kind = TorchLogits
        if self.triton:
            from dapo_kernels.chunk_triton import TritonLogits as kind
        return kind(weight, bias, self.softcap, self.temperature, self.ignore_index, size, self.logits_dtype)


def choose_triton(backend: Backend, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the Triton kernels run: on a GPU, in up to fp32; elsewhere only in their interpreter."""
    if backend not in ("auto", "triton", "torch"):
        raise ValueError(f"backend: expected auto, triton or torch, got {backend!r}")
    possible = device.type == "cuda" or os.environ.get("TRITON_INTERPRET", "0") == "1"
    if backend == "triton" and not possible:
        raise ValueError(f"backend: triton needs a GPU (or TRITON_INTERPRET=1), but hidden is on {device}")
    if backend == "triton" and dtype == torch.float64:
        raise ValueError("backend: the Triton kernels reduce in fp32; fp64 runs on the torch path")
    chosen = backend == "triton" or (backend == "auto" and device.type == "cuda" and dtype != torch.float64)
    log.debug("linear log-probabilities on the %s path (%s)", "triton" if chosen else "torch", device)
    return chosen


def on_device(tensor: Tensor) -> AbstractContextManager:
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def gather_rows(hidden: Tensor, piece: Piece, dtype: torch.dtype) -> Tensor:
    """The hidden rows (U, H) that the piece's entries read, each once."""
    if piece.rows is None:
        rows = hidden[piece.start : piece.stop]
    else:
        # On a GPU a wrong row is found only when debugging; clamped, it still never reads out of bounds.
        index = piece.rows.clamp(0, hidden.shape[0] - 1) if hidden.is_cuda else piece.rows
        rows = hidden.index_select(0, index)
    return rows.to(dtype)


def segment_loss(call: Call, cu_segments: Tensor | None, objective: Objective, per_group: int) -> SegmentLoss:
    """linear_segment_loss after its checks."""
    needs = tuple(
        torch.is_grad_enabled() and t is not None and t.requires_grad for t in (call.hidden, call.weight, call.bias)
    )
    if torch.compiler.is_compiling():
        loss, segments, tokens, *_ = torch.ops.dapo_kernels.objective_loss(
            call.hidden, call.weight, call.bias, call.targets, cu_segments, call.rows,
            *objective_arguments(objective), per_group, call.dtype, call.softcap, call.temperature,
            call.ignore_index, call.chunk_rows, call.backend,
            call.cu_name, needs,
        )  # fmt: skip
        return SegmentLoss(loss, segments.detach(), tokens.detach())
    return SegmentLoss(
        *_SegmentLoss.apply(call.hidden, call.weight, call.bias, call, cu_segments, objective, per_group, needs)
    )


def objective_arguments(objective: Objective) -> tuple[str, Tensor | None, Tensor | None, Tensor | None, list[float]]:
    """One of this package's objectives as an operator's arguments: "name/layout", its tensors (at most 3), numbers."""
    values = objective.values()
    layout = "".join("t" if isinstance(v, Tensor) else "n" for v in values)
    tensors = [v for v in values if isinstance(v, Tensor)] + [None] * 3
    numbers = [float(v) for v in values if not isinstance(v, Tensor)]
    return f"{type(objective).__name__}/{layout}", tensors[0], tensors[1], tensors[2], numbers


def objective_of(
    kinds: dict[str, type], name: str, tensors: tuple[Tensor | None, ...], numbers: list[float]
) -> Objective:
    """The inverse of objective_arguments."""
    kind, layout = name.split("/")
    rest = {"t": iter(tensors), "n": iter(numbers)}
    return kinds[kind](*(next(rest[letter]) for letter in layout))


class _SegmentLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        call: Call,
        cu_segments: Tensor | None,
        objective: Objective,
        per_group: int,
        needs: tuple[bool, bool, bool],
    ) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast(hidden.device.type, enabled=False), on_device(hidden):
            loss, segments, tokens, gradients = compute(call, cu_segments, objective, per_group, needs)
        save_gradients(ctx, gradients, (hidden, weight, bias))
        ctx.mark_non_differentiable(segments, tokens)
        ctx.set_materialize_grads(False)
        return loss, segments, tokens

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if upstream is None:
            return (None,) * 8
        return *scaled(ctx, upstream), None, None, None, None, None


def compute(
    call: Call, cu_segments: Tensor | None, objective: Objective, per_group: int, needs: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor | None, Tensor | None, Tensor | None]]:
    """Loss, (S,) segment and (N,) token log-probabilities, and the gradients of hidden, weight and bias."""
    chunks = call.chunks(cu_segments, per_group)
    hidden, weight, bias = call.operands()
    logits = call.logits(weight, bias, chunks)
    gradients = Gradients(call, needs)
    segments_total = call.targets.numel() if cu_segments is None else cu_segments.numel() - 1
    token_logps = torch.empty(call.targets.numel(), dtype=call.logits_dtype, device=hidden.device)
    segment_logps = torch.zeros(segments_total, dtype=call.logits_dtype, device=hidden.device)
    loss = torch.zeros((), dtype=call.logits_dtype, device=hidden.device)
    cu = None if cu_segments is None else cu_segments.to(hidden.device, non_blocking=True)
    training = any(needs)

    for chunk in chunks:
        pieces = chunk.pieces
        if len(pieces) > 1:
            log.debug("segments %d:%d are longer than a chunk: logits computed twice", chunk.start, chunk.stop)
        for piece in pieces:
            x = gather_rows(hidden, piece, weight.dtype)
            targets = call.targets[piece.start : piece.stop]
            token_logps[piece.start : piece.stop] = logits.forward(x, targets, piece, training)
        tokens = token_logps[pieces[0].start : pieces[-1].stop] if pieces else token_logps[:0]
        offsets = None if cu is None else cu[chunk.start : chunk.stop + 1]
        if offsets is not None and pieces:
            offsets = offsets - pieces[0].start
        if call.triton and hasattr(objective, "fused"):
            segments, coefficients = objective.fused(tokens, offsets, chunk.start, chunk.stop, loss, training)
        else:
            part, segments, coefficients = evaluate(objective, tokens, offsets, chunk, training, call.sums)
            loss += part
        segment_logps[chunk.start : chunk.stop] = segments
        if not training:
            continue
        for piece in pieces:
            if len(pieces) > 1:
                x = gather_rows(hidden, piece, weight.dtype)
                logits.forward(x, call.targets[piece.start : piece.stop], piece, True)
            share = coefficients[piece.start - pieces[0].start : piece.stop - pieces[0].start]
            gradients.add(logits.backward(share, weight.dtype), x, weight, piece)
    return loss, segment_logps, token_logps, gradients.finished()


def evaluate(
    objective: Objective,
    tokens: Tensor,
    offsets: Tensor | None,
    chunk: Chunk,
    training: bool,
    sums: Callable[[Tensor, Tensor | None], Tensor],
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The objective of one chunk: loss, (k,) segment log-probabilities, and the (n,) gradient of each token's."""
    segments = sums(tokens, offsets)
    if training and hasattr(objective, "with_gradient"):
        loss, d_segments, d_tokens = objective.with_gradient(segments, tokens, chunk.start, chunk.stop)
        return loss, segments, _coefficients(d_segments, d_tokens, offsets, tokens).to(tokens.dtype)
    with torch.set_grad_enabled(training):
        of_segments = segments.detach().requires_grad_(training)
        of_tokens = tokens.detach().requires_grad_(training)
        loss = objective(of_segments, of_tokens, chunk.start, chunk.stop)
        if not isinstance(loss, Tensor) or loss.dim() != 0:
            raise ValueError(f"objective: must return a scalar tensor, got {getattr(loss, 'shape', type(loss))}")
        if not training:
            return loss, segments, None
        if not loss.requires_grad:
            return loss, segments, torch.zeros_like(tokens)
        d_segments, d_tokens = torch.autograd.grad(loss, (of_segments, of_tokens), allow_unused=True)
    return loss.detach(), segments, _coefficients(d_segments, d_tokens, offsets, tokens)


def _coefficients(d_segments: Tensor | None, d_tokens: Tensor | None, offsets: Tensor | None, tokens: Tensor) -> Tensor:
    """The (n,) gradient of each token's log-probability: its own, and that of its segment."""
    if d_segments is None:
        return torch.zeros_like(tokens) if d_tokens is None else d_tokens
    of_segments = spread(d_segments, offsets, tokens.numel())
    return of_segments if d_tokens is None else d_tokens + of_segments
