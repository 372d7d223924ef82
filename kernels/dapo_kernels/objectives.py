"""Objectives for linear_segment_loss: each a few lines over one chunk's segment or token log-probabilities.

An objective is any callable `(segment_logps, token_logps, start, stop) -> scalar`, where start:stop are the chunk's
segments. These hold their per-segment data and slice it.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dapo_kernels import checks
from dapo_kernels.call import Backend, Call
from dapo_kernels.penalty import Penalty
from dapo_kernels.segment_loss import segment_loss

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class _Operator:
    """What the objectives of this package have beyond being callable: under torch.compile they are data, not code."""

    is_operator = True

    def values(self) -> tuple:
        """The fields, in order."""
        raise NotImplementedError

    def check(self, hidden: Tensor, segments: int, cu_segments: Tensor | None) -> None:
        """ValueError naming the field that does not fit a call with so many segments."""
        checks.normalizer(self.normalizer)

    def with_gradient(
        self, segment_logps: Tensor, token_logps: Tensor, start: int, stop: int
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """What __call__ returns, and its gradients by segments' and tokens' log-probabilities (None: nought).

        Spares small batches an autograd graph; within an operator autograd is off altogether.
        """
        raise NotImplementedError

    def __call__(self, segment_logps: Tensor, token_logps: Tensor, start: int, stop: int) -> Tensor:
        return self.with_gradient(segment_logps, token_logps, start, stop)[0]


@dataclass(frozen=True)
class DirectAdvantage(_Operator):
    """½ Σ (Â/β − u)² / normalizer with u = log π(a|s) − log π_ref(a|s) (arXiv 2412.18279, the actor's loss)."""

    advantages: Tensor  # (S,) Â(s, a)
    ref_logps: Tensor  # (S,) log π_ref(a|s)
    beta: float
    normalizer: float | Tensor

    def values(self) -> tuple:
        return self.advantages, self.ref_logps, self.beta, self.normalizer

    def check(self, hidden: Tensor, segments: int, cu_segments: Tensor | None) -> None:
        checks.per_segment("advantages", self.advantages, segments, hidden)
        checks.per_segment("ref_logps", self.ref_logps, segments, hidden)
        if not (isinstance(self.beta, int | float) and 0 < self.beta < float("inf")):
            raise ValueError(f"beta: must be a positive number, got {self.beta!r}")
        checks.normalizer(self.normalizer)

    def with_gradient(
        self, segment_logps: Tensor, token_logps: Tensor, start: int, stop: int
    ) -> tuple[Tensor, Tensor, None]:
        # Â/β − u in few operations: a small batch is as fast as they are.
        advantages = self.advantages[start:stop].to(segment_logps.dtype)  # 16 bits would round Â/β
        gap = (self.ref_logps[start:stop] - segment_logps).add_(advantages, alpha=1 / self.beta)
        slope = gap / -self.normalizer
        return -0.5 * gap.dot(slope), slope, None

    def fused(
        self, tokens: Tensor, offsets: Tensor | None, start: int, stop: int, loss: Tensor, training: bool
    ) -> tuple[Tensor, Tensor | None]:
        """What __call__ and its gradient are in one Triton kernel: adds to `loss`, returns (k,) and (n,) gradients.

        The engine calls this instead of __call__ where Triton runs and an objective has it.
        """
        from dapo_kernels.ops.direct_advantage import direct_advantage

        if offsets is None:
            offsets = torch.arange(stop - start + 1, device=tokens.device)
        advantages, references = self.advantages[start:stop], self.ref_logps[start:stop]
        return direct_advantage(tokens, offsets, advantages, references, self.beta, self.normalizer, loss, training)


@dataclass(frozen=True)
class CrossEntropy(_Operator):
    """−Σ log π(token) / normalizer, with label smoothing and z-loss on request, each over the tokens that count.

    Smoothing ε is F.cross_entropy's: a target is 1 − ε of itself and ε of the uniform distribution over all words. The
    z-loss is PaLM's (arXiv 2204.02311; Liger's lse_square_scale): z_loss · Σ lse² / normalizer.
    """

    normalizer: float | Tensor
    label_smoothing: float = 0.0
    z_loss: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing <= 1:
            raise ValueError(f"label_smoothing: must be from 0 to 1, got {self.label_smoothing!r}")
        if not 0 <= self.z_loss < float("inf"):
            raise ValueError(f"z_loss: must be a number and not negative, got {self.z_loss!r}")

    def values(self) -> tuple:
        return self.normalizer, self.label_smoothing, self.z_loss

    def penalty(self, call: Call) -> Penalty | None:
        """What the engine adds for every token beside this function of its log-probability; None: nothing."""
        if not (self.label_smoothing or self.z_loss):
            return None
        return Penalty(call, self.z_loss, self.label_smoothing, self.normalizer)

    def with_gradient(
        self, segment_logps: Tensor, token_logps: Tensor, start: int, stop: int
    ) -> tuple[Tensor, None, Tensor]:
        share = token_logps.new_full((), self.label_smoothing - 1) / self.normalizer
        return token_logps.sum() * share, None, share.expand_as(token_logps)


@dataclass(frozen=True)
class ClippedPolicyGradient(_Operator):
    """−Σ min(r·A, clip(r, 1−low, 1+high)·A) / normalizer, with r = π/π_old per token.

    low = high is PPO's and GRPO's clip (arXiv 1707.06347, 2402.03300); high > low is "clip-higher" (arXiv 2503.14476).
    For linear_segment_loss with cu_segments=None, so that start:stop are tokens. A weight per token ≥ 0 (GRPO's one
    over the response's length) is folded into its advantage; an ignored token's advantage must be 0.
    """

    advantages: Tensor  # (N,)
    old_logps: Tensor  # (N,)
    low: float = 0.2
    high: float = 0.2
    normalizer: float | Tensor = 1.0

    def values(self) -> tuple:
        return self.advantages, self.old_logps, self.low, self.high, self.normalizer

    def check(self, hidden: Tensor, segments: int, cu_segments: Tensor | None) -> None:
        if cu_segments is not None:
            raise ValueError("cu_segments: must be None, ClippedPolicyGradient is a loss of tokens")
        checks.per_segment("advantages", self.advantages, segments, hidden)
        checks.per_segment("old_logps", self.old_logps, segments, hidden)
        checks.normalizer(self.normalizer)

    def with_gradient(
        self, segment_logps: Tensor, token_logps: Tensor, start: int, stop: int
    ) -> tuple[Tensor, None, Tensor]:
        advantages = self.advantages[start:stop]
        ratio = (token_logps - self.old_logps[start:stop]).exp()
        free, clipped = ratio * advantages, ratio.clamp(1 - self.low, 1 + self.high) * advantages
        # Not the other way round: NaN is to stay NaN.
        gradient = torch.where(free > clipped, 0, -free / self.normalizer)
        return -torch.minimum(free, clipped).sum() / self.normalizer, None, gradient


@dataclass(frozen=True)
class DPO(_Operator):
    """−Σ log σ(β·(u_chosen − u_rejected)) / normalizer (arXiv 2305.18290).

    Segments are sequences: 2i is the chosen one of pair i, 2i + 1 the rejected one.
    """

    ref_logps: Tensor  # (S,)
    beta: float
    normalizer: float | Tensor = 1.0
    segments_per_group = 2

    def values(self) -> tuple:
        return self.ref_logps, self.beta, self.normalizer

    def check(self, hidden: Tensor, segments: int, cu_segments: Tensor | None) -> None:
        if segments % 2:
            raise ValueError(f"cu_segments: has {segments} segments, which are not pairs of chosen and rejected")
        checks.per_segment("ref_logps", self.ref_logps, segments, hidden)
        checks.normalizer(self.normalizer)

    def with_gradient(
        self, segment_logps: Tensor, token_logps: Tensor, start: int, stop: int
    ) -> tuple[Tensor, Tensor, None]:
        u = (segment_logps - self.ref_logps[start:stop]).view(-1, 2)
        margin = self.beta * (u[:, 0] - u[:, 1])
        slope = self.beta * torch.sigmoid(-margin) / self.normalizer
        return -F.logsigmoid(margin).sum() / self.normalizer, torch.stack([-slope, slope], 1).flatten(), None


FIXED = {kind.__name__: kind for kind in (DirectAdvantage, CrossEntropy, ClippedPolicyGradient, DPO)}


class DirectAdvantageLoss(NamedTuple):
    """What linear_direct_advantage_loss returns."""

    loss: Tensor  # 0-d, differentiable in hidden, weight and bias
    step_logps: Tensor  # (S,) fp32, detached: log π(a|s)
    entropies: Tensor | None = None  # (N,) as in SegmentLoss
    lses: Tensor | None = None  # (N,)


def linear_direct_advantage_loss(
    hidden: Tensor,  # (N, H) one row a scored token, or (T, H) with `rows`; bf16, fp16, fp32 or fp64
    weight: Tensor,  # (V, H) lm_head
    targets: Tensor,  # (N,) int64
    cu_steps: Tensor,  # (S+1,) int32: step s owns tokens cu_steps[s]:cu_steps[s+1]
    advantages: Tensor,  # (S,) Â
    ref_logps: Tensor,  # (S,) log π_ref(a|s)
    beta: float = 0.01,
    normalizer: float | Tensor | None = None,
    *,
    bias: Tensor | None = None,
    rows: Tensor | None = None,  # (N,) int64: token i is predicted by hidden[rows[i]]
    softcap: float | None = None,
    temperature: float = 1.0,
    ignore_index: int = -100,
    chunk_rows: int | None = None,
    backend: Backend = "auto",
    statistics: bool = False,
    process_group: "ProcessGroup | None" = None,
) -> DirectAdvantageLoss:
    """The actor's loss of Direct Advantage-Based Policy Optimization: ½ Σ_s (Â_s/β − u_s)² / normalizer.

    u_s = log π(a_s|s) − ref_logps[s], and log π of a step is the sum over its tokens (arXiv 2412.18279). `normalizer`
    is the GLOBAL number of steps in the optimizer's batch, a number or a 0-d tensor; None: the S of this call.
    Everything else as in linear_segment_loss.

    Raises ValueError naming the argument: hidden, weight, targets, cu_steps, advantages, ref_logps, beta, ….
    """
    call = Call(
        hidden, weight, bias, targets, rows, softcap, temperature, ignore_index, chunk_rows, backend, "cu_steps",
        statistics, group=process_group,
    )  # fmt: skip
    checks.cu_segments("cu_steps", cu_steps, targets.numel(), hidden)
    steps = cu_steps.numel() - 1
    objective = DirectAdvantage(advantages, ref_logps, beta, max(steps, 1) if normalizer is None else normalizer)
    objective.check(hidden, steps, cu_steps)
    out = segment_loss(call, cu_steps, objective, 1)
    return DirectAdvantageLoss(out.loss, out.segment_logps, out.entropies, out.lses)
