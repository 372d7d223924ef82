"""The study's tables, from the rows of a results file."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean

from .statistics import Interval, interval, paired

Rows = list[dict]


def tasks_of(rows: Rows) -> list[str]:
    """Tasks in the order they stand in."""
    return list(dict.fromkeys(row["task"] for row in rows))


def variants_of(rows: Rows, group: str) -> dict[str, str]:
    """Variant → label of a group, in order."""
    return {row["variant"]: row["peer"] for row in rows if row["group"] == group}


def cells_of(rows: Rows, task: str, variant: str) -> Rows:
    """The rows of a variant on a task, one a seed."""
    return [row for row in rows if (row["task"], row["variant"]) == (task, variant)]


def scores(rows: Rows, task: str, variant: str, mode: str, iteration: int | None = None) -> dict[int, float]:
    """Accuracy by seed, at the end or after ``iteration``."""
    if iteration is None:
        return {r["seed"]: r[mode]["accuracy"] for r in cells_of(rows, task, variant)}
    found = cells_of(rows, task, variant)
    return {r["seed"]: r["iterations"][iteration][mode] for r in found if len(r["iterations"]) > iteration}


def text_of(values: dict[int, float], seeds: int) -> str:
    """Mean with its interval; how many seeds where some are missing."""
    if not values:
        return "not measured"
    few = f" ({len(values)} seeds)" if 1 < len(values) < seeds else ""
    return interval(list(values.values())).text() + few


def _seeds(rows: Rows, task: str) -> int:
    return len({r["seed"] for r in rows if r["task"] == task and r["group"] != "tuning"})


def markdown(header: list[str], lines: list[list[str]]) -> str:
    """A Markdown table."""
    text = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(text + ["| " + " | ".join(line) + " |" for line in lines])


def _versus(rows: Rows, task: str, variant: str) -> str:
    if variant == "dapo":
        return ""
    own, base = scores(rows, task, variant, "sampled"), scores(rows, task, "dapo", "sampled")
    if not own.keys() & base.keys():
        return ""
    difference = paired(own, base)
    text = difference.text("+")
    return f"**{text}**" if difference.differs else text


def tokens_of(rows: Rows, task: str, variant: str) -> str:
    """Tokens sampled by a whole run, in thousands: the mean over seeds."""
    found = [sum(r["tokens"]) for r in cells_of(rows, task, variant) if r["tokens"]]
    return f"{fmean(found) / 1000:.0f}k" if found else ""


def _lowest(rows: Rows, task: str, variant: str) -> str:
    found = scores(rows, task, variant, "sampled").values()
    return f"{100 * min(found):.1f}" if found else ""


def compared(rows: Rows, *groups: str, declared: dict[str, str] | None = None) -> str:
    """Sampled accuracy of every variant, its worst seed, the difference to DAPO seed by seed, and tokens sampled.

    ``declared``: variant → label of those that the study has, measured or not, in order.
    """
    tasks = tasks_of(rows)
    header = [""]
    for task in tasks:
        header += [f"{task}: sampled", "worst seed", "minus DAPO's", "greedy", "tokens"]
    found: dict[str, str] = {}
    for group in groups:
        found |= variants_of(rows, group)
    if not found:
        return "Not run yet."
    variants = {"dapo": variants_of(rows, "methods").get("dapo", "DAPO")} if groups != ("methods",) else {}
    variants |= {**(declared or {}), **found}
    lines = []
    for variant, label in variants.items():
        line = [label]
        for task in tasks:
            seeds = _seeds(rows, task)
            line += [text_of(scores(rows, task, variant, "sampled"), seeds), _lowest(rows, task, variant)]
            line += [_versus(rows, task, variant), text_of(scores(rows, task, variant, "greedy"), seeds)]
            line.append(tokens_of(rows, task, variant))
        lines.append(line)
    return markdown(header, lines)


def iterations(rows: Rows) -> str:
    """Sampled accuracy of every method after each iteration."""
    tasks = tasks_of(rows)
    count = max(len(row["iterations"]) for row in rows)
    header = ["method", *(f"{task}: after {i}" for task in tasks for i in range(1, count))]
    lines = [
        [
            label,
            *(
                text_of(scores(rows, task, variant, "sampled", i), _seeds(rows, task))
                for task in tasks
                for i in range(1, count)
            ),
        ]
        for variant, label in variants_of(rows, "methods").items()
        if variant != "base"
    ]
    return markdown(header, lines)


def summary(rows: Rows) -> str:
    """Sampled accuracy of the methods alone, for the README."""
    tasks = tasks_of(rows)
    lines = [
        [label, *(text_of(scores(rows, task, variant, "sampled"), _seeds(rows, task)) for task in tasks)]
        for variant, label in variants_of(rows, "methods").items()
    ]
    return markdown(["three iterations, from as many sampled tokens", *tasks], lines)


def tuned(rows: Rows) -> str:
    """The setting that each method with a grid was given, by task."""
    tasks = tasks_of(rows)
    lines = []
    for variant, label in variants_of(rows, "methods").items():
        cells = []
        for task in tasks:
            chosen = next((r["actor"] for r in cells_of(rows, task, variant)), {})
            tried = [r for r in rows if r["task"] == task and r["variant"].startswith(f"{variant}@")]
            found = sorted(r["sampled"]["accuracy"] for r in tried)
            varied = [k for k in chosen if len({str(r["actor"].get(k)) for r in tried}) > 1] or chosen
            setting = ", ".join(f"{'β' if key == 'beta' else key} {chosen[key]}" for key in varied)
            spread = f"; all {len(found)}: {100 * found[0]:.1f} to {100 * found[-1]:.1f}" if found else ""
            cells.append(setting + spread if chosen and found else "")
        if any(cells):
            lines.append([label, *cells])
    return markdown(["method", *tasks], lines)


def _evidence(rows: Rows, task: str, variant: str, read: Callable[[dict], float]) -> str:
    found = [read(r["evidence"]) for r in cells_of(rows, task, variant) if "evidence" in r]
    return f"{fmean(found):.4f}" if found else ""


def evidence(rows: Rows) -> str:
    """Squared error of Q over trained pairs of iteration 1 against the truth, and k."""
    labels = {"critic": "critic alone (the paper)", "outcomes": "outcomes alone", "shrunk": "critic shrunk to outcomes"}
    names = {v: label for group in ("methods", "plans") for v, label in variants_of(rows, group).items()}
    variants = [v for v in names if any("evidence" in r and r["variant"] == v for r in rows)]
    header = ["Q", *(f"{task}, {names[v]}" for task in tasks_of(rows) for v in variants)]
    lines = [
        [label, *(_evidence(rows, t, v, lambda e, n=name: e[n]) for t in tasks_of(rows) for v in variants)]
        for name, label in labels.items()
    ]
    fitted = [
        [r["k"][0] for r in cells_of(rows, task, v) if r.get("k") and r["k"][0] is not None]
        for task in tasks_of(rows)
        for v in variants
    ]
    ks = [f"{min(found):.2g} to {max(found):.2g}" if found else "" for found in fitted]
    return markdown(header, [*lines, ["k, fitted: over the seeds", *ks]])


def gain(rows: Rows, task: str, variant: str, other: str) -> Interval | None:
    """The paired difference of two variants in sampled accuracy; None where no seed has both."""
    own, base = scores(rows, task, variant, "sampled"), scores(rows, task, other, "sampled")
    return paired(own, base) if own.keys() & base.keys() else None


def by_seed(rows: Rows) -> str:
    """DAPO's sampled accuracy at the end, seed by seed."""
    seeds = sorted({row["seed"] for row in rows})
    lines = []
    for task in tasks_of(rows):
        found = scores(rows, task, "dapo", "sampled")
        cells = [f"{100 * found[seed]:.1f}" if seed in found else "" for seed in seeds]
        lines.append([task, *cells, text_of(found, len(seeds))])
    return markdown(["", *(f"seed {seed}" for seed in seeds), "mean"], lines)


def repeated(rows: Rows, first: Rows) -> str:
    """DAPO run again: what the same seed came to the second time, and the first."""
    seeds = sorted({row["seed"] for row in rows})
    lines = []
    for task in tasks_of(rows):
        now, before = scores(rows, task, "dapo", "sampled"), scores(first, task, "dapo", "sampled")
        both = [seed if seed in now and seed in before else None for seed in seeds]
        cells = ["" if seed is None else f"{100 * now[seed]:.1f} ({100 * before[seed]:.1f})" for seed in both]
        lines.append([task, *cells, paired(now, before).text("+")])
    return markdown(["", *(f"seed {seed}" for seed in seeds), "difference"], lines)
