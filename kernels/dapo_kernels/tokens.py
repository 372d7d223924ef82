"""What the passes over the logits say of every token: its log-probability and, on request, two statistics."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dapo_kernels.plan import Piece

if TYPE_CHECKING:
    from dapo_kernels.call import Call
    from dapo_kernels.chunk_torch import TorchLogits


class Tokens:
    """(N,) tensors of a call, filled piece by piece; entropies and lses are None where they are not asked for."""

    def __init__(self, call: "Call") -> None:
        self.targets, self.ignore_index = call.targets, call.ignore_index
        size, options = call.targets.numel(), {"dtype": call.logits_dtype, "device": call.hidden.device}
        self.logps = torch.empty(size, **options)
        self.entropies = torch.empty(size, **options) if call.statistics else None
        self.lses = torch.empty(size, **options) if call.statistics else None

    def read(self, logits: "TorchLogits", x: Tensor, piece: Piece, keep: bool) -> None:
        """Fill in a piece from its hidden rows x (U, H). `keep`: logits.backward will be called for it."""
        entries = slice(piece.start, piece.stop)
        targets = self.targets[entries]
        self.logps[entries] = logits.forward(x, targets, piece, keep)
        if self.entropies is None:
            return
        ignored = targets == self.ignore_index
        for out, of_rows in ((self.entropies, logits.entropy), (self.lses, logits.lse)):
            of_entries = of_rows if piece.row_of is None else of_rows.index_select(0, piece.row_of)
            out[entries] = of_entries.masked_fill(ignored, 0)

    def results(self) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities, entropies and log-sum-exps, as an operator returns them: nothing is empty."""
        return tuple(self.logps.new_empty(0) if t is None else t for t in (self.logps, self.entropies, self.lses))
