"""Where time and tokens went: what the stages wrote down, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dapo_fast.report.read import Run, Stage

_KINDS = {"sft": "s3", "collect": "s0", "critic": "s2", "advantages": "s4", "actor": "s1", "evaluate": "gray"}
_SECONDS = ("seconds", "wall_s", "wall_seconds", "elapsed_s")
_GENERATED = ("generated_tokens", "tokens_generated", "tokens")


@dataclass(slots=True)
class StageCost:
    """One stage of one iteration; a quantity that no file holds is None.

    Attributes:
        kind: CSS class of its colour.
        seconds: Wall-clock time of the work itself.
        generated: Tokens sampled.
        trained: Tokens read by optimizer steps.
    """

    name: str
    kind: str
    seconds: float | None
    generated: float | None
    trained: float | None


def costs(run: Run) -> list[StageCost]:
    """Every stage that has left something, in the order in which they ran."""
    stages = [run.sft] + [stage for iteration in run.iterations for stage in iteration.stages.values()]
    return [_cost(stage) for stage in stages if stage.done is not None or stage.metrics]


def _cost(stage: Stage) -> StageCost:
    name = stage.name if stage.name == "sft" else f"{stage.name} {stage.iteration}"
    done = stage.done or {}
    if stage.metrics:
        seconds, trained = _sum(stage.metrics, "seconds"), _sum(stage.metrics, "tokens")
        return StageCost(name, _KINDS[stage.name], seconds, None, trained)
    return StageCost(name, _KINDS[stage.name], _first(done, _SECONDS), _first(done, _GENERATED), None)


def _sum(rows: Sequence[dict[str, Any]], key: str) -> float | None:
    known = [row[key] for row in rows if isinstance(row.get(key), (int, float))]
    return sum(known) if known else None


def _first(values: dict[str, Any], keys: Sequence[str]) -> float | None:
    return next((float(values[key]) for key in keys if isinstance(values.get(key), (int, float))), None)


def duration(seconds: float | None) -> str:
    """Seconds for people: 8.2 s, 3 min 20 s, 2 h 5 min."""
    if seconds is None:
        return "not recorded"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60) if seconds >= 3600 else int(seconds // 60)
    if seconds < 3600:
        return f"{minutes} min {seconds - 60 * minutes:.0f} s"
    return f"{minutes // 60} h {minutes % 60} min"
