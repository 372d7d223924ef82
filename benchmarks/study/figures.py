"""The study's figures, from the rows of a results file; a PNG says which rows it was drawn from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import fmean

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from dapo_fast.hashing import digest
from dapo_fast.report.figures import SERIES, STYLE

from .statistics import interval, paired
from .tables import Rows, cells_of, scores, tasks_of, variants_of


def write_figures(rows: Rows, folder: Path) -> None:
    """Draw every figure into ``folder``."""
    with plt.rc_context(STYLE):
        for name in _drawable(rows):
            figure = FIGURES[name](rows)
            figure.savefig(folder / f"{name}.png", metadata={"Description": digest(rows)})
            plt.close(figure)


def stale_figures(rows: Rows, folder: Path) -> list[str]:
    """Figures that are missing or were drawn from other rows."""
    found = []
    for name in _drawable(rows):
        path = folder / f"{name}.png"
        if not path.exists() or Image.open(path).info.get("Description") != digest(rows):
            found.append(path.name)
    return found


def _drawable(rows: Rows) -> list[str]:
    """Figures that there are rows for: changes to DAPO are run after the methods."""
    changed = variants_of(rows, "plans") or variants_of(rows, "rules")
    return [name for name in FIGURES if name != "study-changes" or changed]


def _dots(axes: Axes, values: list[float], y: float, colour: str, filled: bool) -> None:
    if not values:
        return
    found = interval(values)
    face = colour if filled else "white"
    axes.plot([100 * v for v in values], [y] * len(values), "|", color=colour, alpha=0.5, markersize=7)
    half = 100 * found.half if found.n > 1 else 0
    axes.errorbar(100 * found.mean, y, xerr=half, fmt="o", color=colour, mfc=face, capsize=3)


def methods(rows: Rows) -> Figure:
    """Accuracy of every method, tasks side by side; ticks are seeds, bars 95% intervals."""
    tasks = tasks_of(rows)
    variants = variants_of(rows, "methods")
    figure, panels = plt.subplots(1, len(tasks), figsize=(9.2, 0.9 + 0.43 * len(variants)), sharey=True, squeeze=False)
    for axes, task in zip(panels[0], tasks, strict=True):
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


def tokens(rows: Rows) -> Figure:
    """Sampled accuracy against tokens sampled so far, iteration by iteration; means over seeds."""
    tasks = tasks_of(rows)
    shown = {**variants_of(rows, "methods"), **variants_of(rows, "plans")}
    figure, panels = plt.subplots(1, len(tasks), figsize=(10, 4.4), sharey=True, squeeze=False)
    for axes, task in zip(panels[0], tasks, strict=True):
        for number, (variant, label) in enumerate(shown.items()):
            cells = [r for r in cells_of(rows, task, variant) if r["tokens"]]
            if not cells:
                continue
            count = min(len(r["iterations"]) for r in cells)
            x = [fmean(sum(r["tokens"][:i]) / 1000 for r in cells) for i in range(count)]
            y = [100 * fmean(r["iterations"][i]["sampled"] for r in cells) for i in range(count)]
            style = "o-" if variant in variants_of(rows, "methods") else "s--"
            width = 2.4 if variant == "dapo" else 1.2
            axes.plot(x, y, style, color=SERIES[number % len(SERIES)], markersize=4, linewidth=width, label=label)
        axes.set_title(task)
        axes.set_xlabel("tokens sampled, thousands")
        axes.set_ylim(0, 101)
        axes.grid()
    panels[0][0].set_ylabel("% right, sampled")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    return figure


def changes(rows: Rows) -> Figure:
    """What each change to DAPO does to its sampled accuracy, seed by seed."""
    tasks = tasks_of(rows)
    variants = {**variants_of(rows, "plans"), **variants_of(rows, "rules")}
    figure, axes = plt.subplots(figsize=(8.5, 0.9 + 0.45 * max(len(variants), 3)))
    for number, task in enumerate(tasks):
        base = scores(rows, task, "dapo", "sampled")
        for place, variant in enumerate(variants):
            own = scores(rows, task, variant, "sampled")
            if not own.keys() & base.keys():
                continue
            found = paired(own, base)
            half = 100 * found.half if found.n > 1 else 0
            label = task if not place else None
            y = place + 0.16 * (2 * number - 1)
            axes.errorbar(100 * found.mean, y, xerr=half, fmt="o", color=SERIES[number], capsize=3, label=label)
    axes.axvline(0, color="#8a939b", linewidth=1)
    axes.set_yticks(range(len(variants)), list(variants.values()))
    axes.invert_yaxis()
    axes.grid(axis="x")
    axes.set_xlabel("sampled accuracy minus DAPO's, points")
    figure.legend(loc="outside upper right", ncols=2)
    return figure


FIGURES: dict[str, Callable[[Rows], Figure]] = {
    "study-methods": methods,
    "study-tokens": tokens,
    "study-changes": changes,
}
