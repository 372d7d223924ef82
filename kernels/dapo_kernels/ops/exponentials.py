"""Logits → log-probabilities and, in the logits' memory, dlogits that lack only one number a row: in one pass.

A row of dlogits is coefficient · (onehot − softmax). What is written here is exp(logits − origin), and at the target
that less the row's sum: −sum · (onehot − softmax), so that −coefficient / sum, known later, is all that is missing.
The origin is near the row's largest logit, and the exponentials keep their relative precision in bf16 (not in fp16,
whose range is too small).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dapo_kernels.ops.final_logits import ALIGN, _block_of_logits, _final_logits

# One program a row, as in logprob.py.
BLOCK, WARPS = 4096, 8
# The origin moves where a block has a logit this far above it: then what was written is read and scaled once more. So
# a sum is at most V · e^HEADROOM, far from fp32's end, and hardly any row is written twice.
HEADROOM = 30.0


@triton.jit(
    do_not_specialize=[
        *("targets_ptr", "logps_ptr", "sums_ptr", "lse_ptr", "entropy_ptr", "V"),  # as in logprob.py
    ],
)
def exponentials_kernel(
    logits_ptr,  # (U, V) fp32, raw, in rows whose memory is ours up to the next multiple of ALIGN columns
    values_ptr,  # (U, V) out, the SAME memory: fp32, or bf16 in the first half of each row
    row_stride,  # of logits, in elements
    out_stride,  # of values, in elements
    bias_ptr,  # (V,) fp32, readable likewise
    targets_ptr,  # (U,)
    logps_ptr,  # (U,) fp32 out
    sums_ptr,  # (U,) fp32 out: of exp(logits − origin)
    lse_ptr,  # (U,) fp32 out
    entropy_ptr,  # (U,) fp32 out
    V,
    softcap,
    inverse_temperature,
    ignore_index,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_ENTROPY: tl.constexpr,
    HEADROOM: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0)
    logits = logits_ptr + row.to(tl.int64) * row_stride
    values = values_ptr + row.to(tl.int64) * out_stride
    target = tl.load(targets_ptr + row).to(tl.int64)
    column = tl.minimum(tl.maximum(target, 0), V - 1)  # never out of bounds, whatever the target
    # Before the first barrier, and so before anything is written over it.
    raw_target = tl.load(logits + column)
    bias_target = tl.load(bias_ptr + column) if HAS_BIAS else 0.0
    z_target, slope_target = _final_logits(raw_target, bias_target, softcap, inverse_temperature, HAS_SOFTCAP)

    origin = float("-inf")
    total = 0.0
    moment = 0.0  # Σ exp(z − origin)·(z − origin), as in logprob.py
    for start in range(0, V, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        z, slope, readable = _block_of_logits(
            logits, bias_ptr, columns, V, softcap, inverse_temperature, HAS_BIAS, HAS_SOFTCAP, ALIGN
        )
        highest = tl.max(z, 0)  # drops NaN on a GPU; the total keeps it
        tl.debug_barrier()  # ascending, and every thread has read: narrow values overwrite only logits that were
        if highest > origin + HEADROOM:  # also where nothing finite has come yet
            gap = tl.where(origin == float("-inf"), 0.0, origin - highest)
            down = tl.exp(gap)
            for before in range(0, start, BLOCK):
                earlier = before + tl.arange(0, BLOCK)
                written = tl.load(values + earlier).to(tl.float32) * down
                tl.store(values + earlier, written.to(values_ptr.dtype.element_ty))
            moment = down * (moment + gap * total)
            total = total * down
            origin = highest
        base = tl.where(origin == float("-inf"), 0.0, origin)
        exponentials = tl.exp(z - base)
        total += tl.sum(exponentials, 0)
        if HAS_ENTROPY:
            moment += tl.sum(tl.where(z == float("-inf"), 0.0, exponentials * (z - base)), 0)
        written = tl.where(columns < V, exponentials * slope, 0.0)
        tl.store(values + columns, written.to(values_ptr.dtype.element_ty), mask=readable)
    tl.debug_barrier()

    lse = origin + tl.log(total)
    tl.store(lse_ptr + row, lse)
    tl.store(sums_ptr + row, total)
    if HAS_ENTROPY:
        entropy = tl.log(total) - moment / total
        tl.store(entropy_ptr + row, tl.where(entropy < 0, 0.0, entropy))  # rounding; NaN stays NaN
    logp = z_target - lse
    logp = tl.where(logp > 0, 0.0, logp)  # rounding; NaN stays NaN
    tl.store(logps_ptr + row, tl.where(target == ignore_index, 0.0, logp))
    # From fp32: adding to what was rounded would lose 1 - p near p = 1.
    base = tl.where(origin == float("-inf"), 0.0, origin)
    hit = (tl.exp(z_target - base) - total) * slope_target
    tl.store(values + column, hit.to(values_ptr.dtype.element_ty), mask=target != ignore_index)


def exponentials(
    logits: Tensor,  # (U, V) fp32, overwritten, in rows of padded_width(V) columns
    out: Tensor,  # (U, V) view of the same memory in the dtype of the GEMMs
    bias: Tensor | None,  # (V,) fp32, in memory of padded_width(V)
    targets: Tensor,  # (U,)
    softcap: float | None,
    temperature: float,
    ignore_index: int,
    statistics: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Log-probabilities, sums, log-sum-exps and, for statistics, entropies: (U,) each.

    out[u] = −sums[u] · (onehot(target) − softmax(logits[u])), times the logits' slope.
    """
    rows, vocabulary = logits.shape
    logps, sums, lse = (torch.empty(rows, dtype=torch.float32, device=logits.device) for _ in range(3))
    entropy = torch.empty_like(lse) if statistics else None
    if rows:
        exponentials_kernel[(rows,)](
            logits,
            out,
            logits.stride(0),
            out.stride(0),
            bias,
            targets,
            logps,
            sums,
            lse,
            entropy,
            vocabulary,
            softcap or 1.0,
            1 / temperature,
            ignore_index,
            HAS_BIAS=bias is not None,
            HAS_SOFTCAP=softcap is not None,
            HAS_ENTROPY=statistics,
            HEADROOM=HEADROOM,
            ALIGN=ALIGN,
            BLOCK=min(BLOCK, triton.next_power_of_2(vocabulary)),
            num_warps=WARPS,
        )
    return logps, sums, lse, entropy
