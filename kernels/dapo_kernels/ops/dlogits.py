"""Logits → dlogits in the memory of the logits, for the GEMMs of the gradients."""

import triton
import triton.language as tl
from torch import Tensor

from dapo_kernels.ops.final_logits import ALIGN, _block_of_logits

# One program a row, as in logprob.py.
BLOCK, WARPS = 4096, 8


@triton.jit(
    do_not_specialize=[
        *("targets_ptr", "order_ptr", "starts_ptr", "gradient_ptr", "softmax_ptr", "picked_ptr"),
        *("lse_ptr", "V"),  # as in logprob.py
    ],
)
def dlogits_kernel(
    logits_ptr,  # (U, V) fp32, raw, in rows whose memory is ours up to the next multiple of ALIGN columns
    dlogits_ptr,  # (U, V) out, the SAME memory: fp32, or 16 bits in the first half of each row
    row_stride,  # of logits, in elements
    out_stride,  # of dlogits, in elements
    bias_ptr,  # (V,) fp32, readable likewise
    targets_ptr,  # (n,)
    order_ptr,  # (n,)
    starts_ptr,  # (U+1,)
    gradient_ptr,  # (n,) fp32: of the loss by each target's logit
    softmax_ptr,  # (n,) fp32: what each entry takes off of its row's softmax; the same, but for a gradient of the lse
    picked_ptr,  # (n,) fp32: the targets' final logits
    lse_ptr,  # (U,) fp32
    V,
    softcap,
    inverse_temperature,
    ignore_index,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_ORDER: tl.constexpr,
    NARROW: tl.constexpr,  # dlogits are narrower than logits
    ALIGN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0)
    logits = logits_ptr + row.to(tl.int64) * row_stride
    dlogits = dlogits_ptr + row.to(tl.int64) * out_stride
    lse = tl.load(lse_ptr + row)
    first = row
    last = row + 1
    if HAS_ORDER:
        first = tl.load(starts_ptr + row)
        last = tl.load(starts_ptr + row + 1)
    row_gradient = 0.0
    for k in range(first, last):
        entry = tl.load(order_ptr + k) if HAS_ORDER else k
        target = tl.load(targets_ptr + entry).to(tl.int64)
        row_gradient += tl.where(target == ignore_index, 0.0, tl.load(softmax_ptr + entry))

    # Ascending, so that 16-bit results only overwrite logits that have been read: those of column c lie where
    # the logits of columns c/2 lay. Within the block the barrier waits until every thread has read.
    for start in range(0, V, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        z, slope, readable = _block_of_logits(
            logits, bias_ptr, columns, V, softcap, inverse_temperature, HAS_BIAS, HAS_SOFTCAP, ALIGN
        )
        d = tl.where(columns < V, -row_gradient * tl.exp(z - lse) * slope, 0.0)
        if NARROW:
            tl.debug_barrier()
        tl.store(dlogits + columns, d.to(dlogits_ptr.dtype.element_ty), mask=readable)
    tl.debug_barrier()

    # The targets' own columns again, in fp32 from the start: adding to what was rounded would lose 1 - p near p = 1.
    for k in range(first, last):
        entry = tl.load(order_ptr + k) if HAS_ORDER else k
        target = tl.load(targets_ptr + entry).to(tl.int64)
        hit = 0.0
        for other_k in range(first, last):
            other = tl.load(order_ptr + other_k) if HAS_ORDER else other_k
            same = tl.load(targets_ptr + other).to(tl.int64) == target
            hit += tl.where(same, tl.load(gradient_ptr + other), 0.0)
        z = tl.load(picked_ptr + entry)
        slope = inverse_temperature
        if HAS_SOFTCAP:
            tanh = z / (softcap * inverse_temperature)
            slope = inverse_temperature * (1 - tanh * tanh)
        d = (hit - row_gradient * tl.exp(z - lse)) * slope
        column = tl.minimum(tl.maximum(target, 0), V - 1)
        tl.store(dlogits + column, d.to(dlogits_ptr.dtype.element_ty), mask=target != ignore_index)


def dlogits(
    logits: Tensor,  # (U, V) fp32, overwritten, in rows of padded_width(V) columns
    out: Tensor,  # (U, V) view of the same memory in the dtype of the GEMMs
    bias: Tensor | None,  # (V,) fp32, in memory of padded_width(V)
    targets: Tensor,  # (n,)
    order: Tensor | None,
    starts: Tensor | None,
    gradient: Tensor,  # (n,) fp32
    of_softmax: Tensor,  # (n,) fp32
    picked: Tensor,  # (n,) fp32
    lse: Tensor,  # (U,) fp32
    softcap: float | None,
    temperature: float,
    ignore_index: int,
) -> None:
    """out[u] = Σ of row u's entries of gradient · onehot(target) − of_softmax · softmax(logits[u]), times the slope."""
    rows, vocabulary = logits.shape
    if rows:
        dlogits_kernel[(rows,)](
            logits,
            out,
            logits.stride(0),
            out.stride(0),
            bias,
            targets,
            order,
            starts,
            gradient,
            of_softmax,
            picked,
            lse,
            vocabulary,
            softcap or 1.0,
            1 / temperature,
            ignore_index,
            HAS_BIAS=bias is not None,
            HAS_SOFTCAP=softcap is not None,
            HAS_ORDER=order is not None,
            NARROW=out.dtype != logits.dtype,
            ALIGN=ALIGN,
            BLOCK=min(BLOCK, triton.next_power_of_2(vocabulary)),
            num_warps=WARPS,
        )
