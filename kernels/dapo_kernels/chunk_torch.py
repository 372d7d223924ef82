"""One chunk of logits in plain PyTorch: log-probabilities of the targets, then dlogits in the same buffer.

This is the path of every machine without a GPU, and of fp64. It makes no temporary of the buffer's size, except that a
softcap keeps its derivative in a second one.

Two passes after the product: exponentials, and their sums. The softmax is never divided by its sum, and not multiplied
by the loss's gradient: both are one number a row, which the gradients' products take on their small side (Dlogits).
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from dapo_kernels.plan import Piece

ENTROPY_ELEMENTS = 1 << 20  # probabilities held at once while entropies are summed
# A row whose exponentials sum to something between these needs no maximum taken off first: none overflows, what
# underflows is nothing beside the sum, and the sum's inverse times a loss's gradient is still a normal fp32 number.
LEAST_SUM, LARGEST_SUM = 1e-20, 1e20
LEAST_P = 1e-10  # whose exponential, LEAST_P · LEAST_SUM at least, is a normal fp32 number


class Dlogits(NamedTuple):
    """The gradient of a chunk's raw logits: row u is scale[u] · values[u]."""

    values: Tensor  # (U, V)
    scale: Tensor | None  # (U,) in the logits' dtype; None: 1
    words: int | None = None  # how many have a scale of their own: scale is then (S, U)

    def splits(self) -> Iterator[tuple[slice, "Dlogits"]]:
        """Words, and the gradient of their logits, with one scale a row."""
        if self.words is None:
            yield slice(None), self
            return
        for scale, start in zip(self.scale, range(0, self.values.shape[1], self.words)):
            words = slice(start, start + self.words)
            yield words, Dlogits(self.values[:, words], scale)


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


def entropies(exponentials: Tensor, sums: Tensor) -> Tensor:
    """(U,) −Σ p log p of the rows of exponentials (U, V) / sums (U, 1), some rows at a time; p = 0 adds nothing."""
    rows = max(1, ENTROPY_ELEMENTS // exponentials.shape[1])
    parts = zip(exponentials.split(rows), sums.split(rows))
    found = torch.cat([torch.special.entr(part / total).sum(1) for part, total in parts])
    return found.clamp_(min=0)  # rounding; NaN stays NaN


class TorchLogits:
    """A reusable buffer of logits of up to `rows` hidden rows."""

    def __init__(
        self,
        weight: Tensor,  # (V, H)
        bias: Tensor | None,  # (V,) in the buffer's dtype
        softcap: float | None,
        temperature: float,
        ignore_index: int | None,  # None: all targets are words, and count
        rows: int,
        dtype: torch.dtype,  # of the logits: fp32, or fp64 for fp64 inputs
        statistics: bool,  # forward also leaves each row's entropy (U,) in `entropy`
    ) -> None:
        self.weight, self.bias, self.softcap, self.temperature = weight, bias, softcap, temperature
        self.ignore_index, self.statistics = ignore_index, statistics
        self.buffer = torch.empty(rows, weight.shape[0], dtype=dtype, device=weight.device)
        self.slope_buffer: Tensor | None = None
        self.own: Tensor | None = None  # (n,) which targets' logits are among these; None: all
        # Whether each row's maximum is taken off: from the first chunk on that needs it, as its logits are then made
        # twice. On a GPU always, where looking at the sums would wait for the device.
        self.shifted = weight.is_cuda

    def forward(self, x: Tensor, targets: Tensor, piece: Piece, keep: bool) -> Tensor:
        """Log-probabilities (n,) of targets (n,) given x (U, H). `keep`: backward will be called for this chunk."""
        logits = self._final(x, keep)
        vocabulary = logits.shape[1]
        self.ignored, columns = None, targets
        if self.ignore_index is not None:
            self.ignored = targets == self.ignore_index
            # On a GPU wrong targets are found only when debugging; clamped, they still never read out of bounds.
            columns = targets.clamp(0, vocabulary - 1)
        self._locate(columns, piece)
        self.highest = None
        if not self.shifted:
            picked = logits.view(-1).index_select(0, self.at)
            self.sums = logits.exp_().sum(1)
            low, high = (float(s) for s in torch.aminmax(self.sums)) if x.shape[0] else (1, 1)
            if not (low >= LEAST_SUM and high <= LARGEST_SUM):  # or one is NaN
                self.shifted = True
                logits = self._final(x, keep)
        if self.shifted:
            self.highest = logits.amax(1)
            picked = logits.sub_(self.highest[:, None]).view(-1).index_select(0, self.at)
            self.sums = logits.exp_().sum(1)
        self.exponentials = logits
        if self.statistics:
            self.entropy = entropies(logits, self.sums[:, None])
        return self._logps(picked)

    @property
    def lse(self) -> Tensor:
        """(U,) log-sum-exps of the rows that forward has read."""
        return self.sums.log() if self.highest is None else self.sums.log().add_(self.highest)

    def _locate(self, columns: Tensor, piece: Piece) -> None:
        """Where in the memory of the logits the targets' are."""
        rows = columns.numel() if piece.rows is None else piece.rows.numel()
        vocabulary = self.weight.shape[0]
        first_of = torch.arange(0, rows * vocabulary, vocabulary, device=columns.device)
        self.at = columns + (first_of if piece.row_of is None else first_of.index_select(0, piece.row_of))
        self.piece = piece

    def _logps(self, picked: Tensor) -> Tensor:
        """(n,) from the targets' logits, less their row's maximum where that was taken off."""
        of_row = self.piece.row_of
        sums = self.sums if of_row is None else self.sums.index_select(0, of_row)
        # The probability's logarithm does not cancel where the logits are large; the difference does not underflow.
        p = picked.exp().div_(sums)
        if not p.is_cuda and p.numel() and float(p.min()) > LEAST_P:
            logps = p.log_()
        else:
            logps = torch.where(p > LEAST_P, p.log(), picked - sums.log())
        logps.clamp_(max=0)  # rounding must not make a probability above one
        return logps if self.ignored is None else logps.masked_fill_(self.ignored, 0)

    def _final(self, x: Tensor, keep: bool) -> Tensor:
        """The (U, V) logits that the softmax sees; `keep`: and the softcap's derivative by the raw ones."""
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
        return logits

    def backward(self, gradient: Tensor, dtype: torch.dtype, of_lses: Tensor | None = None) -> Dlogits:
        """dlogits (U, V) in `dtype` from the gradient (n,) of each log-probability; overwrites the exponentials.

        `of_lses`: the gradients (n,) of the entries' log-sum-exps by themselves, nought where ignored.
        """
        if self.ignored is not None:
            gradient = gradient.masked_fill(self.ignored, 0)
        of_softmax = gradient if of_lses is None else gradient - of_lses
        if self.temperature != 1.0:
            gradient, of_softmax = gradient / self.temperature, of_softmax / self.temperature
        values, sums = self.exponentials, self.sums
        order, starts = self.piece.order, self.piece.row_starts
        vocabulary, width = self.weight.shape
        # One entry a row, its target in it, and one number for both its one-hot and its softmax.
        alone = gradient.numel() == values.shape[0] and self.own is None and of_lses is None
        if alone and vocabulary > 2 * width:  # rows worth sparing
            of_rows = gradient if order is None else gradient.index_select(0, order)
            if dtype != values.dtype:  # fp16 has no room for sums
                values, sums = values.div_(sums[:, None]), torch.ones_like(sums)
            hits = -sums
            values.view(-1).index_add_(0, self.at, hits if order is None else hits.index_select(0, self.piece.row_of))
            scale = of_rows / hits
        else:
            # A row's entries may have gradients of their own: no number is common to its one-hots and its softmax.
            of_rows = of_softmax if order is None else segment_sums(of_softmax.index_select(0, order), starts)
            values.mul_((of_rows / sums).neg_()[:, None])
            if self.own is not None:
                gradient = gradient.masked_fill(~self.own, 0)
            if values.is_cuda:
                # index_put_ sorts its indices on a GPU and is deterministic there; index_add_ is so on a CPU.
                values.view(-1).index_put_((self.at,), gradient, accumulate=True)
            else:
                values.view(-1).index_add_(0, self.at, gradient)
            scale = None
        if self.softcap is not None:
            values.mul_(self.slope)
        return Dlogits(values.to(dtype), scale)
