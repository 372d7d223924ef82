"""Where time and tokens went: what the stages wrote down, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dapo_fast.report.accuracy import MODES
from dapo_fast.report.charts import stacked_bar
from dapo_fast.report.markup import legend, missing, paragraph, section, table
from dapo_fast.report.read import Run, Stage

_KINDS = {"sft": "s3", "collect": "s0", "critic": "s2", "advantages": "s4", "actor": "s1", "evaluate": "gray"}


@dataclass(slots=True)
class StageCost:
    """One stage of one iteration; a quantity that no file holds is None.

    Attributes:
        kind: CSS class of its colour.
        seconds: Wall-clock time of the work itself.
        generated: Tokens sampled.
        completions: Those of ``generated`` that went into completing states.
        trained: Tokens read by optimizer steps.
    """

    name: str
    kind: str
    seconds: float | None
    generated: float | None
    completions: float | None
    trained: float | None


def costs(run: Run) -> list[StageCost]:
    """Every stage that has left something, in the order in which they ran."""
    stages = [run.sft] + [stage for iteration in run.iterations for stage in iteration.stages.values()]
    return [_cost(stage) for stage in stages if stage.done is not None or stage.metrics]


def _cost(stage: Stage) -> StageCost:
    name = stage.name if stage.name == "sft" else f"{stage.name} {stage.iteration}"
    kind = _KINDS[stage.name]
    if stage.metrics:
        return StageCost(name, kind, _sum(stage.metrics, "seconds"), None, None, _sum(stage.metrics, "tokens"))
    done = stage.done or {}
    generated = _evaluated(done) if stage.name == "evaluate" else _number(done, "generated_tokens")
    return StageCost(name, kind, stage.seconds, generated, _number(done, "completion_tokens"), None)


def _evaluated(summary: dict[str, Any]) -> float | None:
    """Tokens that an evaluation sampled: it keeps their mean over a mode's responses, which come back as a sum."""
    modes = [summary[name] for name in MODES if summary.get(name)]
    modes = [mode for mode in modes if mode.get("tokens") is not None and mode.get("n") is not None]
    return float(sum(round(mode["tokens"] * mode["n"] * mode.get("samples", 1)) for mode in modes)) if modes else None


def _sum(rows: Sequence[dict[str, Any]], key: str) -> float | None:
    known = [row[key] for row in rows if isinstance(row.get(key), (int, float))]
    return sum(known) if known else None


def _number(values: dict[str, Any], key: str) -> float | None:
    return float(values[key]) if isinstance(values.get(key), (int, float)) else None


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


def cost_section(costs: Sequence[StageCost]) -> str:
    """Where time and tokens went, a stage at a time; a quantity that no file holds is "not recorded"."""
    intro = paragraph(
        "Seconds and tokens as the stages wrote them down. Training counts the tokens it read, trees packed, once an "
        "optimizer step; sampling counts the tokens it generated. Work that a kill cost is not in it."
    )
    if not costs:
        return section("cost", "Time and tokens", intro, missing("No stage has finished yet."))
    rows = [[c.name, duration(c.seconds), _count(c.generated), _count(c.trained), _rate(c)] for c in costs]
    seconds, generated, trained = (
        sum(getattr(c, key) or 0 for c in costs) for key in ("seconds", "generated", "trained")
    )
    if len(costs) > 1:
        rows.append(["total of what is recorded", duration(seconds or None), _count(generated), _count(trained), ""])
    head = ["stage", "time", "tokens generated", "tokens trained on", "tokens a second"]
    parts = [
        _bar("Time", [(c.name, c.seconds, c.kind) for c in costs], duration),
        _bar("Tokens generated", [part for c in costs for part in _generated(c)], _count),
        _bar("Tokens trained on", [(c.name, c.trained, c.kind) for c in costs], _count),
    ]
    return section("cost", "Time and tokens", intro, *parts, "<h3>By stage</h3>", table("Cost by stage", head, rows))


def _generated(cost: StageCost) -> list[tuple[str, float | None, str]]:
    if cost.generated is None or cost.completions is None:
        return [(cost.name, cost.generated, cost.kind)]
    responses = (f"{cost.name}, responses", cost.generated - cost.completions, f"{cost.kind} soft")
    return [responses, (f"{cost.name}, completions", cost.completions, cost.kind)]


def _bar(title: str, parts: Sequence[tuple[str, float | None, str]], form: Callable[[float], str]) -> str:
    known = [(name, value, kind) for name, value, kind in parts if value]
    if not known:
        return ""
    label = f"{title}: " + ", ".join(f"{name} {form(value)}" for name, value, _ in known)
    entries = [(kind, name, form(value)) for name, value, kind in known]
    return f"<h3>{title}</h3><figure>{stacked_bar(label, known)}{legend(entries)}</figure>"


def _count(value: float | None) -> str:
    return "not recorded" if value is None else f"{value:,.0f}"


def _rate(cost: StageCost) -> str:
    tokens = cost.generated or cost.trained
    return f"{tokens / cost.seconds:,.0f}" if tokens and cost.seconds else "not recorded"
