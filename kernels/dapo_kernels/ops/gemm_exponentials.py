"""Hidden rows times the weight, never stored as logits: exponentials in 16 bits, and what a softmax needs of them.

The words are split among programs, each of which goes over its own from first to last: its exponentials are of logits
less an origin of its own, and the products that read them take what an origin lacks on their small side, a number a row
and split. So a logit costs what the three products alone cost: 2 bytes written, and 2 read twice.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dapo_kernels.ops.exponentials import HEADROOM
from dapo_kernels.ops.final_logits import ALIGN, _final_logits

BLOCK_ROWS, BLOCK_WORDS, BLOCK_WIDTH, WARPS = 128, 64, 64, 8  # 128 words spill registers on sm_90


@triton.jit(
    do_not_specialize=[
        *(
            "targets_ptr",
            "blocks_ptr",
            "origins_ptr",
            "totals_ptr",
            "picked_ptr",
            "U",
            "V",
            "words",
        ),  # as in logprob.py
    ],
)
def gemm_exponentials_kernel(
    x_ptr,  # (U, H) bf16
    weight_ptr,  # (V, H) bf16
    bias_ptr,  # (V,) fp32
    targets_ptr,  # (U,)
    values_ptr,  # (U, V) bf16 out, in rows whose memory is ours up to the next multiple of ALIGN columns
    blocks_ptr,  # (B, U) fp32 out: the origin that each block of words was written with
    origins_ptr,  # (S, U) fp32 out: the last of them
    totals_ptr,  # (S, U) fp32 out: of exp(logits − origin)
    picked_ptr,  # (U,) fp32 out: the targets' final logits
    x_stride,
    weight_stride,
    out_stride,  # of values
    U,
    V,
    H,
    words,  # of a split: a multiple of BLOCK_WORDS
    softcap,
    inverse_temperature,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_VALUES: tl.constexpr,
    HEADROOM: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_WORDS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    # Offsets of 64 bits are scalars, so that the tiles' own need few registers.
    top = tl.program_id(0) * BLOCK_ROWS
    local = tl.arange(0, BLOCK_ROWS)
    inside = top + local < U
    near = tl.minimum(local, U - 1 - top)  # the last row again, where there is none
    x_rows = x_ptr + top.to(tl.int64) * x_stride
    values = values_ptr + top.to(tl.int64) * out_stride if HAS_VALUES else values_ptr
    target = tl.load(targets_ptr + top + near).to(tl.int64)
    target = tl.minimum(tl.maximum(target, 0), V - 1).to(tl.int32)  # never out of bounds, whatever the target
    first = tl.program_id(1) * words
    last = tl.minimum(first + words, V)

    origin = tl.full((BLOCK_ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_ROWS,), tl.float32)
    for start in range(first, last, BLOCK_WORDS):
        word = tl.arange(0, BLOCK_WORDS)
        near_word = tl.minimum(word, V - 1 - start)
        weight = weight_ptr + tl.cast(start, tl.int64) * weight_stride
        raw = tl.zeros((BLOCK_ROWS, BLOCK_WORDS), tl.float32)
        for begin in range(0, H, BLOCK_WIDTH):
            depth = begin + tl.arange(0, BLOCK_WIDTH)
            x = tl.load(x_rows + near[:, None] * x_stride + depth[None, :], mask=depth[None, :] < H, other=0.0)
            w = tl.load(
                weight + near_word[None, :] * weight_stride + depth[:, None], mask=depth[:, None] < H, other=0.0
            )
            raw = tl.dot(x, w, raw)
        bias = tl.load(bias_ptr + start + near_word)[None, :] if HAS_BIAS else 0.0
        z, slope = _final_logits(raw, bias, softcap, inverse_temperature, HAS_SOFTCAP)
        z = tl.where((start + word < V)[None, :], z, float("-inf"))

        hit = tl.sum(tl.where(word[None, :] == (target - start)[:, None], z, 0.0), 1)
        tl.store(picked_ptr + top + local, hit, mask=inside & (target >= start) & (target < start + BLOCK_WORDS))

        highest = tl.max(z, 1)  # drops NaN on a GPU; the total keeps it
        new = tl.where(highest > origin + HEADROOM, highest, origin)  # also where nothing finite has come yet
        total *= tl.exp(tl.where((origin == new) | (origin == float("-inf")), 0.0, origin - new))
        origin = new
        exponentials = tl.exp(z - tl.where(origin == float("-inf"), 0.0, origin)[:, None])
        total += tl.sum(exponentials, 1)
        if HAS_VALUES:
            readable = (start + word < tl.cdiv(V, ALIGN) * ALIGN)[None, :]
            narrow = (exponentials * slope).to(values_ptr.dtype.element_ty)
            written = values + local[:, None] * out_stride + (start + word)[None, :]
            tl.store(written, narrow, mask=inside[:, None] & readable)
            tl.store(blocks_ptr + tl.cast(start // BLOCK_WORDS, tl.int64) * U + top + local, origin, mask=inside)

    of_split = tl.program_id(1) * U + top + local
    tl.store(origins_ptr + of_split, origin, mask=inside)
    tl.store(totals_ptr + of_split, total, mask=inside)


@triton.jit(do_not_specialize=["blocks_ptr", "origins_ptr", "U", "blocks_of_split"])
def late_origins_kernel(
    values_ptr,  # (U, V) as above, scaled where its origin moved after a block was written: hardly anywhere
    blocks_ptr,  # (B, U)
    origins_ptr,  # (S, U)
    out_stride,
    U,
    blocks_of_split,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_WORDS: tl.constexpr,
):
    top = tl.program_id(0) * BLOCK_ROWS
    local = tl.arange(0, BLOCK_ROWS)
    inside = top + local < U
    block = tl.program_id(1)
    used = tl.load(blocks_ptr + block.to(tl.int64) * U + top + local, mask=inside, other=0.0)
    last = tl.load(origins_ptr + (block // blocks_of_split).to(tl.int64) * U + top + local, mask=inside, other=0.0)
    # Nothing but nought, or NaN, is written with an origin of -inf.
    differs = (used != last) & (used != float("-inf"))
    if tl.max(differs.to(tl.int32), 0) > 0:
        column = block * BLOCK_WORDS + tl.arange(0, BLOCK_WORDS)
        values = values_ptr + top.to(tl.int64) * out_stride + local[:, None] * out_stride + column[None, :]
        inside &= differs
        older = tl.load(values, mask=inside[:, None], other=0.0).to(tl.float32)
        scale = tl.exp(tl.where(inside, used - last, 0.0))
        tl.store(values, (older * scale[:, None]).to(values_ptr.dtype.element_ty), mask=inside[:, None])


class Splits(NamedTuple):
    """Of S splits of the words."""

    words: int  # of each; the last may have fewer
    origins: Tensor  # (S, U) fp32
    totals: Tensor  # (S, U) fp32: of exp(logits − origin)
    picked: Tensor  # (U,) fp32: the targets' final logits


def words_of_a_split(rows: int, vocabulary: int, device: torch.device) -> int:
    """As few splits as give every multiprocessor a program, each of whole blocks."""
    programs = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2
    splits = max(1, programs // triton.cdiv(rows, BLOCK_ROWS))
    return triton.cdiv(triton.cdiv(vocabulary, splits), BLOCK_WORDS) * BLOCK_WORDS


def gemm_exponentials(
    x: Tensor,  # (U, H) bf16, unit column stride
    weight: Tensor,  # (V, H) bf16, unit column stride
    bias: Tensor | None,  # (V,) fp32
    targets: Tensor,  # (U,)
    out: Tensor | None,  # (U, V) bf16, in rows of padded_width(V) columns; None: only what is returned
    words: int,  # of a split, a multiple of BLOCK_WORDS
    softcap: float | None,
    temperature: float,
) -> Splits:
    """out[u] = exp(logits[u] − origin of row u and the word's split), times the logits' slope; see `Splits`."""
    (rows, width), vocabulary = x.shape, weight.shape[0]
    splits = triton.cdiv(vocabulary, words)
    origins, totals = (torch.empty((splits, rows), dtype=torch.float32, device=x.device) for _ in range(2))
    picked = torch.empty(rows, dtype=torch.float32, device=x.device)
    blocks = (
        None
        if out is None
        else torch.empty((triton.cdiv(vocabulary, BLOCK_WORDS), rows), dtype=torch.float32, device=x.device)
    )
    if rows:
        of_rows = triton.cdiv(rows, BLOCK_ROWS)
        gemm_exponentials_kernel[(of_rows, splits)](
            x,
            weight,
            bias,
            targets,
            out,
            blocks,
            origins,
            totals,
            picked,
            x.stride(0),
            weight.stride(0),
            0 if out is None else out.stride(0),
            rows,
            vocabulary,
            width,
            words,
            softcap or 1.0,
            1 / temperature,
            HAS_BIAS=bias is not None,
            HAS_SOFTCAP=softcap is not None,
            HAS_VALUES=out is not None,
            HEADROOM=HEADROOM,
            ALIGN=ALIGN,
            BLOCK_ROWS=BLOCK_ROWS,
            BLOCK_WORDS=BLOCK_WORDS,
            BLOCK_WIDTH=BLOCK_WIDTH,
            num_warps=WARPS,
        )
        if out is not None:
            late_origins_kernel[(of_rows, triton.cdiv(vocabulary, BLOCK_WORDS))](
                out,
                blocks,
                origins,
                out.stride(0),
                rows,
                words // BLOCK_WORDS,
                BLOCK_ROWS=BLOCK_ROWS,
                BLOCK_WORDS=BLOCK_WORDS,
                num_warps=WARPS,
            )
    return Splits(words, origins, totals, picked)
