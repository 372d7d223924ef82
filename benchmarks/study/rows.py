"""Finished cells as rows of a results file."""

from __future__ import annotations

from pathlib import Path

from dapo_fast.config import merge
from dapo_fast.rundir import read_json, write_json

from .config import Cell, Study, changed_cells, method_cells, tuning_cells
from .facts import changes_of, facts_of
from .results import check_results, result_of


def rows_of(study: Study, root: Path) -> list[dict]:
    """One row a finished cell, for the results file.

    Raises:
        InputError: a cell's settings are no longer the study's.
    """
    cells = [cell for task in study.tasks for cell in tuning_cells(study, task)]
    for task in study.tasks:
        cells += [c for f in (method_cells, changed_cells) for seed in study.seeds for c in f(study, task, seed)]
    check_results(study, cells, root)
    results = [(cell, result_of(cell, root)) for cell in cells]
    return [_row(study, cell, result, cell.directory(root)) for cell, result in results if result]


def commits_of(root: Path) -> str:
    """The commits that cells below ``root`` were run at."""
    return "; ".join(read_json(root / "commits.json"))


def note_commit(commit: str, root: Path) -> None:
    """Remember that cells are run at ``commit``."""
    path = root / "commits.json"
    before = read_json(path) if path.exists() else []
    write_json(path, before if commit in before else [*before, commit])


def _row(study: Study, cell: Cell, result: dict, directory: Path) -> dict:
    label = _label(study, cell)
    measured = [row for row in result["rows"] if "sampled" in row]
    row = {"suite": study.suite, "case": f"{cell.task}, seed {cell.seed}", "peer": label, "peer_version": "dapo-fast"}
    row |= {"task": cell.task, "seed": cell.seed, "variant": cell.variant, "group": cell.group}
    row["actor"] = merge(cell.settings.get("actor", {}), result["tuned"])
    row["heldout_problems"] = measured[-1]["greedy"]["n"]
    row["iterations"] = [
        {mode: r[mode]["accuracy"] for mode in ("greedy", "sampled")} | {"accepted": r["accepted"]} for r in measured
    ]
    kept = [r for r in measured if r["accepted"]][-1]
    row |= {mode: {k: kept[mode][k] for k in ("accuracy", "low", "high")} for mode in ("greedy", "sampled")}
    row["tokens"] = result["tokens"]
    found = [r["advantages"] for r in result["rows"] if "advantages" in r]
    if found:
        row["pairs"] = [advantages["pairs"] for advantages in found]
        row["k"] = [advantages["k"] for advantages in found]
    if (directory / "config.yaml").exists():  # cells of older commits have none
        row |= facts_of(directory)
        if cell.trains != "nothing":
            row["change"] = changes_of(*(directory / f"iter{i}" / "evaluate" for i in (0, kept["iteration"])))
    evidence = directory / "iter1" / "evidence.json"
    if evidence.exists():
        row["evidence"] = read_json(evidence)
    return row


def _label(study: Study, cell: Cell) -> str:
    name = cell.variant.split("@")[0]
    return (study.methods | study.plans | study.rules)[name].label
