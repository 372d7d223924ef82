"""One picture of a run: the fused loss over its floor, and pairs a second of a step of the actor."""

from __future__ import annotations

from pathlib import Path


def draw(rows: list[dict], path: Path) -> Path | None:
    """Write the picture; None where there is nothing to show or matplotlib is not installed."""
    panels = {
        "fused loss: time / three matrix products": ("fused_loss", "ratio_to_floor"),
        "a step of the actor: pairs a second": ("gpu_actor", "pairs_per_s"),
    }
    found = {
        title: [row for row in rows if row["suite"] == suite and row.get(measure)]
        for title, (suite, measure) in panels.items()
    }
    if not any(found.values()):
        return None
    try:
        import matplotlib
    except ImportError:
        print("no picture: matplotlib is not installed")
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    tallest = max(len(shown) for shown in found.values())
    figure, axes = pyplot.subplots(1, len(panels), figsize=(14, 1.5 + 0.22 * tallest), layout="constrained")
    for axis, (title, (_, measure)) in zip(axes, panels.items()):
        shown = found[title][::-1]
        colors = ["tab:orange" if row["peer"].startswith(("dapo-fast", "tree")) else "tab:gray" for row in shown]
        axis.barh([f"{row['case']}  {row['peer']}" for row in shown], [row[measure] for row in shown], color=colors)
        axis.set_title(title)
        axis.tick_params(axis="y", labelsize=7)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
    return path
