"""Training curves of every stage that trains, from its metrics.jsonl."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dapo_fast.report.charts import Chart, number, thinned
from dapo_fast.report.markup import figure, missing, paragraph, section, table
from dapo_fast.report.read import Run, Stage
from dapo_fast.statistics import with_interval

Curve = tuple[str, str, str]  # key of a metric, title, what it is
CURVES: dict[str, list[Curve]] = {
    "sft": [
        ("loss", "loss", "cross-entropy, nats a response token"),
        ("response_probability", "probability of a response", "mean over the batch"),
        ("grad_norm", "gradient norm", "before clipping"),
    ],
    "critic": [
        ("loss", "loss", "soft-label cross-entropy, nats"),
        ("squared_error", "squared error", "(V − MC)², mean over the batch"),
        ("grad_norm", "gradient norm", "before clipping"),
    ],
    "actor": [
        ("loss", "loss", "½(Â/β − u)², nats²"),
        ("kl_reference", "KL to the reference", "a step, nats"),
        ("explained", "residual explained", "1 − loss ⁄ loss at the reference"),
        ("same_sign", "moved the right way", "share of pairs with sign(u) = sign(Â)"),
        ("validation_accuracy", "validation accuracy", "what the policy is chosen by (actor.eval_every)"),
        ("grad_norm", "gradient norm", "before clipping"),
    ],
}
MOST_DRAWN = 1e100
_ASKED_FOR = {"validation_accuracy"}  # recorded by no run that does not ask for it
_TITLES = {"sft": "Supervised start", "critic": "Critic", "actor": "Actor"}


def training_section(run: Run) -> str:
    """Curves of every stage that trains, iterations over each other."""
    intro = paragraph(
        "One point an optimizer step, faint; the line is a moving average. Targets of Â/β are far out of reach, so the "
        "actor's loss says little about the policy: look at the accuracy."
    )
    body = []
    for name, curves in CURVES.items():
        stages = [run.sft] if name == "sft" else [it.stages[name] for it in run.rounds]
        stages = [stage for stage in stages if stage.metrics]
        if name == "sft" and not run.has_sft:
            continue
        body.append(f"<h3>{_TITLES[name]}</h3>")
        if not stages:
            body.append(missing("No optimizer step yet.", run.command(name, 0 if name == "sft" else 1)))
            continue
        curves = recorded(curves, stages)
        drawn = [_curve(name, stages, *curve) for curve in curves]
        absent = [title for (_, title, _), text in zip(curves, drawn) if not text]
        body.append(f'<div class="figures small">{"".join(drawn)}</div>')
        if absent:
            body.append(missing(f"Not recorded in metrics.jsonl: {', '.join(absent)}."))
        body += [paragraph(line) for line in map(_chosen, stages) if line]
    return section("training", "Training", intro, *body)


def recorded(curves: Sequence[Curve], stages: Sequence[Stage]) -> list[Curve]:
    """``curves`` without those that the run did not ask for."""
    found = {key for stage in stages for row in stage.metrics for key in row}
    return [curve for curve in curves if curve[0] not in _ASKED_FOR or curve[0] in found]


def _chosen(stage: Stage) -> str:
    best = (stage.done or {}).get("best")
    if not best:
        return ""
    text = f"Iteration {stage.iteration} exports the policy of step {best['step']}, the best on data.validation"
    return f"{text}: {with_interval(best)}."


def _curve(name: str, stages: Sequence[Stage], key: str, title: str, unit: str) -> str:
    chart = curve_chart(name, stages, key, title)
    if chart is None:
        return ""
    rows = []
    for stage in stages:
        values = [row[key] for row in stage.metrics if is_finite(row.get(key))]
        if values:
            tail = values[-max(1, len(values) // 10) :]
            cells = [values[0], values[-1], sum(tail) / len(tail), min(values), max(values)]
            name_of = f"iteration {stage.iteration}" if stage.iteration else "start"
            rows.append([name_of, f"{len(values):,}", *(number(v) for v in cells)])
    head = ["", "steps", "first", "last", "mean of last tenth", "least", "most"]
    return figure(chart.svg(), title + ",", unit, table(f"{_TITLES[name]}: {title}", head, rows))


def curve_chart(name: str, stages: Sequence[Stage], key: str, title: str) -> Chart | None:
    """One quantity against the optimizer step, a line an iteration; None where it was not recorded."""
    series = []
    for stage in stages:
        points = [(float(row["step"]), float(row[key])) for row in stage.metrics if is_finite(row.get(key))]
        if points:
            series.append((stage, points))
    if not series:
        return None
    smooth = [(stage, points, moving_average(points)) for stage, points in series]
    values = np.array([y for _, points in series for _, y in points])
    # A few early spikes would flatten the rest: they may leave the frame, and the table has them.
    low, high = float(values.min()), float(np.quantile(values, 0.995) if len(values) > 40 else values.max())
    low, high = min(low, *(y for *_, s in smooth for _, y in s)), max(high, *(y for *_, s in smooth for _, y in s))
    if low > 0 and low < 0.5 * high:
        low = 0.0
    last = max(points[-1][0] for _, points in series)
    ends = ", ".join(f"{_short(stage)} {points[0][1]:.4g} to {points[-1][1]:.4g}" for stage, points in series)
    several = len(series) > 1
    chart = Chart(
        f"{_TITLES[name]}: {title} by optimizer step; {ends}",
        (0, last),
        (low, high),
        "optimizer step",
        width=300,
        height=190,
        x_ticks=[t for t in (0, last / 2, last) if t == int(t)],
        right=54 if several else 14,
    )
    ends_at = []
    for stage, points, line in smooth:
        kind = f"s{(stage.iteration - 1) % 6}" if several else "s0"
        inside = [(x, min(y, high)) for x, y in thinned(points, 300)]
        if len(points) > 20:
            chart.line(inside, f"{kind} faint")
        chart.line(thinned(line, 300), kind)
        if several:
            ends_at.append((*line[-1], f"iter {stage.iteration}", kind))
    chart.end_labels(ends_at, space=13)
    return chart


def _short(stage: Stage) -> str:
    return f"iteration {stage.iteration}:" if stage.iteration else ""


def is_finite(value: object) -> bool:
    """Whether a metric is a number that can be drawn: a range of some of them must be one too."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < MOST_DRAWN


def moving_average(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Centred means over a tenth of the steps, at most 51; at the ends over those of them that are there."""
    half = min(25, len(points) // 20)
    values = np.array([y for _, y in points])
    sums = np.concatenate([[0.0], np.cumsum(values)])
    line = []
    for i, (x, _) in enumerate(points):
        first, last = max(0, i - half), min(len(points) - 1, i + half)
        line.append((x, float(sums[last + 1] - sums[first]) / (last + 1 - first)))
    return line
