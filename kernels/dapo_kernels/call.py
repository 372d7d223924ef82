"""The arguments of a fused function as the engine reads them: operands, chunks, the buffer of logits, the backend."""

import logging
import os
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from dapo_kernels import checks
from dapo_kernels.chunk_torch import TorchLogits, segment_sums
from dapo_kernels.plan import Chunk, Piece, make_chunks, row_index, sizes

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from dapo_kernels.sharded import Shard

log = logging.getLogger("dapo_fast.kernels")

Backend = Literal["auto", "triton", "torch"]


@dataclass
class Call:
    """The arguments that every linear function has; making one checks them (ValueError naming the argument)."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    targets: Tensor
    rows: Tensor | None
    softcap: float | None
    temperature: float
    ignore_index: int
    chunk_rows: int | None
    backend: Backend
    cu_name: str
    statistics: bool = False
    dtype: torch.dtype | None = None  # of the products; None: autocast's, or hidden's
    group: "ProcessGroup | None" = None  # whose processes hold the weight's rows; None: all are here

    def __post_init__(self) -> None:
        if self.chunk_rows is not None and self.chunk_rows < 1:
            raise ValueError(f"chunk_rows: must be at least 1, got {self.chunk_rows}")
        self.shard = None if self.group is None else self._share()
        # Whether every target is known to be a word that counts: then no pass looks for those that are not.
        self.all_words = checks.linear(
            self.hidden, self.weight, self.targets, self.bias, self.rows, self.softcap, self.temperature,
            self.ignore_index, self.dtype, None if self.shard is None else self.shard.total,
        )  # fmt: skip
        if self.dtype is None:
            device = self.hidden.device.type
            autocast = torch.is_autocast_enabled(device)
            self.dtype = torch.get_autocast_dtype(device) if autocast else self.hidden.dtype
        self.logits_dtype = torch.float64 if self.dtype == torch.float64 else torch.float32
        if not torch.compiler.is_compiling():  # else the operator chooses, when it runs
            self.triton = self.shard is None and choose_triton(self.backend, self.hidden.device, self.dtype)

    def _share(self) -> "Shard":
        """The vocabulary's shard; weight and bias become this process's rows."""
        from dapo_kernels.sharded import Shard, local_rows  # torch.distributed is slow to import

        if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            raise NotImplementedError("process_group: is for eager calls, not torch.compile or torch.func's transforms")
        if self.backend == "triton":
            raise ValueError(
                "backend: the Triton kernels read whole vocabularies; with process_group use torch or auto"
            )
        self.weight = local_rows("weight", self.weight, self.group)
        checks.tensor("weight", self.weight, (None, None), checks.FLOATS)
        self.bias = None if self.bias is None else local_rows("bias", self.bias, self.group)
        return Shard.of(self.weight, self.group)

    def chunks(self, cu_segments: Tensor | None, per_group: int) -> list[Chunk]:
        device = self.hidden.device
        vocabulary = self.weight.shape[0] if self.shard is None else self.shard.widest
        limits = sizes(self.chunk_rows, vocabulary, device)
        return make_chunks(cu_segments, self.rows, self.targets.numel(), limits, per_group, device, self.cu_name)

    def operands(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """hidden, weight and bias as the GEMMs read them."""
        hidden, weight = self.hidden.to(self.dtype), self.weight.to(self.dtype)
        if not self.triton and hidden.device.type == "cpu":
            # A CPU has no GEMM from low precision into fp32: widen the weight once, and each chunk of hidden.
            weight = weight.to(self.logits_dtype)
        bias = None if self.bias is None else self.bias.to(self.logits_dtype)
        return hidden, weight, bias

    def sums(self, tokens: Tensor, offsets: Tensor | None) -> Tensor:
        """Token log-probabilities (n,) to those of segments, by the backend."""
        if self.triton and offsets is not None:
            from dapo_kernels.ops.segment_sum import segment_sum

            return segment_sum(tokens, offsets)
        return segment_sums(tokens, offsets)

    def logits(self, weight: Tensor, bias: Tensor | None, chunks: list[Chunk], row_scale: bool = True) -> "TorchLogits":
        """The backend's buffer, large enough for the largest piece.

        `row_scale`: an entry's gradient is one number times (onehot − softmax), no gradient of its log-sum-exp alone.
        """
        pieces = [piece for chunk in chunks for piece in chunk.pieces]
        size = max((p.stop - p.start if p.rows is None else p.rows.numel() for p in pieces), default=0)
        kind, ignored = TorchLogits, None if self.all_words else self.ignore_index
        if self.triton:
            from dapo_kernels.chunk_epilogue import EpilogueLogits, is_possible
            from dapo_kernels.chunk_triton import TritonLogits

            epilogue = is_possible(weight, self.rows, row_scale, self.statistics)
            kind = EpilogueLogits if epilogue else partial(TritonLogits, row_scale)
            ignored = self.ignore_index
        elif self.shard is not None:
            from dapo_kernels.sharded import ShardedLogits

            kind = partial(ShardedLogits, self.shard)
        return kind(weight, bias, self.softcap, self.temperature, ignored, size, self.logits_dtype, self.statistics)


def choose_triton(backend: Backend, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the Triton kernels run: on a GPU, in up to fp32; elsewhere only in their interpreter."""
    if backend not in ("auto", "triton", "torch"):
        raise ValueError(f"backend: expected auto, triton or torch, got {backend!r}")
    if backend == "triton" and device.type != "cuda" and os.environ.get("TRITON_INTERPRET", "0") != "1":
        raise ValueError(f"backend: triton needs a GPU (or TRITON_INTERPRET=1), but hidden is on {device}")
    if backend == "triton" and dtype == torch.float64:
        raise ValueError("backend: the Triton kernels reduce in fp32; fp64 runs on the torch path")
    chosen = backend == "triton" or (backend == "auto" and device.type == "cuda" and dtype != torch.float64)
    log.debug("linear log-probabilities on the %s path (%s)", "triton" if chosen else "torch", device)
    return chosen


def on_device(tensor: Tensor) -> AbstractContextManager:
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def kernel_context(tensor: Tensor) -> AbstractContextManager:
    """The tensor's device, and no autocast: the engine chooses its dtypes itself."""
    if not torch.is_autocast_enabled(tensor.device.type):
        return on_device(tensor)
    stack = ExitStack()
    stack.enter_context(torch.autocast(tensor.device.type, enabled=False))
    stack.enter_context(on_device(tensor))
    return stack


def gather_rows(hidden: Tensor, piece: Piece, dtype: torch.dtype) -> Tensor:
    """The hidden rows (U, H) that the piece's entries read, each once."""
    if piece.rows is None:
        rows = hidden[piece.start : piece.stop]
    else:
        rows = hidden.index_select(0, row_index(hidden, piece))
    return rows.to(dtype)
