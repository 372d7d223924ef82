"""Where a model is trained, as far as its memory depends on it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dapo_fast.config import ParallelSettings
from dapo_fast.models.loading import device_bytes
from dapo_fast.train.parallel import World

GIB = 2**30


@dataclass(frozen=True)
class Place:
    """The ranks of one training.

    Attributes:
        parallel: How it is laid out.
        processes: Ranks.
        half: Whether it is computed in 16 bits.
        device: ``"cuda"`` or ``"cpu"``.
        device_bytes: Memory of one rank; None where it is not known.
    """

    parallel: ParallelSettings
    processes: int
    half: bool
    device: str
    device_bytes: float | None

    @classmethod
    def of(cls, world: World, parallel: ParallelSettings) -> Place:
        """This rank's in ``world``; the processes of a CPU are taken to be on one machine."""
        size = rank_memory_gib(world.device, world.size) * GIB
        return cls(parallel, world.size, world.dtype.itemsize == 2, world.device.type, size)

    @property
    def width(self) -> int:
        """Bytes of what is computed in."""
        return 2 if self.half else 4

    @property
    def is_sharded(self) -> bool:
        """Whether weights are gathered for each forward."""
        return self.half or self.processes > 1 or self.parallel.cpu_offload

    @property
    def shards(self) -> int:
        """Ranks that hold a copy of the weights together."""
        return self.processes // self.parallel.replicas

    @property
    def holding(self) -> int:
        """Ranks that hold each layer together."""
        return self.parallel.tensor_parallel_degree


def rank_memory_gib(device: torch.device, processes: int) -> float:
    """GiB that each of ``processes`` on this machine has: a GPU of its own, or its share of the main memory."""
    return device_bytes(device) / GIB / (1 if device.type == "cuda" else processes)
