"""From a raw logit, as the GEMM left it, to the one the softmax sees; shared by the kernels that read logits."""

import triton
import triton.language as tl

# Rows of logits start at multiples of this many elements (64 bytes of fp32), whatever the vocabulary: GEMMs then use
# their fastest loads, and the kernels vectors.
ALIGN = 16


def padded_width(vocabulary: int) -> int:
    """The columns of memory that a row of logits takes."""
    return triton.cdiv(vocabulary, ALIGN) * ALIGN


@triton.jit
def _final_logits(raw, bias, softcap, inverse_temperature, HAS_SOFTCAP: tl.constexpr):
    z = raw + bias
    slope = inverse_temperature
    if HAS_SOFTCAP:
        # tanh through the sigmoid: saturates to ±1 without overflowing.
        tanh = 2 / (1 + tl.exp(-2 * (z / softcap))) - 1
        z = softcap * tanh
        slope = inverse_temperature * (1 - tanh * tanh)
    return z * inverse_temperature, slope  # the logit, and its derivative by the raw one


@triton.jit
def _block_of_logits(
    logits,  # of one row
    bias_ptr,
    columns,  # (BLOCK,)
    V,
    softcap,
    inverse_temperature,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    ALIGN: tl.constexpr,
):
    # A mask that ends at any V would make scalar loads of vector loads; one that ends at a multiple of ALIGN does not.
    readable = columns < tl.cdiv(V, ALIGN) * ALIGN
    raw = tl.load(logits + columns, mask=readable, other=0.0)
    bias = tl.load(bias_ptr + columns, mask=readable, other=0.0) if HAS_BIAS else 0.0
    z, slope = _final_logits(raw, bias, softcap, inverse_temperature, HAS_SOFTCAP)
    return tl.where(columns < V, z, float("-inf")), slope, readable
