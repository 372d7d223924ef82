"""Logits → log-sum-exp (and entropy) of each row and log-probability of its targets, in one pass over the logits."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dapo_kernels.ops.final_logits import ALIGN, _block_of_logits, _final_logits

# One program a row. 16 fp32 values a thread are in flight: enough to keep the memory busy, no spills.
BLOCK, WARPS = 4096, 8


# What varies from chunk to chunk is not specialised on: each new alignment would be compiled in the midst of training.
@triton.jit(
    do_not_specialize=[
        *("targets_ptr", "order_ptr", "starts_ptr", "logps_ptr", "picked_ptr", "lse_ptr", "entropy_ptr", "V"),
    ],
)
def logprob_kernel(
    logits_ptr,  # (U, V) fp32, raw, in rows whose memory is readable up to the next multiple of ALIGN columns
    row_stride,
    bias_ptr,  # (V,) fp32, readable likewise
    targets_ptr,  # (n,)
    order_ptr,  # (n,) entries sorted by row
    starts_ptr,  # (U+1,) row u owns order[starts[u]:starts[u+1]]
    logps_ptr,  # (n,) fp32 out
    picked_ptr,  # (n,) fp32 out: the targets' final logits
    lse_ptr,  # (U,) fp32 out
    entropy_ptr,  # (U,) fp32 out
    V,
    softcap,
    inverse_temperature,
    ignore_index,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_ORDER: tl.constexpr,  # False: entry u is row u's only one
    HAS_ENTROPY: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0)
    # A chunk of logits may have more than 2^31 elements.
    logits = logits_ptr + row.to(tl.int64) * row_stride
    highest = float("-inf")
    total = 0.0
    moment = 0.0  # Σ exp(z − highest)·(z − highest): around the highest, so that large logits do not cancel
    for start in range(0, V, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        z, _, _ = _block_of_logits(
            logits, bias_ptr, columns, V, softcap, inverse_temperature, HAS_BIAS, HAS_SOFTCAP, ALIGN
        )
        new = tl.maximum(highest, tl.max(z, 0))  # drops NaN on a GPU; the total keeps it
        # Words masked out by a bias of -inf: no difference of infinities while nothing finite has come.
        origin = tl.where(new == float("-inf"), 0.0, new)
        if HAS_ENTROPY:
            # exp is 0 where a difference is −inf (nothing yet, or a masked word), and so is their product.
            down = tl.where(highest == float("-inf"), 0.0, highest - origin)
            of_block = tl.where(z == float("-inf"), 0.0, tl.exp(z - origin) * (z - origin))
            moment = tl.exp(down) * (moment + down * total) + tl.sum(of_block, 0)
        total = total * tl.exp(highest - origin) + tl.sum(tl.exp(z - origin), 0)
        highest = new
    lse = highest + tl.log(total)
    tl.store(lse_ptr + row, lse)
    if HAS_ENTROPY:
        entropy = tl.log(total) - moment / total
        tl.store(entropy_ptr + row, tl.where(entropy < 0, 0.0, entropy))  # rounding; NaN stays NaN

    first = row
    last = row + 1
    if HAS_ORDER:
        first = tl.load(starts_ptr + row)
        last = tl.load(starts_ptr + row + 1)
    for k in range(first, last):
        entry = tl.load(order_ptr + k) if HAS_ORDER else k
        target = tl.load(targets_ptr + entry).to(tl.int64)
        column = tl.minimum(tl.maximum(target, 0), V - 1)  # never out of bounds, whatever the target
        raw = tl.load(logits + column)
        bias = tl.load(bias_ptr + column) if HAS_BIAS else 0.0
        z, _ = _final_logits(raw, bias, softcap, inverse_temperature, HAS_SOFTCAP)
        logp = z - lse
        # Rounding must not make a probability above one. NaN stays NaN: a GPU's tl.minimum would make it 0, p = 1.
        logp = tl.where(logp > 0, 0.0, logp)
        tl.store(logps_ptr + entry, tl.where(target == ignore_index, 0.0, logp))
        tl.store(picked_ptr + entry, z)


def logprob(
    logits: Tensor,  # (U, V) fp32, unit column stride, in rows of padded_width(V) columns
    bias: Tensor | None,  # (V,) fp32, in memory of padded_width(V)
    targets: Tensor,  # (n,)
    order: Tensor | None,  # (n,) int64
    starts: Tensor | None,  # (U+1,) int32
    softcap: float | None,
    temperature: float,
    ignore_index: int,
    statistics: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Log-probabilities (n,), the targets' final logits (n,), log-sum-exps (U,) and, for statistics, entropies (U,)."""
    rows, vocabulary = logits.shape
    logps = torch.empty(targets.numel(), dtype=torch.float32, device=logits.device)
    picked = torch.empty_like(logps)
    lse = torch.empty(rows, dtype=torch.float32, device=logits.device)
    entropy = torch.empty_like(lse) if statistics else None
    if rows:
        logprob_kernel[(rows,)](
            logits,
            logits.stride(0),
            bias,
            targets,
            order,
            starts,
            logps,
            picked,
            lse,
            entropy,
            vocabulary,
            softcap or 1.0,
            1 / temperature,
            ignore_index,
            HAS_BIAS=bias is not None,
            HAS_SOFTCAP=softcap is not None,
            HAS_ORDER=order is not None,
            HAS_ENTROPY=statistics,
            ALIGN=ALIGN,
            BLOCK=min(BLOCK, triton.next_power_of_2(vocabulary)),
            num_warps=WARPS,
        )
    return logps, picked, lse, entropy
