"""Accuracy by iteration, with intervals, and what became of each iteration's policy."""

from __future__ import annotations

import math
from typing import Any

from dapo_fast.report.charts import Chart, percent
from dapo_fast.report.markup import figure, missing, paragraph, section, table
from dapo_fast.report.read import Iteration, Run
from dapo_fast.report.trees import TreeSummary
from dapo_fast.statistics import with_interval

MODES = {"greedy": "s0", "sampled": "s1"}


def interval(value: dict[str, Any] | None) -> str:
    """An accuracy with its 95% Wilson interval, as the evaluation wrote it."""
    return with_interval(value) if value else "not measured"


def accuracy_section(run: Run, trees: dict[int, TreeSummary]) -> str:
    """Accuracy by iteration: the plot, the results table, and what was accepted and why."""
    intro = paragraph(
        "Held-out accuracy of the policy before training and after each iteration of Algorithm 1, with 95% Wilson "
        "intervals. Greedy takes the likeliest token everywhere; sampled draws at the training temperature, and is the "
        "quantity that the objective is about."
    )
    rows = []
    for iteration in run.iterations:
        measured = iteration.measured or {}
        counts = trees.get(iteration.number)
        states = f"{counts.fates.get('kept', 0):,} of {counts.states:,}" if counts and counts.fates else "–"
        pairs = f"{counts.pairs:,}" if counts and counts.fates else "–"
        row = [iteration.name, *(interval(measured.get(mode)) for mode in MODES)]
        rows.append([*row, states, pairs, verdict(iteration)])
    head = ["policy", "greedy", "sampled", "states kept", "pairs", "accepted?"]
    results = table("Results by iteration", head, rows, wide=[5])
    chart = accuracy_chart(run)
    if chart is None:
        return section(
            "accuracy",
            "Accuracy",
            intro,
            missing("No policy has been evaluated yet.", run.command("evaluate", 0) + " --iteration 0"),
            results,
        )
    drawing = figure(chart.svg(), "Accuracy by iteration.", "Bars are 95% intervals; a hollow point was rejected.")
    notes = [
        missing(f"{iteration.name.capitalize()} has not been evaluated.", run.command("evaluate", iteration.number))
        for iteration in run.rounds
        if iteration.measured is None and iteration.stages["actor"].done is not None
    ]
    beside = f'<div class="pair">{drawing}<div>{_details(run)}</div></div>'
    return section("accuracy", "Accuracy", intro, beside, "<h3>Results</h3>", results, *notes)


def _details(run: Run) -> str:
    """Everything else that the evaluations wrote: samples, pass@k, lengths."""
    measured = [
        (it.name, mode, it.measured[mode]) for it in run.iterations for mode in MODES if mode in (it.measured or {})
    ]
    ks = sorted({int(key[5:]) for *_, values in measured for key in values if key.startswith("pass@")} - {1})
    head = ["policy", "problems", "samples", *(f"pass@{k}" for k in ks), "cut off", "tokens"]

    def shown(value: float | None, form: str) -> str:
        return "–" if value is None else f"{value:{form}}"

    rows = [
        [
            f"{name}, {mode}",
            shown(values.get("n"), ",d"),
            shown(values.get("samples", 1), "d"),
            *(shown(values.get(f"pass@{k}"), ".1%") for k in ks),
            shown(values.get("truncated"), ".1%"),
            shown(values.get("tokens"), ".1f"),
        ]
        for name, mode, values in measured
    ]
    return table("Evaluations", head, rows, seen=True)


def verdict(iteration: Iteration) -> str:
    """Whether an iteration's policy was accepted, and why."""
    if iteration.number == 0:
        return "where it starts"
    if iteration.stopped:
        return f"stopped: {iteration.stopped}"
    if iteration.decision is None:
        return "undecided: the iteration has not finished"
    word = "accepted" if iteration.decision.get("accepted") else "rejected"
    reason = iteration.decision.get("reason")
    return f"{word}: {reason}" if reason else word


def accuracy_chart(run: Run) -> Chart | None:
    """Greedy and sampled accuracy with intervals against the iteration; None without a measurement."""
    series = {
        mode: [
            (it.number, it.measured[mode], is_rejected(it)) for it in run.iterations if (it.measured or {}).get(mode)
        ]
        for mode in MODES
    }
    points = [value for rows in series.values() for _, value, _ in rows]
    if not points:
        return None
    low, high = min(v["low"] for v in points), max(v["high"] for v in points)
    low, high = max(0.0, math.floor(low * 10) / 10), min(1.0, math.ceil(high * 10) / 10)
    last = max(it.number for it in run.iterations)
    label = "Accuracy by iteration. " + "; ".join(
        f"{mode}: " + ", ".join(f"{'base' if i == 0 else i} {interval(value)}" for i, value, _ in rows)
        for mode, rows in series.items()
        if rows
    )
    chart = Chart(
        label,
        (-0.25, last + 0.25),
        (low, high),
        y_title="held-out accuracy" + (f", axis from {percent(low)}" if low else ""),
        width=480,
        height=290,
        right=78,
        x_ticks=range(last + 1),
        x_format=lambda i: "base" if i == 0 else f"iteration {i:.0f}",
        y_format=percent,
    )
    ends, dots = [], []
    for (mode, kind), shift in zip(MODES.items(), (-0.02, 0.02)):
        rows = series[mode]
        chart.line([(i + shift, v["accuracy"]) for i, v, rejected in rows if not rejected], kind)
        for i, value, rejected in rows:
            if rejected:
                before = [(j, v) for j, v, other in rows if j < i and not other][-1:]
                chart.line(
                    [(j + shift, v["accuracy"]) for j, v in before] + [(i + shift, value["accuracy"])], f"{kind} dash"
                )
            chart.interval(i + shift, value["low"], value["high"], kind)
        if rows:
            i, value, _ = rows[-1]
            ends.append((i + shift, value["accuracy"], f"{mode} {value['accuracy']:.1%}", kind))
            dots += [(mode, i, shift, value, f"{kind} open" if rejected else kind) for i, value, rejected in rows]
    for mode, i, shift, value, kind in dots:  # over every interval
        tip = f"{mode}, {'base' if i == 0 else f'iteration {i}'}: {interval(value)}"
        chart.dot(i + shift, value["accuracy"], kind, tip)
    chart.end_labels(ends)
    return chart


def is_rejected(iteration: Iteration) -> bool:
    """Whether the iteration's policy was measured and not taken over."""
    return iteration.decision is not None and not iteration.decision.get("accepted", True)
