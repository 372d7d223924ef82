"""Token log-probabilities → their sums over segments, each in the same order every time."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_SEGMENTS, BLOCK_TOKENS, WARPS = 16, 64, 4


@triton.jit(do_not_specialize=["tokens_ptr", "offsets_ptr", "sums_ptr", "n", "k"])  # as in logprob.py
def segment_sum_kernel(
    tokens_ptr,  # (n,) fp32
    offsets_ptr,  # (k+1,)
    sums_ptr,  # (k,) fp32 out
    n,
    k,
    BLOCK_SEGMENTS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
):
    segment = tl.program_id(0) * BLOCK_SEGMENTS + tl.arange(0, BLOCK_SEGMENTS)
    inside = segment < k
    begin = tl.load(offsets_ptr + segment, mask=inside, other=0)
    end = tl.load(offsets_ptr + segment + 1, mask=inside, other=0)
    sums = tl.zeros((BLOCK_SEGMENTS,), tl.float32)
    for step in range(0, tl.max(end - begin, 0), BLOCK_TOKENS):
        token = begin[:, None] + step + tl.arange(0, BLOCK_TOKENS)[None, :]
        here = (token >= 0) & (token < tl.minimum(end, n)[:, None])  # never out of bounds, whatever the offsets
        sums += tl.sum(tl.load(tokens_ptr + token, mask=here, other=0.0), 1)
    tl.store(sums_ptr + segment, sums, mask=inside)


def segment_sum(tokens: Tensor, offsets: Tensor) -> Tensor:
    """(n,) fp32 summed over offsets[s]:offsets[s+1] → (k,)."""
    k = offsets.numel() - 1
    sums = torch.empty(k, dtype=torch.float32, device=tokens.device)
    if k:
        segment_sum_kernel[(triton.cdiv(k, BLOCK_SEGMENTS),)](
            tokens,
            offsets.contiguous(),
            sums,
            tokens.numel(),
            k,
            BLOCK_SEGMENTS=BLOCK_SEGMENTS,
            BLOCK_TOKENS=BLOCK_TOKENS,
            num_warps=WARPS,
        )
    return sums
