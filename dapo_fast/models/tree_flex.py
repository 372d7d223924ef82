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
from typing import NamedTuple

import torch
import torch._dynamo
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from dapo_fast.data.pack import ROW_BLOCK, Pack
from dapo_fast.errors import InputError, first_line
from dapo_fast.models.variants import PLAIN, Variant

log = logging.getLogger("dapo_fast.attention")

BLOCK = ROW_BLOCK["cuda"]
FLASH = {"BACKEND": "FLASH"}


class Heads(NamedTuple):
    """The shape of a model's attention: query heads, key heads, and the size of each."""

    queries: int
    keys: int
    size: int


def tree_block_mask(
    subtree_end: Tensor,
    block: int = BLOCK,
    depths: Tensor | None = None,
    oldest: Tensor | None = None,
    rows: Tensor | None = None,
) -> BlockMask:
    """The block mask of ``subtree_end`` (T,), on its device; key k is visible to query q iff k <= q < end[k].

    With ``depths`` and ``oldest`` (T,), and iff depths[k] >= oldest[q] (windows and chunks). With ``rows`` (L,), whole
    blocks of them, query i is row ``rows[i]``; not both.
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
    if rows is not None:
        own = rows[::block] // block
        full, partial = full[own], partial[own]

    def ordered(present: Tensor) -> tuple[Tensor, Tensor]:
        counts = present.sum(1, dtype=torch.int32)
        indices = torch.argsort(present.to(torch.int8), dim=1, descending=True, stable=True).to(torch.int32)
        return counts[None, None], indices[None, None]

    def on_branch(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < ends[key])

    def in_window(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < ends[key]) & (depths[key] >= oldest[query])

    def of_rows(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= rows[query]) & (rows[query] < ends[key])

    return BlockMask.from_kv_blocks(
        *ordered(partial),
        *ordered(full),
        BLOCK_SIZE=block,
        mask_mod=of_rows if rows is not None else on_branch if oldest is None else in_window,
        seq_lengths=(length if rows is None else rows.numel(), length),
    )


@functools.cache
def _softcapped(softcap: float) -> Callable:
    def score(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return score


def allow_recompiles() -> None:
    """Let dynamo compile each pack length once with and once without gradients, for every mask and every stage.

    Its own limit of 8 would be passed, and beyond it attention is computed the slow way, with all T×T scores.
    """
    # 13 pad lengths × gradients or none × masks with and without a window × (sft, critic, advantages, actor) are 208;
    # a path over pack_tokens adds lengths. The accumulated limit, 256 by default, counts them over all models.
    for name in ("recompile_limit", "accumulated_recompile_limit"):
        setattr(torch._dynamo.config, name, max(getattr(torch._dynamo.config, name), 512))


def compiled_region(function: Callable) -> Callable:
    """``function`` compiled, as one operator that selective activation checkpointing sees and may keep.

    Without that (torch before the option) it is opaque to checkpointing, and always computed again.
    """
    from torch._inductor import config

    known = hasattr(config, "wrap_inductor_compiled_regions")
    return torch.compile(function, dynamic=False, options={"wrap_inductor_compiled_regions": True} if known else None)


@functools.cache
def _compiled() -> Callable:
    allow_recompiles()
    return compiled_region(flex_attention)


def flash_is_known(heads: Heads, device: torch.device) -> bool:
    """Whether FlashAttention-4 is known to take our block masks: on sm_90, for heads of up to 128.

    There its tiles are our blocks of 128; on sm_100 a query block is 256 rows, and larger heads have other tiles. Its
    backward under a block mask adds up in no fixed order, so it is not for deterministic algorithms.
    """
    if device.type != "cuda" or heads.size > 128 or torch.are_deterministic_algorithms_enabled():
        return False
    installed = importlib.util.find_spec("flash_attn") and importlib.util.find_spec("flash_attn.cute")
    return bool(installed) and torch.cuda.get_device_capability(device) == (9, 0)


@functools.cache
def _tried_flash(heads: Heads, device: torch.device) -> bool:
    """Try FlashAttention-4 on a small tree, forward and backward; one log line says what is used."""
    try:
        error = flash_error(heads, device)
        reason = "" if error <= 5e-2 else f"it differs by {error:.1e} from attention with a dense mask"
    except Exception as failure:  # whatever it is, there are kernels that work
        reason = first_line(failure)
    if reason:
        log.warning("FlexAttention backend: Triton; FlashAttention-4 is here, but failed on a small tree: %s", reason)
    else:
        log.info("FlexAttention backend: FlashAttention-4")
    return not reason


def flash_error(heads: Heads, device: torch.device) -> float:
    """``flex_error`` of FlashAttention-4's kernels."""
    return flex_error(heads, device, FLASH)


def flex_error(
    heads: Heads, device: torch.device, options: dict[str, str] | None = None, rows: Tensor | None = None
) -> float:
    """Largest relative difference of FlexAttention's output and gradients from fp32's, on a small tree in bf16.

    Args:
        options: FlexAttention's kernel options.
        rows: Of the queries, whole blocks of the tree's four; None: all.
    """
    length = 4 * BLOCK
    keys = torch.arange(length, device=device)
    queries = keys if rows is None else rows
    # A trunk of half the rows, and two branches.
    ends = torch.where(keys < length // 2, length, torch.where(keys < 3 * length // 4, 3 * length // 4, length))
    sizes = ((len(queries), heads.queries), (length, heads.keys), (length, heads.keys), (len(queries), heads.queries))
    shapes = [(1, *size, heads.size) for size in sizes]
    generator = torch.Generator().manual_seed(0)
    *tensors, upstream = (
        torch.randn(s, generator=generator).to(device, torch.bfloat16).transpose(1, 2) for s in shapes
    )
    leaves = [x.detach().requires_grad_() for x in tensors]
    exact = [x.detach().float().requires_grad_() for x in tensors]
    scale, grouped = heads.size**-0.5, heads.queries != heads.keys
    with torch.enable_grad():
        mask = tree_block_mask(ends, rows=rows)
        out = _compiled()(*leaves, block_mask=mask, scale=scale, enable_gqa=grouped, kernel_options=options)
        dense = (keys <= queries[:, None]) & (queries[:, None] < ends)
        wanted = torch.nn.functional.scaled_dot_product_attention(*exact, dense, scale=scale, enable_gqa=grouped)
    found = (out, *torch.autograd.grad(out, leaves, upstream))
    expected = (wanted, *torch.autograd.grad(wanted, exact, upstream.float()))
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(found, expected, strict=True))


def kernel_options(heads: Heads | None, device: torch.device) -> dict[str, str] | None:
    """FlashAttention-4's kernels where they are known to work and do; None: FlexAttention's own, in Triton."""
    if heads is None or not flash_is_known(heads, device) or not _tried_flash(heads, device):
        return None
    return FLASH


class TreeFlex:
    """Attention of one pack, ready to be called by every layer."""

    def __init__(self, pack: Pack, heads: Heads | None = None) -> None:
        self.pack = pack
        # Decided here, before anything is traced or checkpointed.
        rows = None if pack.split is None else pack.split.rows
        self.masks = {PLAIN: tree_block_mask(pack.subtree_end, rows=rows)}
        # FlashAttention-4 is tried on whole packs only.
        self.options = kernel_options(heads, pack.input_ids.device) if rows is None else None

    def mask(self, variant: Variant) -> BlockMask:
        """The block mask of layers of a kind: each once a pack."""
        if variant not in self.masks:
            depths = self.pack.position_ids
            oldest = variant.oldest(depths)
            if oldest is None:  # a window hides nothing of so shallow a tree
                self.masks[variant] = self.masks[PLAIN]
            else:
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
        """``query`` (1, Hq, L, D), ``key`` (1, Hkv, T, D) and ``value`` (1, Hkv, T, Dv) → (1, L, Hq, Dv)."""
        arguments = {"block_mask": self.mask(variant), "scale": scale, "enable_gqa": query.shape[1] != key.shape[1]}
        if variant.softcap is not None:
            arguments["score_mod"] = _softcapped(variant.softcap)
        if sinks is not None:
            arguments["return_lse"] = True
        if not query.is_cuda and torch.is_grad_enabled() and query.requires_grad:
            raise InputError("model.attention: 'flex' has no backward on a CPU; use 'tree_sdpa' or 'auto'")
        attend = flex_attention  # which a compiled block around it takes as it is
        if query.is_cuda:
            # FlashAttention-4's kernels are used for what they are known to compute.
            known = variant == PLAIN and sinks is None and value.shape[-1] == query.shape[-1]
            known = known and query.dtype in (torch.bfloat16, torch.float16)
            arguments["kernel_options"] = self.options if known else None
            if not torch.compiler.is_compiling():
                attend = _compiled()
        out = attend(query, key, value, **arguments)
        if sinks is not None:
            # A key without value takes its share of the weights: exp(lse) of exp(lse) + exp(sink).
            out, lse = out
            share = torch.sigmoid(lse - sinks.to(lse.dtype).view(1, -1, 1))
            out = (out * share[..., None]).to(value.dtype)
        return out.transpose(1, 2)
