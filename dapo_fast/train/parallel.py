"""How training is laid over processes: the process group, and FSDP2 on an unmodified model.

Without torchrun and in fp32 a model stays as it is. Everywhere else FSDP2 shards it, at world size 1 too, where its
use is that of keeping fp32 weights behind a bf16 computation.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.rendezvous import rendezvous

from dapo_fast.config import ModelSettings, ParallelSettings
from dapo_fast.errors import InputError, first_line
from dapo_fast.models.attention import choose_backend
from dapo_fast.models.context import Context
from dapo_fast.models.loading import resolve_device, resolve_dtype
from dapo_fast.train.blocks import blocks
from dapo_fast.train.heartbeat import Heart, is_lost_peer

log = logging.getLogger("dapo_fast.train")

_generation = itertools.count()

Result = TypeVar("Result")


@dataclass(frozen=True)
class World:
    """This process among the others.

    Attributes:
        rank, size: Of this process, and how many there are.
        device: Where this process computes.
        dtype: Of the computation; weights and optimizer states are fp32.
        mesh: None where the model is not sharded.
        context: The ranks that share packs with this one; None: each takes whole packs.
        tensor: The ranks that hold every layer together with this one, and read the same packs; None: it is alone.
    """

    rank: int
    size: int
    device: torch.device
    dtype: torch.dtype
    mesh: DeviceMesh | None
    context: Context | None = None
    tensor: DeviceMesh | None = None

    @property
    def _holding(self) -> int:
        return 1 if self.tensor is None else self.tensor.size()

    @property
    def readers(self) -> int:
        """How many ranks, or groups of ranks that hold a model together, read packs of their own."""
        return self.size // self._holding

    @property
    def reader(self) -> int:
        """Which of them this rank is, or is of."""
        return self.rank // self._holding

    @property
    def counts(self) -> bool:
        """Whether what this rank reads is to be counted: of ranks that read the same packs, the first one's is."""
        return self.rank % self._holding == 0

    @property
    def sharing(self) -> int:
        """How many ranks share a pack."""
        return 1 if self.context is None else self.context.size

    @property
    def part(self) -> slice:
        """This rank's share of any list that all ranks work through."""
        return slice(self.rank, None, self.size)

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.size > 1:
            dist.barrier()

    def broadcast(self, value: Any) -> Any:
        """Rank 0's ``value`` on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def from_first(self, work: Callable[[], Result]) -> Result:
        """What ``work`` gives on rank 0, the only one to do it, on every rank.

        Raises:
            InputError: as ``work`` does, on every rank: in a collective nobody waits for a rank that has left.
        """
        result, error = None, None
        if self.rank == 0:
            try:
                result = work()
            except InputError as raised:
                error = raised
        result, said = self.broadcast((result, None if error is None else str(error)))
        if said is not None:
            raise error or InputError(said)
        return result

    def all_sum(self, values: torch.Tensor) -> torch.Tensor:
        """``values`` summed over the ranks, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """Every rank's ``value``, on every rank."""
        if self.size == 1:
            return [value]
        box: list[Any] = [None] * self.size
        dist.all_gather_object(box, value)
        return box


ALONE = World(0, 1, torch.device("cpu"), torch.float32, None)


def check_divides(size: int, parallel: ParallelSettings) -> None:
    """InputError where ``size`` processes cannot be laid out as ``parallel`` says."""
    for name in ("replicas", "context_parallel_degree", "tensor_parallel_degree"):
        groups = getattr(parallel, name)
        if size % groups:
            raise InputError(f"parallel.{name} {groups}: does not divide the {size} processes")
    both = parallel.replicas * parallel.tensor_parallel_degree
    if size % both:
        raise InputError(
            f"parallel.replicas × parallel.tensor_parallel_degree {both}: does not divide the {size} processes"
        )


def check_world(size: int, model: ModelSettings, parallel: ParallelSettings) -> tuple[str, torch.dtype]:
    """Kind of device, and type of the computation, of ``size`` processes with these settings.

    Raises:
        InputError: this machine or this number of processes cannot meet them.
    """
    check_divides(size, parallel)
    device = resolve_device(model.device)
    if parallel.context_parallel_degree > 1:
        if parallel.compile:
            raise InputError("parallel.context_parallel_degree: not with parallel.compile")
        choose_backend(model.attention, device, flat=False, shared=True)
    if parallel.tensor_parallel_degree > 1:
        untried = {
            "context_parallel_degree": parallel.context_parallel_degree > 1,
            "compile": parallel.compile,
            "cpu_offload": parallel.cpu_offload,
        }
        for other in (name for name, used in untried.items() if used):
            raise InputError(f"parallel.tensor_parallel_degree: not with parallel.{other}")
    return device.type, resolve_dtype(model.dtype, device)


def is_sharded(size: int, dtype: torch.dtype, parallel: ParallelSettings) -> bool:
    """Whether FSDP2 lays a model over ``size`` processes that compute in ``dtype``."""
    return size > 1 or dtype != torch.float32 or parallel.cpu_offload


@contextlib.contextmanager
def open_world(model: ModelSettings, parallel: ParallelSettings) -> Iterator[World]:
    """Join the processes that torchrun started, or be alone; leave them at the end.

    Raises:
        InputError: a setting that this machine or this number of processes cannot meet.
    """
    launched = "WORLD_SIZE" in os.environ and "RANK" in os.environ
    size = int(os.environ["WORLD_SIZE"]) if launched else 1
    rank = int(os.environ["RANK"]) if launched else 0
    kind, dtype = check_world(size, model, parallel)
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if kind == "cuda" and local >= torch.cuda.device_count():
        raise InputError(f"--nproc-per-node: local rank {local}, but there are {torch.cuda.device_count()} GPUs")
    device = torch.device(kind, local) if kind == "cuda" else torch.device("cpu")
    if kind == "cuda":
        torch.cuda.set_device(device)
    if not launched and not is_sharded(size, dtype, parallel):
        log.info("one process on %s in float32, not sharded", device)
        yield World(0, 1, device, dtype, None)
        return
    if dist.is_initialized():
        raise InputError("a process group exists already; training opens its own")
    store: dist.Store = next(rendezvous("env://"))[0] if launched else dist.HashStore()
    store = dist.PrefixStore(f"dapo-fast-{next(_generation)}", store)
    backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=size, timeout=timedelta(seconds=parallel.timeout_s)
    )
    degree = parallel.context_parallel_degree
    holding = parallel.tensor_parallel_degree
    shards = size // parallel.replicas // holding
    # What divides a parameter first comes last: neighbours hold a layer together.
    mesh = init_device_mesh(kind, (parallel.replicas, shards, holding), mesh_dim_names=("replicate", "shard", "tensor"))
    if rank == 0:
        shape = f"{parallel.replicas} × {shards}" if parallel.replicas > 1 else str(shards)
        log.info("FSDP2 over %s processes on %s, computing in %s", shape, kind, str(dtype).removeprefix("torch."))
        if degree > 1:
            log.info("context parallelism: %d processes share each pack", degree)
        if holding > 1:
            log.info("tensor parallelism: %d processes hold each layer together", holding)
    context = None
    if degree > 1:
        laid = init_device_mesh(kind, (size // degree, degree), mesh_dim_names=("data", "context"))
        context = Context(laid.get_group("context"), degree)
    # A connection of its own: a wait of this rank in the store is not to silence its heart.
    heart = Heart(dist.PrefixStore("heart", store.clone()), rank, size)
    try:
        sharded = mesh["replicate", "shard"] if parallel.replicas > 1 else mesh["shard"]
        yield World(rank, size, device, dtype, sharded, context, mesh["tensor"] if holding > 1 else None)
    except BaseException as error:
        in_order = size == 1 or isinstance(error, SystemExit | InputError)
        heart.stop(in_order)
        if size > 1 and is_lost_peer(error):
            heart.give_up(first_line(error))
        if in_order:
            dist.destroy_process_group()
        # Elsewhere the others are in a collective that this rank has left: tearing down the group may hang.
        raise
    dist.barrier()
    heart.stop()
    dist.destroy_process_group()


def shard(root: nn.Module, model: nn.Module, world: World, settings: ParallelSettings) -> None:
    """Apply FSDP2 in place: one group for every block, one for all the rest, gradients summed over the ranks.

    Args:
        root: The module whose forward computes the loss, so that it sees the gathered lm_head weight. Embedding,
            lm_head and final norm are its group: tied weights are then in one group, as torch ≥ 2.13 demands.
        model: The Hugging Face model within it.
    """
    if world.mesh is None:
        return
    policy = MixedPrecisionPolicy(param_dtype=world.dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    offload = CPUOffloadPolicy() if settings.cpu_offload and world.device.type == "cuda" else OffloadPolicy()
    for block in blocks(model):
        fully_shard(
            block,
            mesh=world.mesh,
            mp_policy=policy,
            offload_policy=offload,
            reshard_after_forward=settings.reshard_after_forward,
        )
    fully_shard(root, mesh=world.mesh, mp_policy=policy, offload_policy=offload)
    for module in root.modules():
        if isinstance(module, FSDPModule):
            # The loss divides by the global count itself: FSDP is to add, not to average.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def last_of_batch(root: nn.Module, last: bool, settings: ParallelSettings) -> None:
    """Say whether the coming backward is the batch's last.

    Replicas add up their gradients only then, and so do the ranks of one with ``defer_reduction``; what
    ``reshard_after_forward`` keeps gathered is let go then.
    """
    if isinstance(root, FSDPModule):
        root.set_is_last_backward(last)
        if settings.defer_reduction:
            root.set_requires_gradient_sync(last)
        root.set_requires_all_reduce(last)
        root.set_reshard_after_backward(last or settings.reshard_after_forward)


def reshard(root: nn.Module) -> None:
    """Let go of what a forward without a backward has left gathered: the parameters are the sharded ones again."""
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
