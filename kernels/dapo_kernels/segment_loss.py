"""The segment-aligned engine: hidden states, lm_head weight and an objective over segments → loss and gradients."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from dapo_kernels import checks, direct
from dapo_kernels.call import Backend, Call, gather_rows, kernel_context, log
from dapo_kernels.chunk_torch import spread
from dapo_kernels.compiling import breaks_graph
from dapo_kernels.gradients import Gradients, apply, refuse_nested, save_gradients, scaled
from dapo_kernels.plan import Chunk
from dapo_kernels.tokens import TokenReader, Tokens

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

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
    entropies: Tensor | None = None  # (N,) fp32, detached, in nats; None without `statistics`
    lses: Tensor | None = None  # (N,) fp32, detached: log Σ exp(logits); None without `statistics`


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
    statistics: bool = False,
    process_group: "ProcessGroup | None" = None,
) -> SegmentLoss:
    """A loss over log-probabilities of segments, with its gradients, never holding the N×V logits.

    Segment s owns tokens cu_segments[s]:cu_segments[s+1]; its log-probability is their sum (0 where it has none).
    Logits are `hidden @ weight.T + bias`, then `softcap * tanh(logits / softcap)`, then divided by temperature.

    `objective(segment_logps, token_logps, start, stop)` gets the (stop-start,) log-probabilities of segments
    start:stop, and those of their tokens, and returns a scalar; the loss is the sum over chunks. It may be any
    differentiable PyTorch function whose value for the whole batch is that sum: no dependence between segments of
    different chunks, except that `segments_per_group` adjacent segments (a preference pair: 2) always come together
    (None: the objective's attribute of that name, or 1). An ignored token (target == ignore_index) has log-probability
    0 and a gradient of 0; its hidden row costs as much as another, and where it is not finite, neither are gradients.

    Where a gradient is needed, it is made in this call, chunk by chunk: three GEMMs, or fewer where hidden or weight
    needs none; without gradients one. Logits and their reductions are fp32 (fp64 for fp64 inputs); the weight's
    gradient is summed in fp32, and cast once, in backward. A group longer than `chunk_rows` is still exact: its logits
    are computed twice (a fourth GEMM for its tokens). The result is differentiable once: NotImplementedError within
    two transforms of torch.func.

    On a GPU, keep cu_segments and rows on the CPU if you can: cutting chunks reads them on the host.
    Same inputs, same bits, on the same device and thread count.

    `statistics`: also each token's entropy −Σ p log p over the vocabulary and log-sum-exp of the logits, from the pass
    that makes its log-probability; 0 for ignored targets, not finite where the hidden row or all logits are not.

    `process_group`: weight (and bias) are this process's rows of a vocabulary that the group's processes hold in the
    order of their ranks, or DTensors that it shards by rows; hidden and all else are the same on each. Results are
    those of the whole vocabulary, on every process, and hidden's gradient is summed. Plain PyTorch on every device.

    Under torch.compile this is one operator in the graph where the objective is one of this package's; any other
    function breaks the graph.

    Raises ValueError, naming the argument, for wrong shapes, dtypes, devices; values (targets, cu_segments, rows) are
    checked on a CPU, and on a GPU under DAPO_KERNELS_DEBUG=1.
    """
    if torch.compiler.is_compiling() and not getattr(objective, "is_operator", False):
        return breaks_graph(linear_segment_loss, OWN_OBJECTIVE)(
            hidden, weight, targets, cu_segments, objective, bias=bias, rows=rows, softcap=softcap,
            temperature=temperature, ignore_index=ignore_index, segments_per_group=segments_per_group,
            chunk_rows=chunk_rows, backend=backend, statistics=statistics, process_group=process_group,
        )  # fmt: skip
    call = Call(
        hidden, weight, bias, targets, rows, softcap, temperature, ignore_index, chunk_rows, backend, "cu_segments",
        statistics, group=process_group,
    )  # fmt: skip
    if cu_segments is not None:
        checks.cu_segments("cu_segments", cu_segments, targets.numel(), hidden)
    if segments_per_group is None:
        segments_per_group = getattr(objective, "segments_per_group", 1)
    if segments_per_group < 1:
        raise ValueError(f"segments_per_group: must be at least 1, got {segments_per_group}")
    if hasattr(objective, "check"):
        objective.check(hidden, targets.numel() if cu_segments is None else cu_segments.numel() - 1, cu_segments)
    return segment_loss(call, cu_segments, objective, segments_per_group)


def segment_loss(call: Call, cu_segments: Tensor | None, objective: Objective, per_group: int) -> SegmentLoss:
    """linear_segment_loss after its checks."""
    needs = tuple(
        torch.is_grad_enabled() and t is not None and t.requires_grad for t in (call.hidden, call.weight, call.bias)
    )
    if torch.compiler.is_compiling():
        loss, segments, *tokens, _, _, _ = torch.ops.dapo_kernels.objective_loss(
            call.hidden, call.weight, call.bias, call.targets, cu_segments, call.rows,
            *objective_arguments(objective), per_group, call.dtype, call.softcap, call.temperature,
            call.ignore_index, call.chunk_rows, call.backend,
            call.cu_name, call.statistics, needs,
        )  # fmt: skip
        tokens = [t.detach() for t in tokens] if call.statistics else [tokens[0].detach(), None, None]
        return SegmentLoss(loss, segments.detach(), *tokens)
    refuse_nested("linear_segment_loss")
    return SegmentLoss(
        *apply(_SegmentLoss, call.hidden, call.weight, call.bias, call, cu_segments, objective, per_group, needs)[:5]
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
    """The gradients that forward makes are results of its own: what torch.func can hand on to backward."""

    @staticmethod
    def forward(
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        call: Call,
        cu_segments: Tensor | None,
        objective: Objective,
        per_group: int,
        needs: tuple[bool, bool, bool],
    ) -> tuple[Tensor | None, ...]:
        call.hidden, call.weight, call.bias = hidden, weight, bias  # torch.func has unwrapped these
        with kernel_context(hidden):
            loss, segments, tokens, gradients = compute(call, cu_segments, objective, per_group, needs)
        return loss, segments, tokens.logps, tokens.entropies, tokens.lses, *gradients

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor | None, ...]) -> None:
        save_gradients(ctx, output[-3:], inputs[:3])
        ctx.mark_non_differentiable(*(t for t in output[1:] if t is not None))
        ctx.set_materialize_grads(False)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if upstream is None:
            return (None,) * 8
        return *scaled(ctx, upstream), None, None, None, None, None


def compute(
    call: Call, cu_segments: Tensor | None, objective: Objective, per_group: int, needs: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor, Tokens, tuple[Tensor | None, Tensor | None, Tensor | None]]:
    """Loss, (S,) segment log-probabilities, the tokens', and the gradients of hidden, weight and bias."""
    penalty = objective.penalty(call) if hasattr(objective, "penalty") else None
    if penalty is None and direct.is_small(call):
        of_objective = partial(evaluate, objective, sums=call.sums)
        if (found := direct.compute(call, cu_segments, of_objective, needs)) is not None:
            return found
    chunks = call.chunks(cu_segments, per_group)
    hidden, weight, bias = call.operands()
    logits = call.logits(weight, bias, chunks, penalty is None)
    gradients, reader, training = Gradients(call, needs), TokenReader(call), any(needs)
    cu = None if cu_segments is None else cu_segments.to(hidden.device, non_blocking=True)
    loss = torch.zeros((), dtype=call.logits_dtype, device=hidden.device)
    of_chunks = []

    for chunk in chunks:
        pieces = chunk.pieces
        if len(pieces) > 1:
            log.debug("segments %d:%d are longer than a chunk: logits computed twice", chunk.start, chunk.stop)
        of_pieces = []
        for piece in pieces:
            x = gather_rows(hidden, piece, weight.dtype)
            of_pieces.append(reader.read(logits, x, piece, training and len(pieces) == 1))
            if penalty is not None:
                penalty.read(logits, x, piece)
        tokens = of_pieces[0] if len(pieces) == 1 else torch.cat([loss.new_empty(0), *of_pieces])
        offsets = cu
        if len(chunks) > 1 and cu is not None:
            offsets = cu[chunk.start : chunk.stop + 1] - (pieces[0].start if pieces else 0)
        if call.triton and hasattr(objective, "fused"):
            segments, coefficients = objective.fused(tokens, offsets, chunk.start, chunk.stop, loss, training)
        else:
            part, segments, coefficients = evaluate(objective, tokens, offsets, chunk, training, call.sums)
            loss += part
        of_chunks.append(segments)
        if not training:
            continue
        for piece in pieces:
            share = coefficients
            if len(pieces) > 1:
                x = gather_rows(hidden, piece, weight.dtype)
                logits.forward(x, call.targets[piece.start : piece.stop], piece, True)
                share = coefficients[piece.start - pieces[0].start : piece.stop - pieces[0].start]
            of_lses = None if penalty is None else penalty.slopes(logits, piece)
            gradients.add(logits.backward(share, weight.dtype, of_lses), x, weight, piece)
            if penalty is not None:
                penalty.add(gradients, x, piece)
    if penalty is not None:
        loss += penalty.loss
        penalty.finish(gradients)
    # A result of its own even where segments are tokens: an operator's results may not share memory.
    segment_logps = of_chunks[0] if len(chunks) == 1 and cu is not None else torch.cat([loss.new_empty(0), *of_chunks])
    return loss, segment_logps, reader.finished(), gradients.finished()


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
