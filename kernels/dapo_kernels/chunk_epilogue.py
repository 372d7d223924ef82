"""One chunk of logits that never are: their product leaves exponentials in bf16. Not the default: unmeasured.

`DAPO_KERNELS_EPILOGUE=1` asks for it wherever it can be had (`is_possible`): same interface as
chunk_torch.TorchLogits, half of the memory, and no pass over the logits but the three products.
"""

import os

import torch
from torch import Tensor

from dapo_kernels.chunk_torch import Dlogits
from dapo_kernels.chunk_triton import readable
from dapo_kernels.ops.final_logits import padded_width
from dapo_kernels.ops.gemm_exponentials import gemm_exponentials, words_of_a_split
from dapo_kernels.plan import Piece

# A split so far below its row's log-sum-exp is taken to be this far below: what its exponentials are then too large by
# is less than e^(HEADROOM − 60) of the row's gradient, and the number that stands for its one-hot does not overflow.
DEEPEST = -60.0


def is_possible(weight: Tensor, rows: Tensor | None, row_scale: bool, statistics: bool) -> bool:
    """Whether the switch is on, and a call's entries have each a hidden row, a row one number, and all of it bf16."""
    switched = os.environ.get("DAPO_KERNELS_EPILOGUE", "0") == "1"
    return switched and weight.dtype == torch.bfloat16 and rows is None and row_scale and not statistics


class EpilogueLogits:
    """A reusable buffer of exponentials of up to `rows` hidden rows."""

    def __init__(
        self,
        weight: Tensor,  # (V, H) bf16
        bias: Tensor | None,  # (V,) fp32
        softcap: float | None,
        temperature: float,
        ignore_index: int,
        rows: int,
        dtype: torch.dtype,
        statistics: bool,
    ) -> None:
        self.weight, self.bias = weight if weight.stride(1) == 1 else weight.contiguous(), bias
        self.softcap, self.temperature, self.ignore_index = softcap, temperature, ignore_index
        self.buffer: Tensor | None = None  # made for the first chunk that has a gradient
        self.shape = (rows, padded_width(weight.shape[0]))

    def forward(self, x: Tensor, targets: Tensor, piece: Piece, keep: bool) -> Tensor:
        """Log-probabilities (n,) of targets (n,) given x (n, H)."""
        self.values = self._memory(x.shape[0]) if keep else None
        self.targets, vocabulary = targets.contiguous(), self.weight.shape[0]
        self.splits = gemm_exponentials(
            x if x.stride(1) == 1 else x.contiguous(), self.weight, self.bias, self.targets, self.values,
            words_of_a_split(x.shape[0], vocabulary, x.device), self.softcap, self.temperature,
        )  # fmt: skip
        self.lse = torch.logsumexp(self.splits.origins + self.splits.totals.log(), 0)
        logps = (self.splits.picked - self.lse).clamp_(max=0)  # rounding; NaN stays NaN
        return logps.masked_fill_(self.targets == self.ignore_index, 0)

    def backward(self, gradient: Tensor, dtype: torch.dtype, of_lses: Tensor | None = None) -> Dlogits:
        """As TorchLogits.backward, a number a row and split: the exponentials stay, but for the targets'."""
        words, origins, _, picked = self.splits
        ignored = self.targets == self.ignore_index
        column = self.targets.long().clamp(0, self.weight.shape[0] - 1)
        depth = (origins - self.lse).clamp_(min=DEEPEST)  # NaN stays NaN
        slope = 1 / self.temperature
        if self.softcap is not None:
            slope = slope * (1 - (picked * (self.temperature / self.softcap)).square())
        # Times exp(depth) it is p − 1; from fp32: adding to what was rounded would lose 1 − p near p = 1.
        hit = torch.expm1(picked - self.lse) * slope / depth.gather(0, (column // words)[None])[0].exp()
        self.values.scatter_(1, column[:, None], hit.to(self.values.dtype)[:, None])
        scale = depth.exp_() * gradient.masked_fill(ignored, 0).neg_()  # nought for what an ignored target overwrote
        return Dlogits(readable(self.values), scale, words)

    def _memory(self, rows: int) -> Tensor:
        if self.buffer is None:
            self.buffer = torch.empty(self.shape, dtype=torch.bfloat16, device=self.weight.device)
        return self.buffer[:rows, : self.weight.shape[0]]
