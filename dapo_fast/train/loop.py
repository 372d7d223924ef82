"""The training loop: one for sft, critic and actor, on one device or many.

A batch is a number of items (scored tokens, states, state-action pairs) and its loss a sum over them, divided by their
count over ALL ranks: how they are packed, dealt to ranks and accumulated never changes the mathematics. Everything
a step needs is a function of the seed and the step's number, so a checkpoint is weights and optimizer states.
"""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn, Protocol

import torch
from torch import Tensor, nn

from dapo_fast.config import OptimSettings, ParallelSettings
from dapo_fast.data.pack import Pack
from dapo_fast.errors import NonFiniteError
from dapo_fast.rundir import read_state, write_json
from dapo_fast.signals import handled
from dapo_fast.state import Halted
from dapo_fast.train.balance import Balance
from dapo_fast.train.checkpoint import CHECKPOINTS, Checkpoints, training_state
from dapo_fast.train.optim import clip_gradients, learning_rate, make_optimizer, set_rate
from dapo_fast.train.parallel import World, last_of_batch
from dapo_fast.train.profiling import profiled
from dapo_fast.train.telemetry import Meter, Telemetry, memory_gib

log = logging.getLogger("dapo_fast.train")


@dataclass(frozen=True)
class Batch:
    """One optimizer step's packs.

    Attributes:
        ranks: The packs of every rank, or group of ranks that reads the same, as many for each; the same on every rank.
        count: What the loss's sum is divided by: items over all ranks.
    """

    ranks: list[list[Pack]]
    count: int

    @property
    def packs(self) -> list[Pack]:
        """All packs, rank after rank: the order of ``values`` in ``Task.metrics``."""
        return [pack for rank in self.ranks for pack in rank]


class Task(Protocol):
    """What sft, critic and actor differ in."""

    name: str
    steps: int

    def batch(self, step: int) -> Batch:
        """The packs of optimizer step ``step`` (from 0), a function of the seed and ``step`` alone."""

    def items(self, pack: Pack) -> int:
        """How many values ``loss`` gives for ``pack``."""

    def loss(self, pack: Pack, count: int) -> tuple[Tensor, Tensor]:
        """The pack's share of the loss (its sum / ``count``) with gradients, and one detached value an item."""

    def metrics(self, packs: Sequence[Pack], values: Tensor) -> dict[str, float]:
        """What to report of a step, from the values ``(items,)`` fp64 of ``packs`` in order."""

    def halt(self, metrics: dict[str, float]) -> str | None:
        """Why training should end with this step, before ``steps``; None: it goes on. The same on every rank."""

    def measure(self, step: int, last: bool) -> dict[str, float]:
        """What there is to report of the model after ``step`` steps, ``last`` or not, beside ``metrics``."""


HALTED = "halted.json"  # written where a task ended before its last step


def train(
    task: Task,
    root: nn.Module,
    model: nn.Module,
    settings: OptimSettings,
    world: World,
    directory: Path,
    seed: int,
    digest: str,
    parallel: ParallelSettings,
) -> dict[str, float]:
    """Train ``root``'s trainable parameters for ``task.steps`` steps, from the newest checkpoint if there is one.

    Args:
        root: The module whose forward ``task.loss`` calls.
        model: The Hugging Face model within it.
        directory: Gets ``checkpoints/``, ``metrics.jsonl``, ``tensorboard/`` and, of steps to profile, ``profile/``.

    Returns:
        The metrics of the last step.

    Raises:
        NonFiniteError: a loss or gradient is not finite; the batch is in ``nonfinite-step-N.json``.
        SystemExit: SIGTERM or SIGINT came; a checkpoint is saved, the code is 128 + the signal.
    """
    root.eval()  # No dropout: the loss is of the policy's own log-probabilities.
    trained = [p for p in root.parameters() if p.requires_grad]
    optimizer = make_optimizer(model, settings)
    checkpoints = Checkpoints(directory / CHECKPOINTS, world, settings.keep_checkpoints, digest)
    start = checkpoints.resume(training_state(model, optimizer, settings.optimizer_state))
    steps = _halted(directory, task.steps)
    if start:
        log.info("%s: resuming after step %d of %d", task.name, start, steps)
    meter = Meter(model, world)
    balance = Balance(root, model, world, settings.router_aux) if settings.router_aux else None
    telemetry = Telemetry(directory, world, task.name, start, task.steps, parallel.tracker, settings.model_dump())
    metrics: dict[str, float] = {}
    stop = _StopSignals()
    heard = handled((signal.SIGTERM, signal.SIGINT), stop)
    with closing(telemetry), heard, ThreadPoolExecutor(1, "batches") as ahead:
        upcoming = ahead.submit(task.batch, start) if start < steps else None
        for step in range(start, steps):
            began = time.perf_counter()
            batch = upcoming.result()
            upcoming = ahead.submit(task.batch, step + 1) if step + 1 < task.steps else None
            torch.manual_seed(((seed << 32) + step) % 2**63)
            with profiled(directory, step + 1, step + 1 in parallel.profile, world):
                loss, values = _accumulate(task, root, batch, world, parallel, balance)
                norm = clip_gradients(trained, settings.clip_norm)
                report = _reduce(loss, values, stop.signal or 0, world)
                if not (math.isfinite(report.loss) and math.isfinite(norm)):
                    checkpoints.wait()
                    _stop_on_nonfinite(task, batch, step, report.loss, float(norm), world, directory)
                rate = learning_rate(step, task.steps, settings)
                set_rate(optimizer, rate)
                optimizer.step()
                optimizer.zero_grad()
            metrics = {"loss": report.loss, "grad_norm": float(norm), "lr": rate}
            metrics |= task.metrics(batch.packs, report.values) | ({"router_loss": balance.value} if balance else {})
            metrics |= meter.read(batch.ranks, time.perf_counter() - began)
            metrics["memory_gib"] = report.memory
            done = step + 1
            reason = task.halt(metrics) if done < task.steps else None
            metrics |= task.measure(done, last=bool(reason) or done == steps)
            telemetry.log(done, metrics)
            if reason:
                log.warning("%s: ended after step %d of %d: %s", task.name, done, task.steps, reason)
                if world.rank == 0:
                    write_json(directory / HALTED, {"step": done, "reason": reason})
            ends = bool(reason) or done == steps
            # Not after the last step: the model is exported next, and its checkpoint deleted.
            if report.signal or (not ends and done % settings.save_every == 0):
                telemetry.sync()
                checkpoints.save(done, training_state(model, optimizer, settings.optimizer_state))
            if report.signal:
                checkpoints.wait()
                name = signal.Signals(report.signal).name
                log.warning("%s: %s; saved step %d, the same command goes on from there", task.name, name, done)
                raise SystemExit(128 + report.signal)
            if ends:
                break
    checkpoints.wait()
    if stop.signal:  # since the last step asked for signals: as if it had come now
        signal.raise_signal(stop.signal)
    return metrics


def _halted(directory: Path, steps: int) -> int:
    """How many steps there are to do: as many as planned, or where an earlier process halted the task."""
    path = directory / HALTED
    return min(steps, read_state(path, Halted)["step"]) if path.exists() else steps


def _accumulate(
    task: Task, root: nn.Module, batch: Batch, world: World, parallel: ParallelSettings, balance: Balance | None
) -> tuple[Tensor, Tensor]:
    """Forward and backward over this rank's packs: (its share of the loss, values at its places, zeros elsewhere).

    The routers' loss has its gradients here, and a number of its own.
    """
    if balance:
        balance.measure(batch.ranks)
    values = torch.zeros(sum(task.items(pack) for pack in batch.packs), dtype=torch.float64, device=world.device)
    place = sum(task.items(pack) for rank in batch.ranks[: world.reader] for pack in rank)
    total = torch.zeros((), dtype=torch.float64, device=world.device)
    mine = batch.ranks[world.reader]
    for index, pack in enumerate(mine):
        last_of_batch(root, index == len(mine) - 1, parallel)
        with balance.listening() if balance else nullcontext() as heard:
            loss, found = task.loss(pack.to(world.device, non_blocking=True), batch.count)
        (loss + balance.loss(heard, index) if balance else loss).backward()
        if world.counts:
            total += loss.detach()
            values[place : place + found.numel()] = found
        place += found.numel()
    return total, values


@dataclass(frozen=True)
class _Report:
    loss: float
    signal: int
    memory: float  # GiB, of the fullest rank
    values: Tensor  # (items,) fp64 on the CPU


def _reduce(loss: Tensor, values: Tensor, signal_number: int, world: World) -> _Report:
    """One sum over the ranks for all that is reported; its copy to the CPU waits for the device."""
    memory = torch.zeros(world.size, dtype=torch.float64)
    memory[world.rank] = memory_gib(world.device)
    signals = torch.zeros(world.size, dtype=torch.float64)
    signals[world.rank] = signal_number
    sent = torch.cat([loss.reshape(1), torch.cat([memory, signals]).to(world.device), values])
    got = world.all_sum(sent).cpu()
    memory, signals = got[1 : 1 + 2 * world.size].chunk(2)
    return _Report(got[0].item(), int(signals.max()), memory.max().item(), got[1 + 2 * world.size :])


def _stop_on_nonfinite(
    task: Task, batch: Batch, step: int, loss: float, norm: float, world: World, directory: Path
) -> NoReturn:
    path = directory / f"nonfinite-step-{step + 1}.json"
    if world.rank == 0:
        keys = [torch.cat([pack.step_keys, pack.value_keys]).tolist() for pack in batch.packs]
        write_json(path, {"step": step + 1, "loss": str(loss), "grad_norm": str(norm), "packs": keys})
    raise NonFiniteError(
        f"{task.name}: loss {loss}, gradient norm {norm} at step {step + 1}; the batch's items are in {path}, "
        "weights are as the last checkpoint has them"
    )


class _StopSignals:
    """SIGTERM and SIGINT ask for a stop after the step; a second SIGINT stops at once."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.signal == signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
