"""What an objective adds for each token beside its log-probability: z-loss and label smoothing.

Both are functions of the log-sum-exp, which there is already, and of the mean of a row's logits. That mean is linear in
the hidden row (x·W̄ with W̄ the mean of the weight's rows), so smoothing costs no pass over the logits: its gradients are
two outer products.
"""

import torch
from torch import Tensor

from dapo_kernels.call import Call
from dapo_kernels.chunk_torch import TorchLogits, segment_sums
from dapo_kernels.gradients import Gradients
from dapo_kernels.plan import Piece, row_index


class Penalty:
    """Σ over tokens that count of z_loss · lse² + label_smoothing · (lse − mean logit), divided by a normalizer."""

    def __init__(self, call: Call, z_loss: float, smoothing: float, scale: float | Tensor) -> None:
        if smoothing and call.softcap is not None:
            raise ValueError("label_smoothing: not with softcap, after which a row's mean is not linear in its states")
        self.call, self.z_loss, self.smoothing, self.scale = call, z_loss, smoothing, scale
        self.loss = torch.zeros((), dtype=call.logits_dtype, device=call.hidden.device)
        self.mean: Tensor | None = None  # (H,) of the weight's rows, over temperature
        if smoothing:
            total, (words, width) = call.logits_dtype, call.weight.shape
            bias = call.weight.new_zeros(1) if call.bias is None else call.bias
            joined = torch.cat([call.weight.sum(0, dtype=total), bias.sum(dtype=total)[None]])
            if call.shard is not None:
                joined, words = call.shard.sum(joined), call.shard.total
            self.share = 1 / (words * call.temperature)  # of a row's mean logit, by each of its raw ones
            self.mean, self.bias = (joined * self.share).split([width, 1])
            self.outer = torch.zeros_like(self.mean)  # Σ of hidden rows times their mean logit's gradient
            self.of_means = torch.zeros_like(self.loss)

    def read(self, logits: TorchLogits, x: Tensor, piece: Piece) -> None:
        """Add the loss of a piece whose logits have been read from the rows x (U, H)."""
        lse = logits.lse
        of_rows = self.z_loss * lse.square()
        if self.mean is not None:
            of_rows += self.smoothing * (lse - (torch.mv(x.to(lse.dtype), self.mean) + self.bias))
        self.loss += self._counted(of_rows, piece).sum() / self.scale

    def slopes(self, logits: TorchLogits, piece: Piece) -> Tensor:
        """(n,) the gradient of each token's log-sum-exp."""
        return self._counted((2 * self.z_loss * logits.lse + self.smoothing) / self.scale, piece)

    def add(self, gradients: Gradients, x: Tensor, piece: Piece) -> None:
        """Add to the gradients what the mean logits of a piece's rows make."""
        if self.mean is None:
            return
        share = self._counted(x.new_full((), -self.smoothing, dtype=self.mean.dtype) / self.scale, piece)
        if piece.order is not None:
            share = segment_sums(share.index_select(0, piece.order), piece.row_starts)
        self.outer += torch.mv(x.t().to(share.dtype), share)
        self.of_means += share.sum()
        if gradients.hidden is not None and (self.call.shard is None or self.call.shard.start == 0):  # summed over all
            part = torch.outer(share, self.mean).to(gradients.hidden.dtype)
            if piece.rows is None:
                gradients.hidden[piece.start : piece.stop] += part
            else:
                gradients.hidden.index_add_(0, row_index(gradients.hidden, piece), part)

    def finish(self, gradients: Gradients) -> None:
        """Add what the mean logits of all rows make of the weight and the bias."""
        if self.mean is None:
            return
        if gradients.weight is not None:
            gradients.weight += self.outer * self.share
        if gradients.bias is not None:
            gradients.bias += self.of_means * self.share

    def _counted(self, of_rows: Tensor, piece: Piece) -> Tensor:
        """(U,) values of rows (or one for all) to the piece's entries (n,), nought where the target is ignored."""
        targets = self.call.targets[piece.start : piece.stop]
        if of_rows.dim() and piece.row_of is not None:
            of_rows = of_rows.index_select(0, piece.row_of)
        return of_rows.expand(targets.shape).masked_fill(targets == self.call.ignore_index, 0)
