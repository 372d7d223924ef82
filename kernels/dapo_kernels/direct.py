"""Small batches on a CPU: the logits fit a cache and are one chunk, so what costs is operations, not passes.

No plan, no buffer, no copies: each hidden row is one entry, every target counts. What is unusual (a log-probability or
a sum of exponentials that fp32 cannot take as it comes) is left to the engine, which begins again.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from dapo_kernels.call import Call
from dapo_kernels.chunk_torch import LARGEST_SUM, LEAST_P, LEAST_SUM, entropies
from dapo_kernels.plan import CPU_CHUNK_BYTES, Chunk
from dapo_kernels.tokens import Tokens

Results = tuple[Tensor, Tensor, Tokens, tuple[Tensor | None, Tensor | None, Tensor | None]]


def is_small(call: Call) -> bool:
    """Whether ``compute`` may try: also, a pass over the logits must be nothing beside the products (V ≤ 2H)."""
    entries, (vocabulary, width) = call.targets.shape[0], call.weight.shape
    return (
        call.all_words
        and call.rows is None
        and call.shard is None
        and not call.triton
        and call.chunk_rows is None
        and call.softcap is None
        and vocabulary <= 2 * width
        and 0 < entries * vocabulary * 4 <= CPU_CHUNK_BYTES
        and call.hidden.dtype == call.weight.dtype == call.dtype == call.logits_dtype
        and call.hidden.device.type == "cpu"
    )


def compute(
    call: Call,
    cu_segments: Tensor | None,
    evaluate: Callable[..., tuple[Tensor, Tensor, Tensor | None]],  # segment_loss.evaluate of the objective
    needs: tuple[bool, bool, bool],
) -> Results | None:
    """segment_loss.compute of a batch that ``is_small``; None: not to be had this way."""
    hidden, weight = call.hidden, call.weight
    entries = hidden.shape[0]
    targets = call.targets.long()[None]
    # Transposed, (V, N): sums and scales of entries are vectors, however few the words.
    exponentials = torch.mm(weight, hidden.t())
    if call.bias is not None:
        exponentials.add_(call.bias[:, None])
    if call.temperature != 1.0:
        exponentials.div_(call.temperature)
    sums = exponentials.exp_().sum(0)
    p = exponentials.gather(0, targets)[0].div_(sums)
    low, high = torch.aminmax(sums)
    if not (float(low) >= LEAST_SUM and float(high) <= LARGEST_SUM and float(p.min()) > LEAST_P):  # or one is NaN
        return None
    statistics = (entropies(exponentials.t(), sums[:, None]), sums.log()) if call.statistics else (None, None)
    tokens = Tokens(p.log_(), *statistics)  # never positive: a sum is no less than any of its terms
    segments = entries if cu_segments is None else cu_segments.shape[0] - 1
    part, of_segments, share = evaluate(tokens.logps, cu_segments, Chunk(0, segments, []), any(needs))
    d_hidden = d_weight = d_bias = None
    if share is not None:
        if call.temperature != 1.0:
            share = share / call.temperature
        dlogits = exponentials.mul_((share / sums).neg_()).scatter_add_(0, targets, share[None])
        # The weight's first: hidden is still in the cache that hidden's gradient fills.
        d_weight = torch.mm(dlogits, hidden) if needs[1] else None
        d_bias = dlogits.sum(1) if needs[2] else None
        d_hidden = torch.mm(dlogits.t(), weight) if needs[0] else None
    # An operator's results may not share memory.
    loss = part.to(call.logits_dtype, copy=True)
    if cu_segments is None:
        of_segments = of_segments.clone()
    return loss, of_segments, tokens, (d_hidden, d_weight, d_bias)
