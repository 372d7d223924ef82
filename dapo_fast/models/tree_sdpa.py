"""Tree attention on a CPU, with a backward, at the cost of what is visible: trunk² + branches × trunk.

In depth-first order everything that hangs on one token of a run is a contiguous slice of rows, and what those rows see
of the run is a contiguous slice of keys. So the visible (query, key) pairs are cut into rectangles without any
gathering: a causal block for each long run, a full block [what hangs on a token] × [the run up to that token], and a
masked block for each handful of short branches. Each is one call of PyTorch's flash attention for CPUs; partial
results of the same query merge by their log-sum-exp. Backward runs each block with the merged output and log-sum-exp,
which makes its share of the gradients exact (as ring attention does).

A window cuts the rectangles down: runs into pieces of its length, keys above all queries' windows away, and masks what
is left of its edge. A sink is one more part to merge, of log-sum-exp ``sink`` and no value.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from dapo_fast.data.pack import Pack
from dapo_fast.models.dense import Dense
from dapo_fast.models.variants import PLAIN, Variant

# Siblings up to this many tokens together share one masked block: below, the cost of a call exceeds that of the
# masked-out pairs.
DENSE_TOKENS = 192

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


@dataclass(slots=True)
class Block:
    """Queries ``q0:q1`` against keys ``k0:k1``: all visible, causal, or as ``mask`` says."""

    q0: int
    q1: int
    k0: int
    k1: int
    causal: bool = False
    mask: Tensor | None = None  # (1, 1, q1 - q0, k1 - k0) additive, the queries' dtype

    @property
    def own(self) -> bool:
        """Whether these are the queries' own rows: every row is in one such block, as a query and as a key."""
        return self.q0 == self.k0


def plan_blocks(pack: Pack, dtype: torch.dtype) -> list[Block]:
    """Blocks that cover every visible pair of ``pack`` once; those that hold a query's own key come first."""
    runs = pack.runs.tolist()
    starts = [run[0] for run in runs]
    run_of_row = torch.repeat_interleave(torch.arange(len(runs)), pack.runs[:, 1].long()).tolist()
    subtree_end = pack.subtree_end.cpu()
    ends = subtree_end[pack.runs[:, 0].long()].tolist()  # of each run's whole subtree
    children: list[list[int]] = [[] for _ in runs]
    roots: list[int] = []
    for index, (_, _, parent) in enumerate(runs):
        (children[run_of_row[parent]] if parent >= 0 else roots).append(index)

    own: list[Block] = []
    across: list[Block] = []

    def masked(first: int, last: int) -> None:
        start, end = starts[first], ends[last]
        if first == last and not children[first]:
            own.append(Block(start, end, start, end, causal=True))
            return
        rows = torch.arange(start, end)
        visible = (rows[None, :] <= rows[:, None]) & (rows[:, None] < subtree_end[start:end][None, :])
        mask = torch.zeros(end - start, end - start, dtype=dtype).masked_fill_(~visible, float("-inf"))
        own.append(Block(start, end, start, end, mask=mask[None, None]))

    pending = [roots]
    while pending:
        siblings = pending.pop()  # adjacent subtrees
        position = 0
        while position < len(siblings):
            last = position
            start = starts[siblings[position]]
            while last + 1 < len(siblings) and ends[siblings[last + 1]] - start <= DENSE_TOKENS:
                last += 1
            run = siblings[position]
            if ends[siblings[last]] - start <= DENSE_TOKENS or not children[run]:
                masked(run, siblings[last])
            else:
                stop = start + runs[run][1]
                own.append(Block(start, stop, start, stop, causal=True))
                hanging: dict[int, list[int]] = {}
                for child in children[run]:
                    hanging.setdefault(runs[child][2], []).append(child)
                for row, group in hanging.items():
                    across.append(Block(starts[group[0]], ends[group[-1]], start, row + 1))
                    pending.append(group)
            position = last + 1
    return own + across


def windowed(blocks: list[Block], depths: Tensor, oldest: Tensor, dtype: torch.dtype) -> list[Block]:
    """``blocks`` without the pairs whose key is less deep than ``oldest`` (T,) of its query says."""
    span = int((depths - oldest).max()) + 1  # most tokens that a query sees
    hidden = torch.finfo(dtype).min / 2  # finite: a query may see nothing of a block that others share
    own: list[Block] = []
    across: list[Block] = []

    def masked(b: Block, k0: int) -> Block:
        visible = depths[None, k0 : b.k1] >= oldest[b.q0 : b.q1, None]
        mask = torch.zeros(visible.shape, dtype=dtype) if b.mask is None else b.mask[0, 0].clone()
        return Block(b.q0, b.q1, k0, b.k1, mask=mask.masked_fill_(~visible, hidden)[None, None])

    for b in blocks:
        if not b.own:
            # Keys of one run: each a token deeper than the one before.
            first = b.k0 + max(0, int(oldest[b.q0 : b.q1].min()) - int(depths[b.k0]))
            if first < b.k1:
                whole = int(oldest[b.q0 : b.q1].max()) <= int(depths[first])
                across.append(Block(b.q0, b.q1, first, b.k1) if whole else masked(b, first))
        elif not b.causal:
            own.append(masked(b, b.k0))
        else:  # a run: depths rise by one a row
            for start in range(b.q0, b.q1, span):
                stop = min(start + span, b.q1)
                piece = Block(start, stop, start, stop, causal=True)
                if int(oldest[stop - 1]) > int(depths[start]):  # chunks may end within a piece
                    rows = torch.arange(start, stop)
                    causal = torch.zeros(stop - start, stop - start, dtype=dtype)
                    causal.masked_fill_(rows[None, :] > rows[:, None], float("-inf"))
                    piece = masked(Block(start, stop, start, stop, mask=causal[None, None]), start)
                own.append(piece)
                before = max(b.k0, start - span)
                if before < start and int(oldest[start:stop].min()) <= int(depths[start - 1]):
                    across.append(masked(Block(start, stop, before, start), before))
    return own + across


class TreeSDPA:
    """Attention of one pack, ready to be called by every layer."""

    def __init__(self, pack: Pack) -> None:
        self.pack = pack
        self.blocks: dict[tuple[torch.dtype, Variant], list[Block]] = {}

    @torch.compiler.disable  # a plan per pack: nothing that a compiled block could keep
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
        if variant.softcap is not None:  # PyTorch's kernel has none
            return self.dense(query, key, value, scale, variant, sinks).contiguous()
        blocks = self.blocks_for(query.dtype, variant)
        width = value.shape[-1]
        size = max(width, query.shape[-1])  # the kernel knows one; they differ in multi-head latent attention
        query, key, value = (x if x.shape[-1] == size else pad(x, (0, size - x.shape[-1])) for x in (query, key, value))
        out = _BlockAttention.apply(query, key, value, sinks, blocks, scale)
        return out[..., :width].contiguous()

    @functools.cached_property
    def dense(self) -> Dense:
        return Dense(self.pack.subtree_end, self.pack.position_ids)

    def blocks_for(self, dtype: torch.dtype, variant: Variant) -> list[Block]:
        """Planned at the first layer of a kind, when the dtype is known."""
        if (dtype, PLAIN) not in self.blocks:
            self.blocks[dtype, PLAIN] = plan_blocks(self.pack, dtype)
        if (dtype, variant) not in self.blocks:
            blocks, depths = self.blocks[dtype, PLAIN], self.pack.position_ids
            oldest = variant.oldest(depths)
            self.blocks[dtype, variant] = blocks if oldest is None else windowed(blocks, depths, oldest, dtype)
        return self.blocks[dtype, variant]


def _grouped(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries as (Hkv, G, T, D), keys and values the same by stride 0: grouped heads without copies."""
    heads = key.shape[1]
    query = query[0].unflatten(0, (heads, -1))
    return query, key[0][:, None].expand_as(query), value[0][:, None].expand_as(query)


class _BlockAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, sinks, blocks, scale):  # noqa: ANN001
        q, k, v = _grouped(query, key, value)
        out = torch.empty((1, q.shape[2], query.shape[1], q.shape[3]), dtype=q.dtype)  # (1, T, Hq, D)
        o = out.transpose(1, 2)[0].unflatten(0, q.shape[:2])
        lse = None
        for b in blocks:
            part, part_lse = _forward(
                q[:, :, b.q0 : b.q1], k[:, :, b.k0 : b.k1], v[:, :, b.k0 : b.k1], 0.0, b.causal,
                attn_mask=b.mask, scale=scale,
            )  # fmt: skip
            if lse is None:
                # (T, Hkv, G) in memory, as the backward of the flash kernel reads it.
                lse = part_lse.new_empty((q.shape[0], q.shape[2], q.shape[1])).transpose(1, 2)
            rows = o[:, :, b.q0 : b.q1]
            rows_lse = lse[:, :, b.q0 : b.q1]
            if b.own:
                rows.copy_(part)
                rows_lse.copy_(part_lse)
            else:
                total = torch.logaddexp(rows_lse, part_lse)
                rows.mul_((rows_lse - total).exp_()[..., None]).add_(part * (part_lse - total).exp_()[..., None])
                rows_lse.copy_(total)
        if sinks is not None:
            total = torch.logaddexp(lse, _by_group(sinks, lse))
            o.mul_((lse - total).exp_()[..., None])
            lse.copy_(total)
        ctx.save_for_backward(query, key, value, sinks, out, lse)
        ctx.blocks, ctx.scale = blocks, scale
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):  # noqa: ANN001
        query, key, value, sinks, out, lse = ctx.saved_tensors
        q, k, v = _grouped(query, key, value)
        o = out.transpose(1, 2)[0].unflatten(0, q.shape[:2])
        g = upstream.transpose(1, 2)[0].unflatten(0, q.shape[:2])
        kv_heads, _, length, width = q.shape
        dq = torch.empty_like(out)
        dk = torch.empty((1, length, kv_heads, width), dtype=key.dtype)
        dv = torch.empty_like(dk)
        dq_rows = dq.transpose(1, 2)[0].unflatten(0, q.shape[:2])
        dk_rows, dv_rows = dk[0].transpose(0, 1), dv[0].transpose(0, 1)
        for b in ctx.blocks:
            grads = _backward(
                g[:, :, b.q0 : b.q1], q[:, :, b.q0 : b.q1], k[:, :, b.k0 : b.k1], v[:, :, b.k0 : b.k1],
                o[:, :, b.q0 : b.q1], lse[:, :, b.q0 : b.q1], 0.0, b.causal, attn_mask=b.mask, scale=ctx.scale,
            )  # fmt: skip
            gathered = (
                (dq_rows[:, :, b.q0 : b.q1], grads[0]),
                (dk_rows[:, b.k0 : b.k1], grads[1].sum(1)),
                (dv_rows[:, b.k0 : b.k1], grads[2].sum(1)),
            )
            for rows, part in gathered:
                # A row's own block comes before all others, so nothing has to be cleared.
                rows.copy_(part) if b.own else rows.add_(part)
        dsinks = None
        if sinks is not None:
            # A sink's value is nought: d(sink) = p_sink · (0 − g·out), summed over the rows.
            weight = (_by_group(sinks, lse) - lse).exp()
            dsinks = -(weight * (g.to(lse.dtype) * o).sum(-1)).sum(-1).flatten().to(sinks.dtype)
        return dq.transpose(1, 2), dk.transpose(1, 2), dv.transpose(1, 2), dsinks, None, None


def _by_group(sinks: Tensor, lse: Tensor) -> Tensor:
    """(Hq,) as (Hkv, G, 1), in the dtype of ``lse``."""
    return sinks.to(lse.dtype).view(*lse.shape[:2], 1)
