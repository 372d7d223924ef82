"""Attention written out, in PyTorch's own operations: the definition of every other backend."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dapo_fast.models.variants import PLAIN, Variant


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    visible: Tensor,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Softmax attention under a mask, with softcapped scores and sinks where there are any.

    Args:
        query: (B, Hq, Tq, D); ``key`` (B, Hkv, Tk, D) and ``value`` (B, Hkv, Tk, Dv), any float dtype.
        visible: bool, broadcastable to (B, Hq, Tq, Tk); every query sees a key.
        sinks: (Hq,) logits of a key without value that every query sees as well.

    Returns:
        (B, Hq, Tq, Dv) in the value's dtype. Scores and weights are fp32 (fp64 for fp64).
    """
    group = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(group, dim=1) for x in (key, value))
    scores = (query @ key.transpose(2, 3)) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)).masked_fill(~visible, float("-inf"))
    if sinks is not None:
        column = sinks.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, column], dim=-1)
    weights = scores.softmax(-1)[..., : key.shape[2]]
    return weights.to(value.dtype) @ value


class Dense:
    """Attention under the whole (T, T) mask, or some rows of it: any device and dtype, at quadratic cost."""

    def __init__(self, ends: Tensor, depths: Tensor | None = None, rows: Tensor | None = None) -> None:
        """``ends`` and ``depths`` (T,) of a pack; a window needs the depths. ``rows`` (L,) are queries; None: all."""
        keys = torch.arange(ends.numel(), device=ends.device)
        rows = keys if rows is None else rows
        self.mask = (keys[None, :] <= rows[:, None]) & (rows[:, None] < ends[None, :])
        self.depths = depths

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        variant: Variant = PLAIN,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """``query`` (1, Hq, L, D), ``key`` (1, Hkv, T, D) and ``value`` (1, Hkv, T, Dv) → (1, L, Hq, Dv)."""
        mask = self.mask
        oldest = variant.oldest(self.depths)
        if oldest is not None:
            mask = mask & (self.depths[None, :] >= oldest[:, None])
        if variant.softcap is not None or sinks is not None:
            out = attend(query, key, value, scale, mask, variant.softcap, sinks)
        else:
            grouped = query.shape[1] != key.shape[1]
            out = F.scaled_dot_product_attention(query, key, value, mask, scale=scale, enable_gqa=grouped)
        return out.transpose(1, 2)
