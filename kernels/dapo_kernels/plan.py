"""Where the chunks of logits are cut: at segment boundaries, each chunk small enough for its logits buffer."""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from dapo_kernels import checks

# On a GPU a chunk's fp32 logits fill at most this; GEMMs keep their speed from about a thousand rows on.
# (2^30 bytes is 1,765 rows of Qwen's 152,064 words. Its best value on an H200: not measured.)
GPU_CHUNK_BYTES, GPU_MAX_ROWS, GPU_MIN_ROWS = 1 << 30, 4096, 512
# On a CPU: GEMMs lose little from 128 rows on, and smaller buffers stay nearer to the cache. A longer group of segments
# stays in one piece up to the second size: computing its logits twice would cost more.
CPU_CHUNK_BYTES, CPU_MIN_ROWS = 1 << 23, 128
CPU_PIECE_BYTES, CPU_PIECE_ROWS = 1 << 26, 256


class Piece(NamedTuple):
    """Entries start:stop, whose logits are in memory at once."""

    start: int
    stop: int
    rows: Tensor | None  # (U,) int64 the hidden rows they read, each once; None: rows start:stop themselves
    order: Tensor | None  # (n,) int64 the entries, counted from start, sorted by their row; None: entry i reads row i
    row_starts: Tensor | None  # (U+1,) int32: row u's entries are order[row_starts[u]:row_starts[u+1]]
    row_of: Tensor | None  # (n,) int64: entry i reads row rows[row_of[i]]; with order and row_starts, or None as they


def row_index(hidden: Tensor, piece: Piece) -> Tensor:
    """(U,) the rows of hidden (T, H) that a piece with `rows` reads, and whose gradients it adds to."""
    # On a GPU a wrong row is found only when debugging; clamped, it still is never out of bounds.
    return piece.rows.clamp(0, hidden.shape[0] - 1) if hidden.is_cuda else piece.rows


class Chunk(NamedTuple):
    """Whole segments start:stop, in one piece; in more than one only where a group is longer than a chunk may be."""

    start: int
    stop: int
    pieces: list[Piece]


class Sizes(NamedTuple):
    """Rows of fp32 logits held at once."""

    chunk: int  # of whole groups of segments, where they fit
    piece: int  # of one group that is longer: at least as many


def sizes(chunk_rows: int | None, vocabulary: int, device: torch.device) -> Sizes:
    """As the caller says, or by the device."""
    row_bytes = 4 * vocabulary
    if chunk_rows is None and device.type == "cpu":
        return Sizes(max(CPU_MIN_ROWS, CPU_CHUNK_BYTES // row_bytes), max(CPU_PIECE_ROWS, CPU_PIECE_BYTES // row_bytes))
    if chunk_rows is None:
        chunk_rows = max(GPU_MIN_ROWS, min(GPU_MAX_ROWS, GPU_CHUNK_BYTES // row_bytes) // 128 * 128)
    return Sizes(chunk_rows, chunk_rows)


def make_chunks(
    cu_segments: Tensor | None,
    rows: Tensor | None,
    entries: int,
    limits: Sizes,
    per_group: int,
    device: torch.device,
    name: str = "cu_segments",
) -> list[Chunk]:
    """Cut 0:entries greedily. cu_segments None: every entry is a segment. `name` is what errors call cu_segments.

    Reads cu_segments and rows on the host: where they lie on a GPU and there is more than one chunk to cut, that waits
    for the device once. Callers who keep them on the CPU never wait.
    """
    if cu_segments is None:
        spans = [(a, min(a + limits.chunk, entries)) * 2 for a in range(0, entries, limits.chunk)]
    elif entries <= limits.chunk:
        segments = cu_segments.numel() - 1
        spans = [(0, segments, 0, entries)] if segments else []
    else:
        on_host = cu_segments.cpu()
        if cu_segments.device.type != "cpu":
            checks.offsets(name, on_host, entries)
        spans = _cut(on_host.tolist(), limits.chunk, per_group)
    rows_on_host = None if rows is None else rows.cpu()
    chunks = []
    for start, stop, first, last in spans:
        bounds = ((a, min(a + limits.piece, last)) for a in range(first, last, limits.piece))
        chunks.append(Chunk(start, stop, [_piece(a, b, rows_on_host, device) for a, b in bounds]))
    return chunks


def _cut(offsets: list[int], chunk_rows: int, per_group: int) -> list[tuple[int, int, int, int]]:
    segments = len(offsets) - 1
    boundaries = [*range(0, segments, per_group), segments]
    spans, start = [], 0
    for here, after in pairwise(boundaries):
        if offsets[after] - offsets[start] > chunk_rows and here > start:
            spans.append((start, here, offsets[start], offsets[here]))
            start = here
    spans.append((start, segments, offsets[start], offsets[segments]))
    return spans


def _piece(start: int, stop: int, rows: Tensor | None, device: torch.device) -> Piece:
    if rows is None:
        return Piece(start, stop, None, None, None, None)
    # Sibling candidates' first tokens are all predicted by one trunk row: its logits are computed once for all.
    in_order, order = torch.sort(rows[start:stop].long(), stable=True)
    unique, inverse, counts = torch.unique_consecutive(in_order, return_inverse=True, return_counts=True)
    if unique.numel() == stop - start:  # none is shared: read in the entries' order, they need no lists
        return Piece(start, stop, _to(device, rows[start:stop].long()), None, None, None)
    row_of = torch.empty_like(inverse)
    row_of[order] = inverse
    row_starts = torch.zeros(unique.numel() + 1, dtype=torch.int32)
    torch.cumsum(counts, 0, out=row_starts[1:])
    return Piece(start, stop, *(_to(device, t) for t in (unique, order, row_starts, row_of)))


def _to(device: torch.device, tensor: Tensor) -> Tensor:
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)
