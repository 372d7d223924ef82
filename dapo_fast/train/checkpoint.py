"""Training checkpoints: torch.distributed.checkpoint, asynchronous, published by a rename, checked by a sum.

A checkpoint is a directory ``step-00000100``: the tensors (``*.distcp``), their index (``.metadata``), ``sums-*.json``
with the size and CRC-32 of every file, and ``meta.json``. It is written as ``step-00000100.tmp`` and renamed when
every rank has finished, so that a name without ``.tmp`` is a whole checkpoint, whatever was killed when. Tensors are
stored by name and global shape: another world size, or none, reads the same files.
"""

from __future__ import annotations

import logging
import os
import shutil
import warnings
from collections.abc import Iterable
from concurrent.futures import Future
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn

from dapo_fast.errors import InputError
from dapo_fast.rundir import read_state, write_json
from dapo_fast.state import Checkpoint, Sums
from dapo_fast.sums import damaged, file_sum
from dapo_fast.train.optim import plain_states
from dapo_fast.train.parallel import World

log = logging.getLogger("dapo_fast.train")

CHECKPOINTS = "checkpoints"  # within a stage's directory, until it is done

# One process without a group is a way of training, not a mishap.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")


def training_state(model: nn.Module, optimizer: torch.optim.Optimizer, kind: str = "float32") -> dict[str, Any]:
    """Trainable parameters and their optimizer states by parameter name: what a checkpoint holds.

    ``kind`` is ``OptimSettings.optimizer_state``.

    Everything else of a run's state is a function of the step: the data, the schedule and the random numbers.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    states = {name: plain_states(optimizer, p, kind) for name, p in trained.items()}
    return weights_state(model) | {"optimizer": states}


def weights_state(model: nn.Module) -> dict[str, Any]:
    """Trainable parameters by name."""
    return {"model": {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}}


class _SummingWriter(dcp.FileSystemWriter):
    """A file-system writer that leaves the size and CRC-32 of each rank's files beside them."""

    def write_data(self, plan: Any, planner: Any) -> Any:
        result = super().write_data(plan, planner)
        result.wait()
        files = sorted({item.storage_data.relative_path for item in result.value()})
        name = f"sums-{dist.get_rank() if dist.is_initialized() else 0}.json"
        write_json(Path(self.path) / name, {file: file_sum(Path(self.path) / file) for file in files})
        return result

    def finish(self, metadata: Any, results: Any) -> None:
        super().finish(metadata, results)
        write_json(Path(self.path) / "sums-index.json", {".metadata": file_sum(Path(self.path) / ".metadata")})


class Checkpoints:
    """The checkpoints of one training run."""

    def __init__(self, directory: Path, world: World, keep: int | None, digest: str) -> None:
        """Open ``directory``, which need not exist.

        Args:
            keep: How many of the newest to keep; None: all that ``drop`` is not told of.
            digest: Identifies the settings; a checkpoint of another digest is refused.
        """
        self.directory = directory
        self.world = world
        self.keep = keep
        self.digest = digest
        # Saving runs collectives in a thread of its own: they must not meet those of the training step. Nor are they to
        # time out: a rank's file may take an hour to read, and who dies meanwhile is missed by the heartbeat.
        self._group = dist.new_group(backend="gloo", timeout=timedelta(days=7)) if world.size > 1 else None
        self._pending: Future | None = None
        if world.rank == 0:
            directory.mkdir(parents=True, exist_ok=True)
            for half in directory.glob("*.tmp"):
                log.warning("%s: half-written, left by a run that was stopped; ignored and removed", half)
                shutil.rmtree(half)
        world.barrier()

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Copy ``state`` aside and write it as the checkpoint after ``step`` steps, while training goes on."""
        self.wait()
        final = self.directory / f"step-{step:08d}"
        temporary = final.with_name(final.name + ".tmp")
        if self.world.rank == 0:
            meta = {"step": step, "digest": self.digest, "world_size": self.world.size, "torch": torch.__version__}
            write_json(temporary / "meta.json", meta)
        written = dcp.async_save(
            state, storage_writer=_SummingWriter(temporary), process_group=self._group, no_dist=self._group is None
        )
        self._pending = Future()
        written.add_done_callback(lambda _: self._publish(written, self._pending, temporary, final))

    def _publish(self, written: Future, published: Future, temporary: Path, final: Path) -> None:
        try:
            written.result()
            # The coordinator's save ends after every rank's data is written.
            if self.world.rank == 0:
                os.replace(temporary, final)
                self.drop([] if self.keep is None else self.steps()[: -self.keep])
            published.set_result(None)
        except BaseException as error:  # wait() raises it in the training thread
            published.set_exception(error)

    def drop(self, steps: Iterable[int]) -> None:
        """Remove the checkpoints of ``steps``; rank 0 does it."""
        for step in steps if self.world.rank == 0 else ():
            shutil.rmtree(self._path(step))

    def wait(self) -> None:
        """Block until the save under way is published; raises what it raised."""
        if self._pending is None:
            return
        try:
            self._pending.result()
        except dcp.api.CheckpointException as error:
            # It is a BaseException: the command line, which says what a full disk is, would not catch it.
            raise next(iter(error.failures.values()))[0] from error
        self._pending = None

    def _path(self, step: int) -> Path:
        return self.directory / f"step-{step:08d}"

    def steps(self) -> list[int]:
        """Steps of the published checkpoints, oldest first."""
        return sorted(int(path.name[5:]) for path in self.directory.glob("step-*") if path.name[5:].isdigit())

    def resume(self, state: dict[str, Any]) -> int:
        """Load the newest checkpoint into ``state`` in place; returns its step, 0 where there is none.

        Each rank checks the files that the rank of its number wrote, all at the same time.

        Raises:
            InputError: it was made with other settings, or a file of it is damaged; the message names the file and
                the newest checkpoint that is whole.
        """
        steps = self._gather(self.steps())[0]
        if not steps:
            return 0
        path = self._path(steps[-1])
        self._check(path, steps[:-1])
        try:
            dcp.load(state, checkpoint_id=path, process_group=self._group, no_dist=self._group is None)
        except dcp.api.CheckpointException as error:
            cause = next(iter(error.failures.values()))[0]
            raise InputError(f"{path}: does not fit this model and optimizer ({cause})") from error
        return steps[-1]

    def _check(self, path: Path, older: list[int]) -> None:
        """Raise what every rank must know of a checkpoint before any of them reads it."""
        problem = self._damage(path)
        if problem is not None:
            good = next((self._path(step) for step in reversed(older) if self._damage(self._path(step)) is None), None)
            advice = f"the newest whole checkpoint is {good}" if good else "no other checkpoint is whole"
            raise InputError(f"{problem}; {advice}; remove {path} to go on from there")
        if self._gather(read_state(path / "meta.json", Checkpoint)["digest"])[0] != self.digest:
            raise InputError(f"{path}: made with other settings; use a new run directory")

    def _damage(self, path: Path) -> str | None:
        """What any rank finds wrong with its share of the files, or None."""
        found = self._gather(_damage(path, self.world.rank, self.world.size))
        return next((problem for problem in found if problem is not None), None)

    def _gather(self, value: Any) -> list[Any]:
        """Every rank's ``value``, on every rank, however long they take."""
        if self._group is None:
            return [value]
        box: list[Any] = [None] * self.world.size
        dist.all_gather_object(box, value, group=self._group)
        return box


def _damage(path: Path, rank: int, size: int) -> str | None:
    """What is wrong with the files of a checkpoint that rank ``rank`` of ``size`` is to check, or None."""
    sums: dict[str, list[int]] = {}
    try:
        written_by = range(read_state(path / "meta.json", Checkpoint)["world_size"])
        for name in [*written_by[rank::size], *(["index"] if rank == 0 else [])]:
            sums |= read_state(path / f"sums-{name}.json", Sums)
    except InputError as error:
        return str(error)
    return damaged(path, sums)
