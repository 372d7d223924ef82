"""Every operation in plain PyTorch, any dtype, autograd throughout: the definition the fused ones are tested against.

Holds the N×V logits. Written for reading, not for speed.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


def logits(
    hidden: Tensor,  # (N, H), or (T, H) with rows
    weight: Tensor,  # (V, H)
    bias: Tensor | None = None,
    rows: Tensor | None = None,
    softcap: float | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """(N, V) what the softmax sees."""
    raw = (hidden if rows is None else hidden[rows]) @ weight.T
    if bias is not None:
        raw = raw + bias
    if softcap is not None:
        raw = softcap * torch.tanh(raw / softcap)
    return raw / temperature


def token_logprobs(
    hidden: Tensor,  # (N, H), or (T, H) with rows
    weight: Tensor,  # (V, H)
    targets: Tensor,  # (N,)
    *,
    bias: Tensor | None = None,
    rows: Tensor | None = None,
    softcap: float | None = None,
    temperature: float = 1.0,
    ignore_index: int = -100,
) -> Tensor:
    """(N,) log softmax(logits)[target], 0 where ignored."""
    log_p = torch.log_softmax(logits(hidden, weight, bias, rows, softcap, temperature), dim=-1)
    ignored = targets == ignore_index
    picked = log_p.gather(1, targets.long().masked_fill(ignored, 0)[:, None])[:, 0]
    return picked.masked_fill(ignored, 0)


def token_statistics(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, ignore_index: int = -100, **options: object
) -> tuple[Tensor, Tensor]:
    """(N,) entropies −Σ p log p and log-sum-exps of the logits, 0 where ignored."""
    z = logits(hidden, weight, **options)
    ignored = targets == ignore_index
    entropies = torch.special.entr(z.softmax(-1)).sum(-1)
    return entropies.masked_fill(ignored, 0), z.logsumexp(-1).masked_fill(ignored, 0)


def cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    normalizer: float,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    *,
    ignore_index: int = -100,
    **options: object,
) -> Tensor:
    """F.cross_entropy with its label smoothing, plus z_loss · lse² of each token that counts; / normalizer."""
    z = logits(hidden, weight, **options)
    smoothed = F.cross_entropy(
        z, targets.long(), ignore_index=ignore_index, label_smoothing=label_smoothing, reduction="sum"
    )
    return (smoothed + z_loss * z.logsumexp(-1)[targets != ignore_index].square().sum()) / normalizer


class Splits(NamedTuple):
    """What the product that leaves exponentials finds, with S splits of the words."""

    values: Tensor  # (N, V) exp(logits − their split's origin), times the logits' slope
    origins: Tensor  # (S, N) the largest logits; the kernel's may be others
    totals: Tensor  # (S, N) Σ exp(logits − origin)
    picked: Tensor  # (N,) the targets' logits


def split_exponentials(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    words: int,  # of a split
    bias: Tensor | None = None,
    softcap: float | None = None,
    temperature: float = 1.0,
) -> Splits:
    """The epilogue's results, of logits that are held."""
    z = logits(hidden, weight, bias, None, softcap, temperature)
    slope = (1 if softcap is None else 1 - (z * temperature / softcap) ** 2) / temperature
    parts = z.split(words, 1)
    origins = torch.stack([part.amax(1) for part in parts])
    exponentials = [(part - origin[:, None]).exp() for part, origin in zip(parts, origins)]
    totals = torch.stack([e.sum(1) for e in exponentials])
    return Splits(torch.cat(exponentials, 1) * slope, origins, totals, z.gather(1, targets.long()[:, None])[:, 0])


def step_logprobs(token_logps: Tensor, cu_steps: Tensor) -> Tensor:
    """(S,) sums over cu_steps[s]:cu_steps[s+1]."""
    bounds = cu_steps.tolist()
    if len(bounds) == 1:
        return token_logps[:0]
    return torch.stack([token_logps[a:b].sum() for a, b in pairwise(bounds)])


def segment_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    cu_segments: Tensor,
    objective: Callable[[Tensor, Tensor, int, int], Tensor],
    **options: object,
) -> Tensor:
    """The objective of all segments at once."""
    tokens = token_logprobs(hidden, weight, targets, **options)
    return objective(step_logprobs(tokens, cu_segments), tokens, 0, cu_segments.numel() - 1)


def direct_advantage_loss(
    step_logps: Tensor, advantages: Tensor, ref_logps: Tensor, beta: float, normalizer: float
) -> Tensor:
    """½ Σ (Â/β − (log π − log π_ref))² / normalizer."""
    u = step_logps - ref_logps
    return 0.5 * ((advantages / beta - u) ** 2).sum() / normalizer


def value_loss(
    hidden: Tensor,  # (T, H)
    weight: Tensor,  # (H,)
    bias: Tensor,  # 0-d or (1,)
    rows: Tensor,  # (M,)
    targets: Tensor,  # (M,)
    normalizer: float,
    kind: Literal["bce", "mse"] = "bce",
    weights: Tensor | None = None,  # (M,)
) -> tuple[Tensor, Tensor]:
    """Loss, and the (M,) logits."""
    logits = hidden[rows] @ weight.reshape(-1) + bias
    if kind == "bce":
        losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    else:
        losses = (logits.sigmoid() - targets) ** 2
    if weights is not None:
        losses = losses * weights
    return losses.sum() / normalizer, logits
