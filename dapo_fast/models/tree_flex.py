"""Tree attention on a GPU: FlexAttention with a block mask made on the device from one integer a token.

For blocks of 128 rows, "any pair visible" and "all pairs visible" follow from the largest and smallest
``subtree_end`` of each key block, so no N×N tensor ever exists. Compiled once for each pack length.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import math
from collections.abc import Callable

import torch
import torch._dynamo
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from dapo_fast.data.packing import Pack
from dapo_fast.errors import InputError
from dapo_fast.models.variants import PLAIN, Variant

log = logging.getLogger("dapo_fast.attention")

BLOCK = 128


def tree_block_mask(
    subtree_end: Tensor, block: int = BLOCK, depths: Tensor | None = None, oldest: Tensor | None = None
) -> BlockMask:
    """The block mask of ``subtree_end`` (T,), on its device; key k is visible to query q iff k <= q < end[k].

    With ``depths`` and ``oldest`` (T,), and iff depths[k] >= oldest[q] (windows and chunks).
    """
    length = subtree_end.numel()
    blocks = math.ceil(length / block)
    device = subtree_end.device
    ends = subtree_end.to(torch.int32)

    def by_block(values: Tensor, fill: int) -> Tensor:
        """(blocks, block); ``fill`` where rows past the end must not matter."""
        return torch.nn.functional.pad(values, (0, blocks * block - length), value=fill).view(blocks, block)

    # Rows past the end: neither keys that see nothing beyond themselves, nor limits on "all visible".
    longest = by_block(ends, 0).amax(1)
    shortest = by_block(ends, length).amin(1)
    index = torch.arange(blocks, device=device)
    first, last = index * block, ((index + 1) * block).clamp(max=length) - 1
    before = index[None, :] < index[:, None]  # [query block, key block]
    full = before & (shortest[None, :] > last[:, None])
    some = before & (longest[None, :] > first[:, None])
    if depths is not None and oldest is not None:
        depths, oldest = depths.to(torch.int32), oldest.to(torch.int32)
        full &= by_block(depths, length).amin(1)[None, :] >= by_block(oldest, -length).amax(1)[:, None]
        some &= by_block(depths, -length).amax(1)[None, :] >= by_block(oldest, length).amin(1)[:, None]
    partial = (some & ~full) | torch.eye(blocks, dtype=bool, device=device)

    def ordered(present: Tensor) -> tuple[Tensor, Tensor]:
        counts = present.sum(1, dtype=torch.int32)
        indices = torch.argsort(present.to(torch.int8), dim=1, descending=True, stable=True).to(torch.int32)
        return counts[None, None], indices[None, None]

    def on_branch(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < ends[key])

    def in_window(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < ends[key]) & (depths[key] >= oldest[query])

    return BlockMask.from_kv_blocks(
        *ordered(partial),
        *ordered(full),
        BLOCK_SIZE=block,
        mask_mod=on_branch if oldest is None else in_window,
        seq_lengths=(length, length),
    )


@functools.cache
def _softcapped(softcap: float) -> Callable:
    def score(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return score


@functools.cache
def _compiled() -> object:
    # Each pack length once with and once without gradients, for the policy and for a critic of another shape: dynamo's
    # own limit of 8 would be passed, and beyond it attention is computed the slow way, with all T×T scores.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    return torch.compile(flex_attention, dynamic=False)


@functools.cache
def kernel_options() -> dict[str, str] | None:
    """FlashAttention-4's kernels where the package flash-attn-4 and a Hopper or Blackwell GPU are present."""
    installed = importlib.util.find_spec("flash_attn") and importlib.util.find_spec("flash_attn.cute")
    flash = bool(installed) and torch.cuda.get_device_capability()[0] in (9, 10)
    log.info("FlexAttention backend: %s", "FlashAttention-4" if flash else "Triton")
    return {"BACKEND": "FLASH"} if flash else None


class TreeFlex:
    """Attention of one pack, ready to be called by every layer."""

    def __init__(self, pack: Pack) -> None:
        self.pack = pack
        self.masks: dict[Variant, BlockMask] = {}

    def mask(self, variant: Variant) -> BlockMask:
        """The block mask of layers of a kind: each once a pack."""
        if variant not in self.masks:
            depths = self.pack.position_ids
            oldest = variant.oldest(depths)
            depths = None if oldest is None else depths
            self.masks[variant] = tree_block_mask(self.pack.subtree_end, depths=depths, oldest=oldest)
        return self.masks[variant]

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        variant: Variant = PLAIN,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """``query`` (1, Hq, T, D), ``key`` (1, Hkv, T, D) and ``value`` (1, Hkv, T, Dv) → (1, T, Hq, Dv)."""
        arguments = {"block_mask": self.mask(variant), "scale": scale, "enable_gqa": query.shape[1] != key.shape[1]}
        if variant.softcap is not None:
            arguments["score_mod"] = _softcapped(variant.softcap)
        if sinks is not None:
            arguments["return_lse"] = True
        if not query.is_cuda and torch.is_grad_enabled() and query.requires_grad:
            raise InputError("model.attention: 'flex' has no backward on a CPU; use 'tree_sdpa' or 'auto'")
        if query.is_cuda:
            plain = variant == PLAIN and sinks is None  # what FlashAttention-4's kernels are known to compute
            out = _compiled()(query, key, value, kernel_options=kernel_options() if plain else None, **arguments)
        else:
            out = flex_attention(query, key, value, **arguments)
        if sinks is not None:
            # A key without value takes its share of the weights: exp(lse) of exp(lse) + exp(sink).
            out, lse = out
            share = torch.sigmoid(lse - sinks.to(lse.dtype).view(1, -1, 1))
            out = (out * share[..., None]).to(value.dtype)
        return out.transpose(1, 2)
