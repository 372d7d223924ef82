"""The study's figures, from the rows of a results file; a PNG says which rows it was drawn from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import fmean

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from dapo_fast.config import digest
from dapo_fast.report.figures import SERIES, STYLE

from .statistics import interval, paired
from .tables import Rows, scores, sweeps_of, tasks_of, title_of, variants_of

ERROR_TICKS = [0.003, 0.01, 0.03, 0.1]


def write_figures(rows: Rows, folder: Path) -> None:
    """Draw every figure into ``folder``."""
    with plt.rc_context(STYLE):
        for name, draw in FIGURES.items():
            figure = draw(rows)
            figure.savefig(folder / f"{name}.png", metadata={"Description": digest(rows)})
            plt.close(figure)


def stale_figures(rows: Rows, folder: Path) -> list[str]:
    """Figures that are missing or were drawn from other rows."""
    found = []
    for name in FIGURES:
        path = folder / f"{name}.png"
        if not path.exists() or Image.open(path).info.get("Description") != digest(rows):
            found.append(path.name)
    return found


def _dots(axes: Axes, values: list[float], y: float, colour: str, filled: bool) -> None:
    if not values:
        return
    found = interval(values)
    face = colour if filled else "white"
    axes.plot([100 * v for v in values], [y] * len(values), "|", color=colour, alpha=0.5, markersize=7)
    half = 100 * found.half if found.n > 1 else 0
    axes.errorbar(100 * found.mean, y, xerr=half, fmt="o", color=colour, mfc=face, capsize=3)


def methods(rows: Rows) -> Figure:
    """Accuracy of every method, tasks side by side; ticks are seeds, bars 95% intervals; below the line: iterated."""
    tasks = tasks_of(rows)
    alike, more = variants_of(rows, "methods"), variants_of(rows, "iterated")
    variants = alike | more
    figure, panels = plt.subplots(1, len(tasks), figsize=(9.2, 4.3), sharey=True, squeeze=False)
    for axes, task in zip(panels[0], tasks, strict=True):
        if more:
            axes.axhline(len(alike) - 0.5, color="#8a939b", linewidth=1)
        for place, variant in enumerate(variants):
            _dots(axes, list(scores(rows, task, variant, "greedy").values()), place - 0.15, SERIES[0], False)
            _dots(axes, list(scores(rows, task, variant, "sampled").values()), place + 0.15, SERIES[1], True)
        axes.set_title(task)
        axes.set_xlabel("% right on held-out problems")
        axes.set_xlim(0, 101)
        axes.grid(axis="x")
        axes.set_yticks(range(len(variants)), list(variants.values()))
    panels[0][0].invert_yaxis()
    panels[0][0].plot([], [], "o", color=SERIES[0], mfc="white", label="greedy")
    panels[0][0].plot([], [], "o", color=SERIES[1], label="sampled")
    figure.legend(loc="outside upper right", ncols=2)
    return figure


def ablations(rows: Rows) -> Figure:
    """What each change does to sampled accuracy, and accuracy along each sweep."""
    tasks = tasks_of(rows)
    variants = variants_of(rows, "ablations")
    sweeps = sweeps_of(rows)
    ratios = [1.2] + [1] * len(sweeps)
    figure, grid = plt.subplots(1, len(ratios), figsize=(11, 3.9), width_ratios=ratios, squeeze=False)
    panels = grid[0]
    axes = panels[0]
    for number, task in enumerate(tasks):
        base = scores(rows, task, "dapo", "sampled")
        for place, variant in enumerate(variants):
            own = scores(rows, task, variant, "sampled")
            if not own.keys() & base.keys():
                continue
            found = paired(own, base)
            half = 100 * found.half if found.n > 1 else 0
            y = place + 0.16 * (2 * number - 1)
            label = task if not place else None
            axes.errorbar(100 * found.mean, y, xerr=half, fmt="o", color=SERIES[number], capsize=3, label=label)
    axes.axvline(0, color="#8a939b", linewidth=1)
    axes.set_yticks(range(len(variants)), list(variants.values()))
    axes.invert_yaxis()
    axes.grid(axis="x")
    axes.set_xlabel("sampled accuracy minus DAPO's, points")
    axes.set_title("one change at a time")
    for axes, sweep in zip(panels[1:], sweeps, strict=True):
        _sweep(axes, rows, sweep)
    if sweeps:
        figure.legend(*panels[-1].get_legend_handles_labels(), loc="outside lower right", ncols=4)
    return figure


def _sweep(axes: Axes, rows: Rows, sweep: str) -> None:
    points = list(variants_of(rows, sweep))
    for number, task in enumerate(tasks_of(rows)):
        for mode, style in (("greedy", "o--"), ("sampled", "o-")):
            own = {float(v.split("=")[1]): list(scores(rows, task, v, mode).values()) for v in points}
            found = [(value, interval(accuracies)) for value, accuracies in own.items() if accuracies]
            x, y = [value for value, _ in found], [100 * i.mean for _, i in found]
            half = [100 * i.half if i.n > 1 else 0 for _, i in found]
            face = SERIES[number] if mode == "sampled" else "white"
            axes.errorbar(
                x, y, yerr=half, fmt=style, color=SERIES[number], mfc=face, capsize=3, label=f"{task}, {mode}"
            )
    axes.set_xscale("log", base=2 if sweep == "completions" else 10)
    values = [float(v.split("=")[1]) for v in points]
    axes.set_xticks(values, [f"{v:g}" for v in values], fontsize=9)
    axes.minorticks_off()
    axes.set_ylim(0, 101)
    axes.set_title(title_of(sweep))
    axes.set_ylabel("% right")


def calibration(rows: Rows) -> Figure:
    """Reliability of the critics, and their error beside that of the MC estimates that they were trained on."""
    tasks = tasks_of(rows)
    figure, panels = plt.subplots(1, 2 * len(tasks), figsize=(13, 3.4))
    for number, task in enumerate(tasks):
        _reliability(panels[2 * number], rows, task)
        _errors(panels[2 * number + 1], rows, task)
    return figure


def _measured(rows: Rows, task: str, variant: str) -> list[dict]:
    return [r["calibration"] for r in rows if (r["task"], r["variant"]) == (task, variant) and "calibration" in r]


def _reliability(axes: Axes, rows: Rows, task: str) -> None:
    axes.plot([0, 1], [0, 1], color="#8a939b", linewidth=1)
    for colour, (variant, label) in zip(
        SERIES,
        {"dapo": "cross-entropy", "mse": "squared error", "scratch": "from random weights"}.items(),
        strict=False,
    ):
        bins: dict[float, list[dict]] = {}
        for found in _measured(rows, task, variant):
            for row in found["critic"]["calibration"]:
                bins.setdefault(row["low"], []).append(row)
        points = []
        for low in sorted(bins):
            weight = sum(r["states"] for r in bins[low])
            points.append([sum(r[k] * r["states"] for r in bins[low]) / weight for k in ("predicted", "observed")])
        axes.plot([p[0] for p in points], [p[1] for p in points], "o-", color=colour, markersize=4, label=label)
    axes.set_title(f"{task}: reliability")
    axes.set_xlabel("critic's value")
    axes.set_ylabel("true success rate")
    axes.legend(fontsize=8)


def _errors(axes: Axes, rows: Rows, task: str) -> None:
    readers: dict[str, Callable[[dict], float]] = {
        "critic trained on them": lambda c: c["critic"]["squared_error"] - c["noise"],
        "the MC values themselves": lambda c: c["mc"]["squared_error"] - c["noise"],
    }
    points = {v.split("=")[1]: _measured(rows, task, v) for v in variants_of(rows, "completions")}
    points = {completions: cells for completions, cells in points.items() if cells}
    for colour, (label, read) in zip(SERIES, readers.items(), strict=False):
        errors = [fmean(map(read, cells)) for cells in points.values()]
        axes.plot([float(n) for n in points], errors, "o-", color=colour, markersize=4, label=label)
    if points:
        axes.set_xscale("log", base=2)
        axes.set_xticks([float(n) for n in points], list(points))
        axes.set_yscale("log")
        axes.set_yticks(ERROR_TICKS, [f"{tick:g}" for tick in ERROR_TICKS])
        axes.minorticks_off()
    axes.set_title(f"{task}: error")
    axes.set_xlabel("completions of a state")
    axes.set_ylabel("mean squared error against truth")
    axes.legend(fontsize=8)


FIGURES: dict[str, Callable[[Rows], Figure]] = {
    "study-methods": methods,
    "study-ablations": ablations,
    "study-calibration": calibration,
}
