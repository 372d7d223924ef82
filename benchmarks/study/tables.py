"""The study's tables, from the rows of a results file."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean

from .statistics import interval, paired

Rows = list[dict]

_NO_SWEEPS = ("tuning", "methods", "iterated", "ablations")


def tasks_of(rows: Rows) -> list[str]:
    """Tasks in the order they stand in."""
    return list(dict.fromkeys(row["task"] for row in rows))


def variants_of(rows: Rows, group: str) -> dict[str, str]:
    """Variant → label of a group, in order."""
    return {row["variant"]: row["peer"] for row in rows if row["group"] == group}


def scores(rows: Rows, task: str, variant: str, mode: str) -> dict[int, float]:
    """Accuracy by seed."""
    return {r["seed"]: r[mode]["accuracy"] for r in rows if (r["task"], r["variant"]) == (task, variant)}


def mean(rows: Rows, task: str, variant: str, mode: str) -> str:
    """Mean accuracy over seeds with its interval, as text; how many seeds where some are missing."""
    found = list(scores(rows, task, variant, mode).values())
    if not found:
        return "not run"
    missing = len(found) < len(scores(rows, task, "base", mode))
    return interval(found).text() + (f" ({len(found)} seeds)" if missing and len(found) > 1 else "")


def sweeps_of(rows: Rows) -> list[str]:
    """Groups whose variants are points along one setting."""
    return [g for g in dict.fromkeys(r["group"] for r in rows) if g not in _NO_SWEEPS]


def title_of(sweep: str) -> str:
    """The sweep's name as people write it."""
    return {"completions": "completions of a state", "beta": "β"}.get(sweep, sweep)


def _table(header: list[str], lines: list[list[str]]) -> str:
    text = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(text + ["| " + " | ".join(line) + " |" for line in lines])


def _versus(rows: Rows, task: str, variant: str, mode: str = "sampled") -> str:
    own, base = scores(rows, task, variant, mode), scores(rows, task, "dapo", mode)
    if not own.keys() & base.keys():
        return ""
    difference = paired(own, base)
    text = difference.text("+")
    return f"**{text}**" if difference.differs else text


def methods(rows: Rows) -> str:
    """Greedy and sampled accuracy of every method on every task, and its difference to DAPO seed by seed."""
    tasks = tasks_of(rows)
    header = ["method"]
    for task in tasks:
        header += [f"{task}: greedy", "sampled", "sampled, minus DAPO's"]

    def cells(task: str, variant: str) -> list[str]:
        versus = "" if variant == "dapo" else _versus(rows, task, variant)
        return [*(mean(rows, task, variant, mode) for mode in ("greedy", "sampled")), versus]

    return _table(header, _method_lines(rows, cells))


def _method_lines(rows: Rows, cells: Callable[[str, str], list[str]]) -> list[list[str]]:
    """A line a method with ``cells(task, variant)`` of every task; iterated ones below a line that says so."""

    def lines(group: str) -> list[list[str]]:
        found = variants_of(rows, group).items()
        return [[label, *(c for task in tasks_of(rows) for c in cells(task, variant))] for variant, label in found]

    alike, iterated = lines("methods"), lines("iterated")
    if not iterated:
        return alike
    times = max(len(row["iterations"]) - 1 for row in rows if row["group"] == "iterated")
    above = [f"*with {times} times the rollouts and updates:*"] + [""] * (len(iterated[0]) - 1)
    return [*alike, above, *iterated]


def summary(rows: Rows) -> str:
    """The same, sampled accuracy alone, for the README."""
    lines = _method_lines(rows, lambda task, variant: [mean(rows, task, variant, "sampled")])
    return _table(["from the same rollouts, in equal updates", *tasks_of(rows)], lines)


def tuned(rows: Rows) -> str:
    """The setting that each method with a grid was given, by task."""
    tasks = tasks_of(rows)
    lines = []
    for variant, label in variants_of(rows, "methods").items():
        cells = []
        for task in tasks:
            chosen = next((r["actor"] for r in rows if (r["task"], r["variant"]) == (task, variant)), {})
            tried = [r for r in rows if r["task"] == task and r["variant"].startswith(f"{variant}@")]
            found = sorted(r["sampled"]["accuracy"] for r in tried)
            setting = ", ".join(f"{'β' if key == 'beta' else key} {value:g}" for key, value in chosen.items())
            spread = f"; all {len(found)}: {100 * found[0]:.1f} to {100 * found[-1]:.1f}" if found else ""
            cells.append(setting + spread if chosen and found else "")
        if any(cells):
            lines.append([label, *cells])
    return _table(["method", *tasks], lines)


def _critic(rows: Rows, task: str, variant: str, read: Callable[[dict], float]) -> str:
    found = [r for r in rows if (r["task"], r["variant"]) == (task, variant) and "calibration" in r]
    return f"{fmean(read(r['calibration']) for r in found):.3f}" if found else ""


def ablations(rows: Rows) -> str:
    """Each change to DAPO: its difference in sampled and greedy accuracy, and the pairs trained on."""
    tasks = tasks_of(rows)
    header = ["changed"]
    for task in tasks:
        header += [f"{task}: sampled", "minus DAPO's", "pairs"]
    lines = []
    for variant, label in {"dapo": "DAPO, nothing changed", **variants_of(rows, "ablations")}.items():
        line = [label]
        for task in tasks:
            pairs = [r["pairs"] for r in rows if (r["task"], r["variant"]) == (task, variant) and "pairs" in r]
            line.append(mean(rows, task, variant, "sampled"))
            line += ["" if variant == "dapo" else _versus(rows, task, variant), f"{fmean(pairs):.0f}" if pairs else ""]
        lines.append(line)
    return _table(header, lines)


def sweep(rows: Rows, group: str) -> str:
    """Accuracy along one setting."""
    tasks = tasks_of(rows)
    header = [title_of(group), *(f"{task}: {mode}" for task in tasks for mode in ("greedy", "sampled"))]
    lines = [
        [
            variant.split("=")[1],
            *(mean(rows, task, variant, mode) for task in tasks for mode in ("greedy", "sampled")),
        ]
        for variant in variants_of(rows, group)
    ]
    return _table(header, lines)


def critics(rows: Rows) -> str:
    """Critics and MC estimates against the truth, on states of unseen problems."""
    tasks = tasks_of(rows)
    header = ["critic"]
    for task in tasks:
        header += [f"{task}: Brier", "calibration error", "AUC", "(V − truth)²", "(MC − truth)²"]
    labels = {"dapo": "cross-entropy, from the actor, 8 completions"}
    labels |= {v: label for v, label in variants_of(rows, "ablations").items() if v in ("mse", "scratch")}
    labels |= {v: f"{v.split('=')[1]} completions" for v in variants_of(rows, "completions") if v != "completions=8"}
    readers: list[Callable[[dict], float]] = [
        lambda c: c["critic"]["brier"],
        lambda c: c["critic"]["calibration_error"],
        lambda c: c["critic"]["auc"],
        lambda c: c["critic"]["squared_error"] - c["noise"],
        lambda c: c["mc"]["squared_error"] - c["noise"],
    ]
    lines = [
        [label, *(_critic(rows, task, variant, read) for task in tasks for read in readers)]
        for variant, label in labels.items()
    ]
    return _table(header, lines)
