"""One chunk of logits through the Triton kernels: same interface as chunk_torch.TorchLogits."""

import torch
from torch import Tensor
from torch.nn import functional as F

from dapo_kernels.chunk_torch import Dlogits, project
from dapo_kernels.ops.dlogits import dlogits
from dapo_kernels.ops.exponentials import exponentials
from dapo_kernels.ops.final_logits import padded_width
from dapo_kernels.ops.logprob import logprob
from dapo_kernels.plan import Piece


class TritonLogits:
    """A reusable buffer of fp32 logits of up to `rows` hidden rows; dlogits are written into the same memory."""

    def __init__(
        self,
        row_scale: bool,  # as in Call.logits
        weight: Tensor,  # (V, H)
        bias: Tensor | None,  # (V,) fp32
        softcap: float | None,
        temperature: float,
        ignore_index: int,
        rows: int,
        dtype: torch.dtype,
        statistics: bool,
    ) -> None:
        width = padded_width(weight.shape[0])
        self.weight, self.bias = weight, bias if bias is None else F.pad(bias, (0, width - bias.numel()))
        self.softcap, self.temperature, self.ignore_index = softcap, temperature, ignore_index
        self.statistics = statistics
        self.row_scale = row_scale and weight.dtype != torch.float16  # whose range has no room for exponentials
        self.buffer = torch.empty(rows, width, dtype=dtype, device=weight.device)

    def forward(self, x: Tensor, targets: Tensor, piece: Piece, keep: bool) -> Tensor:
        """Log-probabilities (n,) of targets (n,) given x (U, H)."""
        self.logits = self.buffer[: x.shape[0], : self.weight.shape[0]]
        project(x, self.weight, self.logits)
        self.targets, self.piece, self.sums = targets.contiguous(), piece, None
        if keep and self.row_scale and piece.order is None:  # one entry a row
            self.values = self._narrowed(self.weight.dtype)
            logps, self.sums, self.lse, self.entropy = exponentials(
                self.logits,
                self.values,
                self.bias,
                self.targets,
                self.softcap,
                self.temperature,
                self.ignore_index,
                self.statistics,
            )
            return logps
        logps, self.picked, self.lse, self.entropy = logprob(
            self.logits,
            self.bias,
            self.targets,
            piece.order,
            piece.row_starts,
            self.softcap,
            self.temperature,
            self.ignore_index,
            self.statistics,
        )
        return logps

    def backward(self, gradient: Tensor, dtype: torch.dtype, of_lses: Tensor | None = None) -> Dlogits:
        """As TorchLogits.backward; overwrites the logits."""
        if self.sums is not None:
            gradient = gradient.masked_fill(self.targets == self.ignore_index, 0)
            return Dlogits(readable(self.values), gradient / -self.sums)
        gradient, out = gradient.contiguous(), self._narrowed(dtype)
        dlogits(
            self.logits,
            out,
            self.bias,
            self.targets,
            self.piece.order,
            self.piece.row_starts,
            gradient,
            gradient if of_lses is None else gradient - of_lses,
            self.picked,
            self.lse,
            self.softcap,
            self.temperature,
            self.ignore_index,
        )
        return Dlogits(readable(out), None)

    def _narrowed(self, dtype: torch.dtype) -> Tensor:
        """(U, V) the logits' memory in `dtype`, which takes the first part of each row."""
        rows, vocabulary = self.logits.shape
        return self.buffer.view(dtype)[:rows, :vocabulary]


def readable(values: Tensor) -> Tensor:
    """`values`, as a product can read them."""
    # On a CPU (in the interpreter) a bf16 product reads past the end of rows: what was left there may be NaN.
    return values if values.is_cuda else values.contiguous()
