"""The page's main figures as PNGs, for READMEs and slides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dapo_fast.report.accuracy import is_rejected
from dapo_fast.report.cost import StageCost, costs
from dapo_fast.report.critic import fixed, roc_points, thick
from dapo_fast.report.read import Run, Stage
from dapo_fast.report.training import CURVES, is_finite, moving_average, recorded
from dapo_fast.report.trees import BINS, GAP_BINS, TreeSummary

SERIES = ("#1f5f99", "#b4560f", "#6f4a9e", "#2b7a5f", "#8a6d12", "#a33a63")
GOOD, BAD, GRAY = "#2166ac", "#c85c12", "#b9bfc5"
STYLE = {
    "font.size": 10,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.edgecolor": "#8a939b",
    "axes.labelcolor": "#5d666f",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "grid.color": "#e9ebed",
    "xtick.color": "#5d666f",
    "ytick.color": "#5d666f",
    "ytick.left": False,
    "savefig.dpi": 160,
    "figure.constrained_layout.use": True,
    "legend.frameon": False,
}


def write_figures(run: Run, trees: dict[int, TreeSummary]) -> list[Path]:
    """Write the figures whose data is there to ``RUN/figures``; one of an earlier report that has none now goes."""
    folder = run.path / "figures"
    folder.mkdir(exist_ok=True)
    written = []
    with plt.rc_context(STYLE):
        for name, figure in {
            "accuracy": _accuracy(run),
            "critic": _critic(run, trees),
            "advantages": _advantages(run, trees),
            "training": _training(run),
            "cost": _cost(costs(run)),
        }.items():
            path = folder / f"{name}.png"
            if figure is None:
                path.unlink(missing_ok=True)
                continue
            figure.savefig(path)
            plt.close(figure)
            written.append(path)
    return written


def _accuracy(run: Run) -> Figure | None:
    measured = [iteration for iteration in run.iterations if iteration.measured]
    if not measured:
        return None
    figure, axes = plt.subplots(figsize=(5.4, 3.2))
    for mode, colour, shift in (("greedy", SERIES[0], -0.015), ("sampled", SERIES[1], 0.015)):
        rows = [
            (it.number + shift, it.measured[mode], is_rejected(it)) for it in measured if mode in (it.measured or {})
        ]
        if not rows:
            continue
        accepted = [(i, v["accuracy"]) for i, v, rejected in rows if not rejected]
        axes.plot(*zip(*accepted), color=colour, linewidth=1.8)
        for i, value, rejected in rows:
            axes.plot([i, i], [value["low"], value["high"]], color=colour, alpha=0.6)
            fill = "white" if rejected else colour
            axes.plot(i, value["accuracy"], "o", color=colour, markerfacecolor=fill, zorder=3)
            if rejected:
                before = [point for point in accepted if point[0] < i][-1:]
                axes.plot(*zip(*before, (i, value["accuracy"])), color=colour, linestyle="--", zorder=1)
        i, value, rejected = rows[-1]
        text = f"{mode} {value['accuracy']:.1%}" + (" (rejected)" if rejected else "")
        axes.annotate(text, (i, value["accuracy"]), (9, -3), textcoords="offset points", color=colour)
    last = max(iteration.number for iteration in measured)
    axes.set_xticks(range(last + 1), ["base", *(f"iteration {i}" for i in range(1, last + 1))])
    axes.set_xlim(-0.25, last + 0.9)
    axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0, decimals=0))
    axes.set_title(f"Held-out accuracy, 95% Wilson intervals, axis from {axes.get_ylim()[0]:.0%}")
    return figure


def _critic(run: Run, trees: dict[int, TreeSummary]) -> Figure | None:
    found = [it for it in run.rounds if (it.heldout or {}).get("critic")]
    if not found:
        return None
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.4, 3.6))
    for axes in (left, right):
        axes.plot([0, 1], [0, 1], color=GRAY, linewidth=1, linestyle=(0, (3, 3)))
        axes.set_aspect("equal")
    for colour, iteration in zip(SERIES, found):
        critic = (iteration.heldout or {})["critic"]
        bins = thick(critic.get("calibration") or [])
        name = f"{iteration.name}: Brier {fixed(critic.get('brier'))}"
        left.plot([b["predicted"] for b in bins], [b["observed"] for b in bins], "o-", color=colour, label=name)
        summary = trees.get(iteration.number)
        points = roc_points(summary.heldout) if summary is not None and len(summary.heldout) else []
        name = f"{iteration.name}: AUC {fixed(critic.get('auc'))}"
        right.plot([x for x, _ in points], [y for _, y in points], color=colour, linewidth=1.8, label=name)
    left.set(title="Reliability", xlabel="predicted: mean V", ylabel="observed: share correct")
    right.set(title="ROC", xlabel="false positive rate", ylabel="true positive rate")
    left.legend(loc="upper left", fontsize=8)
    right.legend(loc="lower right", fontsize=8)
    return figure


def _advantages(run: Run, trees: dict[int, TreeSummary]) -> Figure | None:
    found = {number: summary for number, summary in trees.items() if summary.gaps.sum()}
    if not found:
        return None
    figure, grid = plt.subplots(len(found), 2, figsize=(7.4, 2.8 * len(found)), squeeze=False)
    for (left, right), (number, summary) in zip(grid, found.items()):
        edges = [-1 + 2 * i / BINS for i in range(BINS)]
        colours = [GOOD if edge >= -1e-9 else BAD for edge in edges]
        left.bar(edges, summary.advantages, width=1.84 / BINS, align="edge", color=colours)
        left.set(title=f"Iteration {number}: {summary.pairs:,} pairs", xlabel="advantage Â")
        gap = run.config.at(number).advantages.gap
        edges = [i / GAP_BINS for i in range(GAP_BINS)]
        right.bar(edges, summary.gaps, width=0.92 / GAP_BINS, align="edge", color=GRAY)
        right.bar(edges, summary.kept_gaps, width=0.92 / GAP_BINS, align="edge", color=SERIES[0])
        right.axvline(gap, color="#5d666f", linewidth=1, linestyle=(0, (3, 3)))
        kept = summary.fates.get("kept", 0)
        right.set(title=f"{kept:,} of {summary.states:,} states kept", xlabel="gap: max Â − min Â")
    return figure


def _training(run: Run) -> Figure | None:
    rows = []
    for name, curves in CURVES.items():
        stages = [run.sft] if name == "sft" else [it.stages[name] for it in run.rounds]
        stages = [stage for stage in stages if stage.metrics]
        if stages:
            rows.append((name, stages, recorded(curves, stages)))
    if not rows:
        return None
    width = max(len(curves) for _, _, curves in rows)
    figure, grid = plt.subplots(len(rows), width, figsize=(2.6 * width, 2.1 * len(rows)), squeeze=False)
    for line, (name, stages, curves) in zip(grid, rows):
        for axes in line:
            axes.set_visible(False)
        for axes, (key, title, _) in zip(line, curves):
            axes.set_visible(True)
            _draw_curve(axes, stages, key)
            axes.set_title(f"{name}: {title}", fontsize=9)
    return figure


def _draw_curve(axes: Axes, stages: Sequence[Stage], key: str) -> None:
    for stage in stages:
        points = [(float(row["step"]), float(row[key])) for row in stage.metrics if is_finite(row.get(key))]
        if not points:
            continue
        colour = SERIES[max(0, stage.iteration - 1) % len(SERIES)]
        axes.plot(*zip(*points), color=colour, linewidth=0.7, alpha=0.3)
        name = f"iteration {stage.iteration}"
        axes.plot(*zip(*moving_average(points)), color=colour, linewidth=1.6, label=name)
    if len(stages) > 1 and key == "loss":
        axes.legend(fontsize=8)


def _cost(found: Sequence[StageCost]) -> Figure | None:
    timed = [stage for stage in found if stage.seconds]
    if not timed:
        return None
    figure, axes = plt.subplots(figsize=(5.4, 0.5 + 0.32 * len(timed)))
    names = [stage.name for stage in timed][::-1]
    axes.barh(names, [stage.seconds for stage in timed][::-1], color=SERIES[0], height=0.65)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", visible=True)
    axes.set(title="Recorded time", xlabel="seconds")
    return figure
