"""One chunk's token log-probabilities → step sums, direct advantage loss, and each token's gradient, in one kernel.

½ Σ (Â/β − u)² / normalizer with u = Σ tokens − ref (arXiv 2412.18279): a token's gradient is −(Â/β − u) / normalizer.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# ONE program walks over all the chunk's steps, so the loss is summed in a fixed order: deterministic, without a second
# launch. A chunk has some hundred steps: a few microseconds beside the milliseconds of its GEMMs.
BLOCK_STEPS, BLOCK_TOKENS, WARPS = 64, 32, 8


@triton.jit(
    do_not_specialize=[
        *("tokens_ptr", "offsets_ptr", "advantages_ptr", "ref_ptr", "normalizer_ptr", "steps_ptr", "loss_ptr"),
        *("gradient_ptr", "n", "k"),  # as in logprob.py
    ],
)
def direct_advantage_kernel(
    tokens_ptr,  # (n,) fp32 log-probabilities
    offsets_ptr,  # (k+1,) step s owns tokens offsets[s]:offsets[s+1]
    advantages_ptr,  # (k,)
    ref_ptr,  # (k,)
    normalizer_ptr,  # () fp32
    steps_ptr,  # (k,) fp32 out: the steps' log-probabilities
    loss_ptr,  # () fp32, added to
    gradient_ptr,  # (n,) fp32 out
    n,
    k,
    beta,
    HAS_GRADIENT: tl.constexpr,
    BLOCK_STEPS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
):
    normalizer = tl.load(normalizer_ptr).to(tl.float32)
    losses = tl.zeros((BLOCK_STEPS,), tl.float32)
    for first in range(0, k, BLOCK_STEPS):
        step = first + tl.arange(0, BLOCK_STEPS)
        inside = step < k
        begin = tl.load(offsets_ptr + step, mask=inside, other=0)
        end = tl.load(offsets_ptr + step + 1, mask=inside, other=0)
        longest = tl.max(end - begin, 0)
        end = tl.minimum(end, n)  # never out of bounds, whatever the offsets
        logp = tl.zeros((BLOCK_STEPS,), tl.float32)
        for position in range(0, longest, BLOCK_TOKENS):
            token = begin[:, None] + position + tl.arange(0, BLOCK_TOKENS)[None, :]
            here = (token >= 0) & (token < end[:, None])
            logp += tl.sum(tl.load(tokens_ptr + token, mask=here, other=0.0), 1)
        tl.store(steps_ptr + step, logp, mask=inside)
        advantage = tl.load(advantages_ptr + step, mask=inside, other=0.0).to(tl.float32)
        reference = tl.load(ref_ptr + step, mask=inside, other=0.0).to(tl.float32)
        gap = advantage / beta - (logp - reference)
        losses += 0.5 * gap * gap
        if HAS_GRADIENT:
            gradient = -gap / normalizer
            for position in range(0, longest, BLOCK_TOKENS):
                token = begin[:, None] + position + tl.arange(0, BLOCK_TOKENS)[None, :]
                every = tl.broadcast_to(gradient[:, None], (BLOCK_STEPS, BLOCK_TOKENS))
                tl.store(gradient_ptr + token, every, mask=(token >= 0) & (token < end[:, None]))
    tl.store(loss_ptr, tl.load(loss_ptr) + tl.sum(losses, 0) / normalizer)


def direct_advantage(
    tokens: Tensor,  # (n,) fp32
    offsets: Tensor,  # (k+1,)
    advantages: Tensor,  # (k,)
    ref_logps: Tensor,  # (k,)
    beta: float,
    normalizer: float | Tensor,
    loss: Tensor,  # 0-d fp32, added to
    training: bool,
) -> tuple[Tensor, Tensor | None]:
    """The steps' log-probabilities (k,) and, in training, the gradient (n,) of each token's."""
    steps = torch.empty(offsets.numel() - 1, dtype=torch.float32, device=tokens.device)
    # Zeros: on a GPU offsets need not have been looked at, and tokens outside all steps are not written.
    gradient = torch.zeros_like(tokens) if training else None
    if not isinstance(normalizer, Tensor):
        normalizer = torch.full((), normalizer, dtype=torch.float32, device=tokens.device)
    direct_advantage_kernel[(1,)](
        tokens,
        offsets.contiguous(),
        advantages.contiguous(),
        ref_logps.contiguous(),
        normalizer.to(tokens.device),
        steps,
        loss,
        gradient,
        tokens.numel(),
        steps.numel(),
        float(beta),
        HAS_GRADIENT=training,
        BLOCK_STEPS=BLOCK_STEPS,
        BLOCK_TOKENS=BLOCK_TOKENS,
        num_warps=WARPS,
    )
    return steps, gradient
