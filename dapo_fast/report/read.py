"""What a run directory holds, read as far as it goes: a stage that has not run is None, a corrupt file is an error."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from dapo_fast.config import Config
from dapo_fast.errors import InputError
from dapo_fast.rundir import read_metrics, read_rows, read_state, saved_config
from dapo_fast.snapshots import cached
from dapo_fast.state import ActorDone, Decision, Heldout, Measured, Timing


@dataclass(slots=True)
class Stage:
    """One stage's directory.

    Attributes:
        name: "sft", "collect", "critic", "advantages", "actor" or "evaluate".
        iteration: From 1 on; 0 for sft and for the evaluation of the policy that the run starts from.
        path: Its directory, which may not exist.
        done: Its done.json (summary.json for "evaluate"); None while it has not finished.
        metrics: One dict an optimizer step, from metrics.jsonl; empty for stages that do not train.
        seconds: What sampling, Q values or evaluation took; None where it was not recorded.
    """

    name: str
    iteration: int
    path: Path
    done: dict[str, Any] | None
    metrics: list[dict[str, Any]]
    seconds: float | None

    @property
    def started(self) -> bool:
        """Whether the stage has left any file."""
        return self.path.is_dir()


@dataclass(slots=True)
class Iteration:
    """One round of Algorithm 1.

    Attributes:
        number: From 1 on; 0 is the policy that the run starts from, of which there is only ``evaluate``.
        stages: By name.
        heldout: The critic on held-out states (critic/heldout.json); None if not there.
        decision: Whether the new policy was accepted, and why; None before that.
        stopped: Why the iteration ended early, or None.
    """

    number: int
    stages: dict[str, Stage]
    heldout: dict[str, Any] | None
    decision: dict[str, Any] | None
    stopped: str | None

    @property
    def measured(self) -> dict[str, Any] | None:
        """The evaluation's summary: {"greedy": {...}, "sampled": {...}}."""
        return self.stages["evaluate"].done

    @property
    def name(self) -> str:
        """What figures and tables call it."""
        return "base" if self.number == 0 else f"iteration {self.number}"


@dataclass(slots=True)
class Run:
    """A run directory: its settings, its supervised start, and the iterations that have left files."""

    path: Path
    config: Config
    sft: Stage
    iterations: list[Iteration]

    @property
    def has_sft(self) -> bool:
        """Whether the settings ask for a supervised start."""
        return self.config.sft.is_asked_for

    @property
    def rounds(self) -> list[Iteration]:
        """The iterations without iteration 0."""
        return [iteration for iteration in self.iterations if iteration.number]

    def command(self, stage: str, iteration: int = 0) -> str:
        """The command line that makes what is missing."""
        number = f" --iteration {iteration}" if iteration else ""
        return f"dapo-fast {stage} {self.path}{number}"

    def policy_directories(self, iteration: int) -> list[Path]:
        """Where the tokenizer of the policy that sampled ``iteration``'s trees may be, likeliest first."""
        trained = [self.path / f"iter{i}" / "actor" / "model" for i in range(iteration - 1, 0, -1)]
        start = [self.path / "sft" / "model", self.path / "sft" / "start"] if self.has_sft else []
        given = [cached(self.config.model.path)] if self.config.model.path else []
        return [*trained, *start, *given]


_TRAINED = ("sft", "critic", "actor")
_ENDS: dict[str, tuple[str, type[BaseModel]]] = {
    "evaluate": ("summary.json", Measured),
    "actor": ("done.json", ActorDone),
}
_OF_ITERATION = ("collect", "critic", "advantages", "actor", "evaluate")


def read_run(path: str | Path) -> Run:
    """Read the run at ``path``; InputError names what is not a run, or the file that is corrupt."""
    path = Path(path)
    config = _read_config(path / "config.yaml")
    numbers = [0] + [i for i in range(1, config.iterations + 1) if (path / f"iter{i}").is_dir()]
    stopped = _read_stopped(path / "results.json")
    iterations = [_read_iteration(path, number, stopped.get(number)) for number in numbers]
    return Run(path, config, _read_stage(path / "sft", "sft", 0), iterations)


def _read_config(path: Path) -> Config:
    if not path.exists():
        raise InputError(f"{path.parent}: no config.yaml here, so not a run directory")
    return saved_config(path)


def _read_stopped(path: Path) -> dict[int, str]:
    rows = read_rows(path) if path.exists() else []
    return {row["iteration"]: row["stopped"] for row in rows if row.get("stopped")}


def _read_iteration(run: Path, number: int, stopped: str | None) -> Iteration:
    path = run / f"iter{number}"
    stages = {name: _read_stage(path / name, name, number) for name in _OF_ITERATION}
    heldout = _read_object(path / "critic" / "heldout.json", Heldout)
    return Iteration(number, stages, heldout, _read_object(path / "decision.json", Decision), stopped)


def _read_stage(path: Path, name: str, iteration: int) -> Stage:
    file, shape = _ENDS.get(name, ("done.json", None))
    done = _read_object(path / file, shape)
    timing = _read_object(path / "timing.json", Timing)
    metrics = read_metrics(path / "metrics.jsonl") if name in _TRAINED else []
    return Stage(name, iteration, path, done, metrics, timing["seconds"] if timing else None)


def _read_object(path: Path, shape: type[BaseModel] | None = None) -> dict[str, Any] | None:
    """The JSON object in ``path``, which must fit ``shape``; None if it is not there."""
    return read_state(path, shape) if path.exists() else None
