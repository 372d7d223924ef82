"""The best step of a training: accuracy every few steps, on problems kept for that, and the weights of the best so far.

Weights are kept as checkpoints are, and what was measured stands in the lines of ``metrics.jsonl``: wherever training
goes on from, what was the best there is known, and there.
"""

from __future__ import annotations

import logging
import shutil
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from dapo_fast.rundir import read_metrics
from dapo_fast.statistics import summarise, with_interval
from dapo_fast.train.checkpoint import CHECKPOINTS, Checkpoints, weights_state
from dapo_fast.train.export import export
from dapo_fast.train.parallel import World

log = logging.getLogger("dapo_fast.train")

# A policy's directory, and which of the problems → a row a problem, as ``evaluate.measure`` gives them.
Measured = Callable[[Path, slice], list[dict[str, Any]]]
_NAMES = ("accuracy", "low", "high")
_KEY = "validation_"  # and one of these: in metrics.jsonl


@dataclass
class BestStep:
    """What is measured of a policy in training, and the best of it so far; of equals, the latest.

    Attributes:
        model: What is trained.
        source: The policy that it was: where the tokenizer is.
        world: Its processes, of which each measures on a share of the problems.
        out: Of the training.
        digest: Of its settings.
        every: Optimizer steps between two measurements; the last step is measured too.
        measured: Measures a directory.
    """

    model: PreTrainedModel
    source: Path
    world: World
    out: Path
    digest: str
    every: int
    measured: Measured

    def __post_init__(self) -> None:
        self._kept = Checkpoints(self.out / CHECKPOINTS / "best", self.world, None, self.digest)
        self._best: dict[str, Any] | None = None
        self._looked_back = False

    def measure(self, step: int, last: bool) -> dict[str, float]:
        """Accuracy of the model after ``step`` steps, with its interval; nothing where none is due."""
        if step % self.every and not last:
            return {}
        self._look_back(step)
        found = self._accuracy()
        is_best = self._best is None or found["accuracy"] >= self._best["accuracy"]
        if is_best:
            self._best = {"step": step, **found}
            self._kept.save(step, weights_state(self.model))
            self._kept.wait()
            self._drop_unneeded()
        said = "the best so far" if is_best else f"step {self._best['step']} is better"
        log.info("actor: step %d: validation accuracy %s; %s", step, with_interval(found), said)
        return {_KEY + name: value for name, value in found.items()}

    def restore(self) -> dict[str, Any]:
        """Give the model the best weights again. Returns their ``step``, ``accuracy``, ``low`` and ``high``."""
        self._look_back(None)
        assert self._best is not None  # the last step is always measured
        self._kept.resume(weights_state(self.model))
        log.info(
            "actor: the policy of step %d is kept, %s on validation", self._best["step"], with_interval(self._best)
        )
        return self._best

    def _accuracy(self) -> dict[str, float]:
        directory = self.out / CHECKPOINTS / "measured"
        export(self.model, directory, self.source, self.world.dtype, self.world)
        shares = self.world.gather(self.measured(directory, self.world.part))
        if self.world.rank == 0:
            shutil.rmtree(directory)
        found = summarise([row for share in shares for row in share])
        return {name: found[name] for name in _NAMES}

    def _look_back(self, before: int | None) -> None:
        """Once: what earlier processes found ``before`` a step. What they kept of later ones goes: it is made anew."""
        if self._looked_back:
            return
        self._looked_back = True
        found: list[dict[str, Any]] = []
        if self.world.rank == 0:
            self._kept.drop(step for step in self._kept.steps() if before is not None and step >= before)
            rows = [row for row in read_metrics(self.out / "metrics.jsonl") if row.get(f"{_KEY}accuracy") is not None]
            found = [{"step": row["step"], **{name: row[_KEY + name] for name in _NAMES}} for row in rows]
        best = max(found, key=lambda one: (one["accuracy"], one["step"]), default=None)
        self._best = self.world.broadcast(best)

    def _drop_unneeded(self) -> None:
        """Let go of the weights that were the best at no checkpoint which training could go on from."""
        if self.world.rank:
            return
        kept = self._kept.steps()
        saved = [int(path.name[5:13]) for path in (self.out / CHECKPOINTS).glob("step-*")]
        needed = {kept[-1], *(kept[bisect_right(kept, step) - 1] for step in saved if step >= kept[0])}
        self._kept.drop(sorted(set(kept) - needed))
