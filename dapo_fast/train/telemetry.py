"""What a training run tells while it runs: metrics.jsonl, TensorBoard, a progress bar, and a tracker if asked for."""

from __future__ import annotations

import importlib
import logging
import os
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from dapo_fast.checked import json_line
from dapo_fast.data.pack import Pack, pack_cost
from dapo_fast.errors import InputError
from dapo_fast.events import tell_step
from dapo_fast.models.size import active_body
from dapo_fast.models.variants import head_size, largest
from dapo_fast.published import published
from dapo_fast.rundir import read_metrics
from dapo_fast.train.parallel import World

log = logging.getLogger("dapo_fast.train")

SAY_EVERY_S = 30.0  # between two lines of the log where there is no terminal for a progress bar
# Dense bf16 peak of one device, flops a second, from the makers' data sheets.
_PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "H800": 989e12, "A100": 312e12, "A800": 312e12, "B200": 2250e12}


class Telemetry:
    """Rank 0 writes; every other rank's calls do nothing."""

    def __init__(
        self, directory: Path, world: World, stage: str, start: int, steps: int, tracker: str, settings: dict[str, Any]
    ) -> None:
        """Open the metrics of a run that goes on after ``start`` steps: later lines, of a run that was killed, go.

        Raises:
            InputError: the tracker is not installed, or ``metrics.jsonl`` is damaged.
        """
        self._writing = world.rank == 0
        self._run: Any = None
        if tracker != "none":
            try:
                module = importlib.import_module(tracker)
            except ImportError as error:
                raise InputError(f"parallel.tracker {tracker}: not installed (pip install {tracker})") from error
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / "metrics.jsonl"
        world.from_first(lambda: _cut_metrics(path, start))
        if not self._writing:
            return
        name = f"{directory.absolute().parent.name}-{stage}"
        if tracker != "none":
            self._run = module.init(project="dapo-fast", name=name, config=settings)
        self._file = open(path, "a")  # noqa: SIM115 - open for the life of the run
        self._events = _Events(directory / "tensorboard", start)
        self._bar = tqdm(total=steps, initial=start, unit="step", mininterval=1.0, disable=not sys.stderr.isatty())
        self._bar.set_description(stage, refresh=False)
        self._stage, self._steps, self._said = stage, steps, time.monotonic()

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Record the metrics of optimizer step ``step`` (the first is 1)."""
        if not self._writing:
            return
        self._file.write(json_line({"step": step, **metrics}))
        self._file.flush()
        self._events.write(step, metrics)
        if self._run is not None:
            self._run.log(metrics, step=step)
        tell_step(step, metrics)
        self._bar.set_postfix(loss=f"{metrics['loss']:.4g}", refresh=False)
        self._bar.update()
        if self._bar.disable and time.monotonic() - self._said > SAY_EVERY_S:
            self._said = time.monotonic()
            left = metrics["seconds"] * (self._steps - step)
            log.info("%s: step %d of %d, loss %.4g, %.0f s left", self._stage, step, self._steps, metrics["loss"], left)

    def sync(self) -> None:
        """Put the lines so far on the disk: a checkpoint is about to count on them."""
        if self._writing:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flush and close everything."""
        if not self._writing:
            return
        self._bar.close()
        self._events.close()
        self._file.close()
        if self._run is not None:
            self._run.finish()


def _cut_metrics(path: Path, start: int) -> None:
    if not path.exists():
        return
    kept = [json_line(row) for row in read_metrics(path) if row["step"] <= start]
    with published(path) as file:
        file.write("".join(kept).encode())


class _Events:
    """TensorBoard scalars, one event a step."""

    def __init__(self, directory: Path, start: int) -> None:
        # Imported late: it is slow, and only rank 0 of a run needs it.
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = Event, Summary
        self._writer = EventFileWriter(str(directory))
        if start:
            # TensorBoard then drops what an earlier file says of later steps.
            session = SessionLog(status=SessionLog.START)
            self._writer.add_event(Event(wall_time=time.time(), step=start + 1, session_log=session))

    def write(self, step: int, metrics: dict[str, float]) -> None:
        values = [self._summary.Value(tag=tag, simple_value=value) for tag, value in metrics.items()]
        self._writer.add_event(self._event(wall_time=time.time(), step=step, summary=self._summary(value=values)))

    def close(self) -> None:
        self._writer.close()


def memory_gib(device: torch.device) -> float:
    """Peak memory of this process so far: on CUDA the allocator's, else the resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class Meter:
    """Work done by a batch of packs, and how fast."""

    def __init__(self, model: nn.Module, world: World) -> None:
        config = model.config.get_text_config()
        head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        self._head = head.weight.numel() if head is not None else 0
        self._body = active_body(model)
        heads = largest(config, "num_attention_heads") or 0  # none where all layers are recurrent
        self._attention = config.num_hidden_layers * heads * head_size(config)
        self._hidden = config.hidden_size
        name = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else ""
        self._peak = next((flops for key, flops in _PEAK_FLOPS.items() if key in name), None)
        self._world = world

    def flops(self, pack: Pack) -> float:
        """Flops of one forward and backward: 6 a token and weight it meets, 12 a visible pair and attention width."""
        visible = float((pack.position_ids + 1).sum())
        return 6 * self._body * pack.tokens + 6 * self._head * pack.targets.numel() + 12 * self._attention * visible

    def read(self, ranks: Sequence[Sequence[Pack]], seconds: float) -> dict[str, float]:
        """Speed and balance of one optimizer step over all ranks."""
        packs = [pack for rank in ranks for pack in rank]
        tokens = sum(pack.tokens for pack in packs)
        work = [sum(pack_cost(pack, self._hidden) for pack in rank) for rank in ranks]
        items = sum(pack.steps + pack.value_rows.numel() for pack in packs)
        result = {
            "seconds": seconds,
            "tokens": tokens,
            "tokens_per_s": tokens / seconds,
            "items_per_s": items / seconds,
            "packs": sum(pack.tokens > 0 for pack in packs),
            "pack_utilisation": tokens / max(1, sum(pack.length for pack in packs)),
            "dedup_ratio": sum(pack.flat_tokens for pack in packs) / max(1, tokens),
            "rank_imbalance": max(work) * len(work) / sum(work),
        }
        if self._peak is not None:
            flops = sum(self.flops(pack) for pack in packs)
            result["mfu"] = flops / (seconds * self._peak * self._world.size)
        return result
