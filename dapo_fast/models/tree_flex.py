"""Tree attention on a GPU: FlexAttention with a block mask made on the device from one integer a token.

For blocks of 128 rows, "any pair visible" and "all pairs visible" follow from the largest and smallest
``subtree_end`` of each key block, so no N×N tensor ever exists. Compiled once for each pack length.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import math

import torch
import torch._dynamo
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from dapo_fast.data.packing import Pack
from dapo_fast.errors import InputError

log = logging.getLogger("dapo_fast.attention")

BLOCK = 128


def tree_block_mask(subtree_end: Tensor, block: int = BLOCK) -> BlockMask:
    """The block mask of ``subtree_end`` (T,), on its device; key k is visible to query q iff k <= q < end[k]."""
    length = subtree_end.numel()
    blocks = math.ceil(length / block)
    device = subtree_end.device
    ends = subtree_end.to(torch.int32)
    padding = blocks * block - length
    # Rows past the end: neither keys that see nothing beyond themselves, nor limits on "all visible".
    longest = torch.nn.functional.pad(ends, (0, padding), value=0).view(blocks, block).amax(1)
    shortest = torch.nn.functional.pad(ends, (0, padding), value=length).view(blocks, block).amin(1)
    index = torch.arange(blocks, device=device)
    first, last = index * block, ((index + 1) * block).clamp(max=length) - 1
    before = index[None, :] < index[:, None]  # [query block, key block]
    full = before & (shortest[None, :] > last[:, None])
    partial = (before & (longest[None, :] > first[:, None]) & ~full) | torch.eye(blocks, dtype=bool, device=device)

    def ordered(present: Tensor) -> tuple[Tensor, Tensor]:
        counts = present.sum(1, dtype=torch.int32)
        indices = torch.argsort(present.to(torch.int8), dim=1, descending=True, stable=True).to(torch.int32)
        return counts[None, None], indices[None, None]

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < ends[key])

    return BlockMask.from_kv_blocks(
        *ordered(partial), *ordered(full), BLOCK_SIZE=block, mask_mod=visible, seq_lengths=(length, length)
    )


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
        self.mask = tree_block_mask(pack.subtree_end)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """``query`` (1, Hq, T, D), ``key`` and ``value`` (1, Hkv, T, D) → (1, T, Hq, D)."""
        arguments = {"block_mask": self.mask, "scale": scale, "enable_gqa": query.shape[1] != key.shape[1]}
        if not query.is_cuda and torch.is_grad_enabled() and query.requires_grad:
            raise InputError("model.attention: 'flex' has no backward on a CPU; use 'tree_sdpa' or 'auto'")
        if query.is_cuda:
            out = _compiled()(query, key, value, kernel_options=kernel_options(), **arguments)
        else:
            out = flex_attention(query, key, value, **arguments)
        return out.transpose(1, 2)
