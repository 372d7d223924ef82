"""One chunk of logits in plain PyTorch: log-probabilities of the targets, then dlogits in the same buffer.

This is the path of every machine without a GPU, and of fp64. It makes no temporary of the buffer's size, except that a
softcap keeps its derivative in a second one.
"""

import torch
from torch import Tensor

from dapo_kernels.plan import Piece

ENTROPY_ELEMENTS = 1 << 20  # probabilities held at once while entropies are summed


def project(x: Tensor, weight: Tensor, out: Tensor) -> None:
    """out[U, V] = x[U, H] @ weight[V, H].T, accumulated and stored in out's dtype."""
    if x.dtype == out.dtype:
        torch.mm(x, weight.t(), out=out)
    elif x.is_cuda:
        torch.mm(x, weight.t(), out_dtype=out.dtype, out=out)
    else:
        torch.mm(x.to(out.dtype), weight.t().to(out.dtype), out=out)


def add_outer(total: Tensor, dlogits: Tensor, x: Tensor, fresh: bool) -> None:
    """total[V, H] += dlogits[U, V].T @ x[U, H], accumulated in total's dtype. `fresh`: total holds nothing yet."""
    if fresh:
        project(dlogits.t(), x.t(), total)
    elif x.dtype == total.dtype:
        total.addmm_(dlogits.t(), x)
    elif x.is_cuda:
        torch.addmm(total, dlogits.t(), x, out_dtype=total.dtype, out=total)
    else:
        total.addmm_(dlogits.t().to(total.dtype), x.to(total.dtype))


def project_back(dlogits: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """dlogits[U, V] @ weight[V, H], accumulated and returned in dtype."""
    if dlogits.dtype == dtype:
        return torch.mm(dlogits, weight)
    if dlogits.is_cuda:
        return torch.mm(dlogits, weight, out_dtype=dtype)
    return torch.mm(dlogits.to(dtype), weight.to(dtype))


def segment_sums(tokens: Tensor, offsets: Tensor | None) -> Tensor:
    """(n,) summed over offsets[s]:offsets[s+1], in the same order every time. offsets None: one token a segment."""
    if offsets is None:
        return tokens
    if tokens.numel() == 0:
        return tokens.new_zeros(offsets.numel() - 1)
    return torch.segment_reduce(tokens, "sum", offsets=offsets, initial=0)


def spread(segments: Tensor, offsets: Tensor | None, tokens: int) -> Tensor:
    """(k,) values of segments to their (n,) tokens: the transpose of segment_sums."""
    return segments if offsets is None else segments.repeat_interleave(offsets.diff(), output_size=tokens)


def entropies(log_p: Tensor) -> Tensor:
    """(U,) −Σ p log p of the rows of log_p (U, V), some rows at a time; a word with p = 0 adds nothing."""
    rows = max(1, ENTROPY_ELEMENTS // log_p.shape[1])
    found = torch.cat([torch.special.entr(part.exp()).sum(1) for part in log_p.split(rows)])
    return found.clamp_(min=0)  # rounding; NaN stays NaN


class TorchLogits:
    """A reusable buffer of logits of up to `rows` hidden rows."""

    def __init__(
        self,
        weight: Tensor,  # (V, H)
        bias: Tensor | None,  # (V,) in the buffer's dtype
        softcap: float | None,
        temperature: float,
        ignore_index: int,
        rows: int,
        dtype: torch.dtype,  # of the logits: fp32, or fp64 for fp64 inputs
        statistics: bool,  # forward also leaves each row's entropy and log-sum-exp (U,) in `entropy` and `lse`
    ) -> None:
        self.weight, self.bias, self.softcap, self.temperature = weight, bias, softcap, temperature
        self.ignore_index, self.statistics = ignore_index, statistics
        self.buffer = torch.empty(rows, weight.shape[0], dtype=dtype, device=weight.device)
        self.slope_buffer: Tensor | None = None

    def forward(self, x: Tensor, targets: Tensor, piece: Piece, keep: bool) -> Tensor:
        """Log-probabilities (n,) of targets (n,) given x (U, H). `keep`: backward will be called for this chunk."""
        logits = self.buffer[: x.shape[0]]
        project(x, self.weight, logits)
        if self.bias is not None:
            logits.add_(self.bias)
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_()
            if keep:
                if self.slope_buffer is None:
                    self.slope_buffer = torch.empty_like(self.buffer)
                self.slope = torch.mul(logits, logits, out=self.slope_buffer[: x.shape[0]]).neg_().add_(1)
            logits.mul_(self.softcap)
        if self.temperature != 1.0:
            logits.div_(self.temperature)
        highest = logits.amax(1) if self.statistics else None
        torch.log_softmax(logits, 1, out=logits)
        if highest is not None:
            self.lse, self.entropy = highest - logits.amax(1), entropies(logits)
        self.logits = logits
        vocabulary = logits.shape[1]
        self.ignored = targets == self.ignore_index
        # On a GPU wrong targets are found only when debugging; clamped, they still never read out of bounds.
        columns = targets.clamp(0, vocabulary - 1)
        row_of = torch.arange(x.shape[0], device=x.device) if piece.row_of is None else piece.row_of
        self.at = row_of * vocabulary + columns
        self.piece = piece
        picked = logits.view(-1).index_select(0, self.at)
        # Rounding must not make a probability above one.
        return picked.clamp_(max=0).masked_fill_(self.ignored, 0)

    def backward(self, gradient: Tensor, dtype: torch.dtype) -> Tensor:
        """dlogits (U, V) in `dtype` from the gradient (n,) of each log-probability; overwrites the logits."""
        gradient = gradient.masked_fill(self.ignored, 0)
        if self.temperature != 1.0:
            gradient = gradient / self.temperature
        row_gradient = gradient
        if self.piece.order is not None:
            row_gradient = segment_sums(gradient.index_select(0, self.piece.order), self.piece.row_starts)
        dlogits = self.logits.exp_().mul_(-row_gradient[:, None])
        if dlogits.is_cuda:
            # index_put_ sorts its indices on a GPU and is deterministic there; index_add_ is so on a CPU.
            dlogits.view(-1).index_put_((self.at,), gradient, accumulate=True)
        else:
            dlogits.view(-1).index_add_(0, self.at, gradient)
        if self.softcap is not None:
            dlogits.mul_(self.slope)
        return dlogits.to(dtype)
