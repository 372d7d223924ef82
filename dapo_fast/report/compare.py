"""Two runs side by side: what differs in their settings, and what came of each."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

from dapo_fast.errors import InputError
from dapo_fast.report.accuracy import MODES, accuracy_chart, interval, verdict
from dapo_fast.report.cost import costs, duration
from dapo_fast.report.critic import fixed
from dapo_fast.report.markup import document, figure, missing, paragraph, section, table
from dapo_fast.report.provenance import provenance_table
from dapo_fast.report.read import Iteration, Run


def comparison(runs: tuple[Run, Run]) -> str:
    """The page of two runs.

    Raises:
        InputError: they are the same.
    """
    if runs[0].path.resolve() == runs[1].path.resolve():
        raise InputError(f"{runs[1].path}: the same run as the first")
    names = _names(runs)
    body = [
        section("provenance", "Provenance", _pair([provenance_table(run) for run in runs], names)),
        _settings(runs, names),
        _accuracy(runs, names),
        _critics(runs, names),
        _costs(runs, names),
    ]
    title = f"{names[0]} and {names[1]}"
    head = f'<p class="kicker">dapo-fast: two runs</p><h1>{escape(title)}</h1>'
    return document(title, head, "".join(body))


def _names(runs: tuple[Run, Run]) -> tuple[str, str]:
    """By their directories' names, or their paths where these are the same."""
    first, second = (run.path.resolve().name for run in runs)
    return (first, second) if first != second else (str(runs[0].path), str(runs[1].path))


def _pair(parts: list[str], names: tuple[str, str]) -> str:
    columns = (f"<div><h3>{escape(name)}</h3>{part}</div>" for name, part in zip(names, parts, strict=True))
    return f'<div class="pair">{"".join(columns)}</div>'


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[prefix + str(key)] = value if isinstance(value, str) else json.dumps(value)
    return found


def _settings(runs: tuple[Run, Run], names: tuple[str, str]) -> str:
    first, second = (_flat(run.config.model_dump(mode="json")) for run in runs)
    differ = [key for key in first | second if first.get(key) != second.get(key)]
    rows = [[key, first.get(key, "–"), second.get(key, "–")] for key in differ]
    body = table("Settings that differ", ["setting", *names], rows) if rows else paragraph("All settings are the same.")
    return section("settings", "Settings that differ", body)


def _accuracy(runs: tuple[Run, Run], names: tuple[str, str]) -> str:
    drawings = []
    for run in runs:
        chart = accuracy_chart(run)
        text = "Bars are 95% intervals; a hollow point was rejected."
        absent = missing("No policy has been evaluated yet.", f"{run.command('evaluate')} --iteration 0")
        drawings.append(absent if chart is None else figure(chart.svg(), "Accuracy by iteration.", text))
    by_number = [{iteration.number: iteration for iteration in run.iterations} for run in runs]
    rows = []
    for number in sorted(by_number[0].keys() | by_number[1].keys()):
        both = [found.get(number) for found in by_number]
        name = next(iteration.name for iteration in both if iteration)
        rows += [[f"{name}, {mode}", *(_measured(one, mode) for one in both), _gain(both, mode)] for mode in MODES]
    results = table("Accuracy of both", ["policy", *names, "difference"], rows)
    said = [[it.name, run_name, verdict(it)] for run_name, run in zip(names, runs) for it in run.rounds]
    kept = table("What was kept", ["policy", "run", "accepted?"], said, wide=[2]) if said else ""
    note = paragraph(
        "A difference is the second run's accuracy less the first's; beyond both intervals where no overlap is noted."
    )
    return section("accuracy", "Accuracy", _pair(drawings, names), "<h3>Results</h3>", note, results, kept)


def _measured(iteration: Iteration | None, mode: str) -> str:
    return interval(((iteration.measured if iteration else None) or {}).get(mode))


def _gain(both: list[Iteration | None], mode: str) -> str:
    first, second = (((one.measured if one else None) or {}).get(mode) for one in both)
    if not first or not second:
        return "–"
    overlap = first["low"] <= second["high"] and second["low"] <= first["high"]
    return f"{100 * (second['accuracy'] - first['accuracy']):+.1f} points" + (", intervals overlap" if overlap else "")


def _critics(runs: tuple[Run, Run], names: tuple[str, str]) -> str:
    rows = []
    for name, run in zip(names, runs):
        for iteration in run.rounds:
            measured = (iteration.heldout or {}).get("critic")
            if measured:
                numbers = [fixed(measured.get(key)) for key in ("brier", "auc", "bce", "calibration_error")]
                rows.append([f"{name}, {iteration.name}", *numbers])
    if not rows:
        return section("critic", "Critic", missing("No critic of either run has been measured."))
    head = ["critic", "Brier score", "AUC", "cross-entropy", "calibration error"]
    note = paragraph("Each on the states that were held out of its own training: of one run's policy, not of both.")
    return section("critic", "Critic", note, table("Critics of both", head, rows))


def _costs(runs: tuple[Run, Run], names: tuple[str, str]) -> str:
    spent = [costs(run) for run in runs]
    rows = []
    for title, key in (("time", "seconds"), ("tokens generated", "generated"), ("tokens trained on", "trained")):
        totals = [sum(getattr(stage, key) or 0 for stage in stages) for stages in spent]
        rows.append([title, *(duration(t or None) if key == "seconds" else f"{t:,.0f}" for t in totals)])
    return section("cost", "Time and tokens", table("Costs of both", ["as recorded", *names], rows))


def write_path(runs: tuple[Run, Run]) -> Path:
    """Where the page of two runs goes: into the first of them."""
    return runs[0].path / f"versus-{runs[1].path.resolve().name}.html"
