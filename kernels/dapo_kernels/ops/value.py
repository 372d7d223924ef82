"""The critic's scalar head at given rows, its loss against soft labels, and the gradients, reading hidden twice."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_WIDTH, WARPS = 1024, 4  # per entry
SPLIT_ROWS, SPLIT_WIDTH = 64, 128  # of the weight's gradient: rows a program, columns a program


@triton.jit
def _loss_and_slope(z, target, BCE: tl.constexpr):
    value = 1 / (1 + tl.exp(-z))
    if BCE:
        # softplus(z) − target·z, with the exponential's argument never positive
        loss = tl.where(z > 0, z, 0.0) + tl.log(1 + tl.exp(-tl.abs(z))) - target * z
        slope = value - target
    else:
        loss = (value - target) * (value - target) + 0 * z  # NaN where the logit is infinite, as with bce
        slope = 2 * (value - target) * value * (1 - value)
    return loss, slope


@triton.jit(
    do_not_specialize=[
        *("rows_ptr", "order_ptr", "run_ends_ptr", "targets_ptr", "weights_ptr", "normalizer_ptr", "logits_ptr"),
        *("losses_ptr", "slopes_ptr", "T"),  # as in logprob.py
    ],
)
def value_kernel(
    hidden_ptr,  # (T, H)
    hidden_stride,
    weight_ptr,  # (H,)
    bias_ptr,  # (1,)
    rows_ptr,  # (M,) sorted
    order_ptr,  # (M,) sorted position → entry
    run_ends_ptr,  # (M,) sorted position → end of the run of equal rows
    targets_ptr,  # (M,)
    weights_ptr,  # (M,)
    normalizer_ptr,  # () fp32
    logits_ptr,  # (M,) fp32 out
    losses_ptr,  # (M,) fp32 out
    slopes_ptr,  # (M,) fp32 out, in SORTED order: d loss / d logit
    d_hidden_ptr,  # (T, H) out
    H,
    T,
    HAS_BIAS: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
    HAS_D_HIDDEN: tl.constexpr,
    BCE: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    position = tl.program_id(0)
    row = tl.load(rows_ptr + position).to(tl.int64)
    inside_hidden = (row >= 0) & (row < T)
    hidden = hidden_ptr + row * hidden_stride
    total = tl.zeros((BLOCK_WIDTH,), tl.float32)
    for start in range(0, H, BLOCK_WIDTH):
        column = start + tl.arange(0, BLOCK_WIDTH)
        x = tl.load(hidden + column, mask=(column < H) & inside_hidden, other=0.0).to(tl.float32)
        total += x * tl.load(weight_ptr + column, mask=column < H, other=0.0).to(tl.float32)
    z = tl.sum(total, 0)
    if HAS_BIAS:
        z += tl.load(bias_ptr).to(tl.float32)
    normalizer = tl.load(normalizer_ptr).to(tl.float32)
    entry = tl.load(order_ptr + position)
    loss, slope = _loss_and_slope(z, tl.load(targets_ptr + entry).to(tl.float32), BCE)
    if HAS_WEIGHTS:
        weight = tl.load(weights_ptr + entry).to(tl.float32)
        loss *= weight
        slope *= weight
    tl.store(logits_ptr + entry, z)
    tl.store(losses_ptr + entry, loss / normalizer)
    tl.store(slopes_ptr + position, slope / normalizer)
    if HAS_D_HIDDEN:
        # The first of a run of entries that read the same row writes the row's gradient for all of them.
        before = tl.load(rows_ptr + position - 1, mask=position > 0, other=-1).to(tl.int64)
        if (row != before) & inside_hidden:
            row_slope = 0.0
            for k in range(position, tl.load(run_ends_ptr + position)):
                other = tl.load(order_ptr + k)
                _, slope = _loss_and_slope(z, tl.load(targets_ptr + other).to(tl.float32), BCE)
                if HAS_WEIGHTS:
                    slope *= tl.load(weights_ptr + other).to(tl.float32)
                row_slope += slope / normalizer
            for start in range(0, H, BLOCK_WIDTH):
                column = start + tl.arange(0, BLOCK_WIDTH)
                w = tl.load(weight_ptr + column, mask=column < H, other=0.0).to(tl.float32)
                d = (row_slope * w).to(d_hidden_ptr.dtype.element_ty)
                tl.store(d_hidden_ptr + row * H + column, d, mask=column < H)


@triton.jit(do_not_specialize=["rows_ptr", "slopes_ptr", "M", "T"])
def value_d_weight_kernel(
    hidden_ptr,  # (T, H)
    hidden_stride,
    rows_ptr,  # (M,) sorted
    slopes_ptr,  # (M,) fp32, in the same order
    partial_ptr,  # (splits, H) fp32 out
    M,
    H,
    T,
    SPLIT_ROWS: tl.constexpr,
    SPLIT_WIDTH: tl.constexpr,
):
    split = tl.program_id(0)
    column = tl.program_id(1) * SPLIT_WIDTH + tl.arange(0, SPLIT_WIDTH)
    total = tl.zeros((SPLIT_WIDTH,), tl.float32)
    for position in range(split * SPLIT_ROWS, tl.minimum((split + 1) * SPLIT_ROWS, M)):
        row = tl.load(rows_ptr + position).to(tl.int64)
        inside = (column < H) & (row >= 0) & (row < T)
        x = tl.load(hidden_ptr + row * hidden_stride + column, mask=inside, other=0.0).to(tl.float32)
        total += tl.load(slopes_ptr + position) * x
    tl.store(partial_ptr + split.to(tl.int64) * H + column, total, mask=column < H)


def value(
    hidden: Tensor,  # (T, H)
    weight: Tensor,  # (H,) or (1, H)
    bias: Tensor | None,
    rows: Tensor,  # (M,)
    targets: Tensor,  # (M,)
    weights: Tensor | None,  # (M,)
    normalizer: float | Tensor,
    kind: str,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor, tuple[Tensor | None, Tensor | None, Tensor | None]]:
    """Loss, logits (M,) fp32, and the gradients of hidden, weight and bias where needed."""
    (length, width), entries, device = hidden.shape, rows.numel(), hidden.device
    if hidden.stride(1) != 1:
        hidden = hidden.contiguous()
    in_order, order = torch.sort(rows, stable=True)
    run_ends = torch.searchsorted(in_order, in_order, right=True)
    if not isinstance(normalizer, Tensor):
        normalizer = torch.full((), normalizer, dtype=torch.float32, device=device)
    logits, losses, slopes = (torch.empty(entries, dtype=torch.float32, device=device) for _ in range(3))
    d_hidden = torch.zeros((length, width), dtype=hidden.dtype, device=device) if needs[0] else None
    if entries:
        value_kernel[(entries,)](
            hidden,
            hidden.stride(0),
            weight.reshape(-1).contiguous(),
            None if bias is None else bias.reshape(1),
            in_order,
            order,
            run_ends,
            targets.contiguous(),
            None if weights is None else weights.contiguous(),
            normalizer.to(device),
            logits,
            losses,
            slopes,
            d_hidden,
            width,
            length,
            HAS_BIAS=bias is not None,
            HAS_WEIGHTS=weights is not None,
            HAS_D_HIDDEN=needs[0],
            BCE=kind == "bce",
            BLOCK_WIDTH=min(BLOCK_WIDTH, triton.next_power_of_2(width)),
            num_warps=WARPS,
        )
    d_weight = d_bias = None
    if needs[1]:
        splits = triton.cdiv(entries, SPLIT_ROWS)
        partial = torch.empty((splits, width), dtype=torch.float32, device=device)
        if entries:
            value_d_weight_kernel[(splits, triton.cdiv(width, SPLIT_WIDTH))](
                hidden,
                hidden.stride(0),
                in_order,
                slopes,
                partial,
                entries,
                width,
                length,
                SPLIT_ROWS=SPLIT_ROWS,
                SPLIT_WIDTH=SPLIT_WIDTH,
                num_warps=WARPS,
            )
        d_weight = partial.sum(0).reshape(weight.shape).to(weight.dtype)
    if needs[2]:
        d_bias = slopes.sum().reshape(bias.shape).to(bias.dtype)
    return losses.sum(), logits, (d_hidden, d_weight, d_bias)
