"""What the passes over the logits say of every token: its log-probability and, on request, two statistics."""

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from dapo_kernels.plan import Piece

if TYPE_CHECKING:
    from dapo_kernels.call import Call
    from dapo_kernels.chunk_torch import TorchLogits


class Tokens(NamedTuple):
    """(N,) tensors of a call; entropies and lses are None where they are not asked for."""

    logps: Tensor
    entropies: Tensor | None
    lses: Tensor | None

    def results(self) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities, entropies and log-sum-exps, as an operator returns them: nothing is None."""
        return tuple(self.logps.new_empty(0) if t is None else t for t in self)


class TokenReader:
    """Reads a call's pieces, in their order."""

    def __init__(self, call: "Call") -> None:
        self.call, self.parts = call, []

    def read(self, logits: "TorchLogits", x: Tensor, piece: Piece, keep: bool) -> Tensor:
        """A piece's log-probabilities (n,) from its hidden rows x (U, H). `keep`: logits.backward will be called."""
        targets = self.call.targets[piece.start : piece.stop]
        logps = logits.forward(x, targets, piece, keep)
        statistics = (None, None)
        if self.call.statistics:
            ignored = targets == self.call.ignore_index
            of_entries = (
                t if piece.row_of is None else t.index_select(0, piece.row_of) for t in (logits.entropy, logits.lse)
            )
            statistics = tuple(t.masked_fill(ignored, 0) for t in of_entries)
        self.parts.append(Tokens(logps, *statistics))
        return logps

    def finished(self) -> Tokens:
        """Of all pieces."""
        if len(self.parts) == 1:
            return self.parts[0]
        none = torch.empty(0, dtype=self.call.logits_dtype, device=self.call.hidden.device)
        parts = self.parts or [Tokens(none, *([none] * 2 if self.call.statistics else [None] * 2))]
        return Tokens(*(None if of_parts[0] is None else torch.cat(of_parts) for of_parts in zip(*parts)))
