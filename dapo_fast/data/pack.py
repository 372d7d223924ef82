"""One forward pass: what a pack holds, and how pieces of trees are put side by side in it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch

from dapo_fast.data.trie import Arrays


@dataclass(slots=True)
class Split:
    """Which rows of a pack this rank computes, where several share it (``models.context``).

    Attributes:
        rows: ``(L,)`` int64, ascending: the whole pack's rows that are this rank's.
        order: ``(T,)`` int64: where each row of the whole pack is among the rows of all ranks, rank after rank.
    """

    rows: torch.Tensor
    order: torch.Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Split:
        """The same on ``device``."""
        return Split(*(x.to(device, non_blocking=non_blocking) for x in (self.rows, self.order)))


@dataclass(slots=True)
class Pack:
    """One forward pass: tokens of several trees in depth-first order, and what is read from them.

    Attributes:
        input_ids: ``(T,)`` int64, padding included.
        position_ids: ``(T,)`` int64, depth in the tree.
        subtree_end: ``(T,)`` int32; key k is visible to query q iff ``k <= q < subtree_end[k]``.
        runs: ``(R, 3)`` int32 on the CPU: start, length and parent row (-1: a root) of each unbranched stretch.
        hidden_rows: ``(N,)`` int64, the row whose hidden state predicts each scored token.
        targets: ``(N,)`` int64, the scored tokens, sorted by step.
        cu_steps: ``(S+1,)`` int32; step s owns entries ``cu_steps[s]:cu_steps[s+1]``.
        advantages: ``(S,)`` fp32, Â of each step (NaN where the tree has none yet).
        ref_logps: ``(S,)`` fp32, log π_ref of each step in nats (NaN where the tree has none yet).
        step_keys: ``(S, 3)`` int64: tree, state and candidate index.
        value_rows: ``(M,)`` int64, rows at which a value is read.
        value_targets: ``(M,)`` fp32, MC(s) of the state (NaN for candidates).
        value_weights: ``(M,)`` fp32, outcomes behind the target (NaN for candidates).
        value_keys: ``(M, 3)`` int64; candidate index -1 is the state itself.
        tokens: Tokens that are not padding.
        flat_tokens: Tokens that one sequence per scored step or value would take.
        imitation: What the −log π of scored tokens that are demonstrations is divided by; None: they are candidates.
        split: Where a rank takes a share of a pack: ``input_ids`` and ``position_ids`` are then ``(L,)``, those of its
            rows; what it reads is counted in rows of the whole pack.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    subtree_end: torch.Tensor
    runs: torch.Tensor
    hidden_rows: torch.Tensor
    targets: torch.Tensor
    cu_steps: torch.Tensor
    advantages: torch.Tensor
    ref_logps: torch.Tensor
    step_keys: torch.Tensor
    value_rows: torch.Tensor
    value_targets: torch.Tensor
    value_weights: torch.Tensor
    value_keys: torch.Tensor
    tokens: int
    flat_tokens: int
    imitation: float | None = None
    split: Split | None = None

    @property
    def length(self) -> int:
        """Rows that are computed, padding included: T, or L of a share."""
        return self.input_ids.numel()

    @property
    def steps(self) -> int:
        """S, the number of scored steps."""
        return self.cu_steps.numel() - 1

    @property
    def is_flat(self) -> bool:
        """Whether no two sequences share a prefix: plain packed sequences, which variable-length kernels take."""
        return bool((self.runs[:, 2] < 0).all())

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Pack:
        """The pack with its tensors on ``device``, but for those that are read on the host.

        Attention is planned from ``runs``, and the fused losses cut their chunks by ``hidden_rows`` and ``cu_steps``.
        """
        host = ("runs", "hidden_rows", "cu_steps", "tokens", "flat_tokens", "imitation")
        moved = {
            f.name: getattr(self, f.name).to(device, non_blocking=non_blocking)
            for f in fields(self)
            if f.name not in host and getattr(self, f.name) is not None
        }
        return replace(self, **moved)


@dataclass(slots=True)
class Piece:
    """What cannot be divided further: one trie and everything read from it."""

    arrays: Arrays
    flat_tokens: int
    rows: list[np.ndarray] = field(default_factory=list)
    targets: list[Sequence[int]] = field(default_factory=list)
    advantages: list[float] = field(default_factory=list)
    ref_logps: list[float] = field(default_factory=list)
    step_keys: list[tuple[int, int, int]] = field(default_factory=list)
    value_rows: list[int] = field(default_factory=list)
    value_targets: list[float] = field(default_factory=list)
    value_weights: list[float] = field(default_factory=list)
    value_keys: list[tuple[int, int, int]] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Tokens."""
        return self.arrays.input_ids.size


# Rows that are dealt together where ranks share a pack: on CUDA FlexAttention's block, so that each sees whole blocks.
ROW_BLOCK = {"cuda": 128, "cpu": 16}


def pad_lengths(pack_tokens: int, device: torch.device | str, sharing: int = 1, longest: int = 0) -> list[int] | None:
    """The few lengths that packs are padded to: on CUDA fractions of the budget, so that hardly anything recompiles.

    Quarter octaves from an eighth of the budget on: packs that fill the ranks may have any size, those of a run's
    batches nearly the same. On the CPU nothing is compiled for a length and padding would only cost time: None.

    Args:
        sharing: Ranks that share a pack, each to get as many blocks of its rows.
        longest: To which packs of long trunks may grow: the lengths go on until there.
    """
    kind = torch.device(device).type
    block = ROW_BLOCK[kind] * sharing
    if kind != "cuda":
        return None if sharing == 1 else [block]
    more = math.ceil(4 * math.log2(longest / pack_tokens)) if longest > pack_tokens else 0
    return sorted({block * math.ceil(pack_tokens * 2 ** (k / 4) / block) for k in range(-12, more + 1)})


def _padded(size: int, lengths: Sequence[int] | None) -> int:
    if lengths is None:
        return size
    for length in lengths:
        if size <= length:
            return length
    return max(lengths) * math.ceil(size / max(lengths))


def concatenate(pieces: Sequence[Piece], lengths: Sequence[int] | None) -> Pack:
    """One pack of ``pieces``, padded to the next of ``lengths``."""
    tokens = sum(piece.size for piece in pieces)
    # An empty pack is one padding token: a rank without work still takes part in every collective.
    padding = _padded(max(tokens, 1), lengths) - tokens
    offsets = np.cumsum([0] + [piece.size for piece in pieces])[:-1].tolist()
    runs = [p.arrays.runs + np.array([o, 0, 0]) + (p.arrays.runs[:, 2:] >= 0) * np.array([0, 0, o])
            for p, o in zip(pieces, offsets, strict=True)]  # fmt: skip
    # Padding is one sequence more, which nobody reads: variable-length kernels and SDPA pay for each sequence.
    runs.append(np.array([[tokens, padding, -1]] if padding else []).reshape(-1, 3))
    rows = [row + o for p, o in zip(pieces, offsets, strict=True) for row in p.rows]
    targets = [t for p in pieces for step in p.targets for t in step]
    zeros = np.zeros(padding, dtype=np.int64)

    def joined(parts: Iterable[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.concatenate(list(parts)).astype(np.int64))

    def keys(parts: list[tuple[int, int, int]]) -> torch.Tensor:
        return torch.tensor(parts, dtype=torch.int64).reshape(-1, 3)

    return Pack(
        input_ids=joined([*(p.arrays.input_ids for p in pieces), zeros]),
        position_ids=joined([*(p.arrays.position_ids for p in pieces), zeros]),
        subtree_end=joined(
            [*(p.arrays.subtree_end + o for p, o in zip(pieces, offsets, strict=True)), zeros + tokens + padding]
        ).to(torch.int32),
        runs=joined(runs).to(torch.int32),
        hidden_rows=joined([*rows, np.zeros(0, dtype=np.int64)]),
        targets=torch.tensor(targets, dtype=torch.int64),
        cu_steps=torch.from_numpy(np.cumsum([0] + [len(row) for row in rows]).astype(np.int32)),
        advantages=torch.tensor([a for p in pieces for a in p.advantages], dtype=torch.float32),
        ref_logps=torch.tensor([r for p in pieces for r in p.ref_logps], dtype=torch.float32),
        step_keys=keys([k for p in pieces for k in p.step_keys]),
        value_rows=torch.tensor(
            [row + o for p, o in zip(pieces, offsets, strict=True) for row in p.value_rows], dtype=torch.int64
        ),
        value_targets=torch.tensor([v for p in pieces for v in p.value_targets], dtype=torch.float32),
        value_weights=torch.tensor([w for p in pieces for w in p.value_weights], dtype=torch.float32),
        value_keys=keys([k for p in pieces for k in p.value_keys]),
        tokens=tokens,
        flat_tokens=sum(piece.flat_tokens for piece in pieces),
    )


def empty_pack(lengths: Sequence[int] | None = None) -> Pack:
    """A pack of padding that scores nothing: what a rank runs when the others have a pack more."""
    return concatenate([], lengths)


def pack_stats(packs: Sequence[Pack]) -> dict[str, float]:
    """What packing did: tokens, padding, tokens of one sequence a step, and their ratios."""
    tokens = sum(pack.tokens for pack in packs)
    length = sum(pack.length for pack in packs)
    flat = sum(pack.flat_tokens for pack in packs)
    return {
        "packs": len(packs),
        "tokens": tokens,
        "flat_tokens": flat,
        "utilisation": tokens / max(length, 1),
        "deduplication": flat / max(tokens, 1),
    }


def pack_cost(pack: Pack, hidden_size: int) -> float:
    """Work of one pack, in tokens: its length, and its visible (query, key) pairs at their price.

    A layer takes about 24·H² flops a token in matrix products and 4·H a visible pair in attention (H: hidden size).
    """
    return pack.length + float((pack.position_ids + 1).sum()) / (6 * hidden_size)
