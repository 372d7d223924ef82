"""What finished cells say: their results, and the settings that tuning chose from them."""

from __future__ import annotations

from pathlib import Path

from dapo_fast.errors import InputError
from dapo_fast.rundir import read_json

from .config import Cell, Study, config_of, tuning_cells


def check_results(study: Study, cells: list[Cell], root: Path) -> None:
    """Nothing that was done before is of other settings than the study's.

    Raises:
        InputError: names every cell that is.
    """
    tuned = {task: tuned_settings(study, task, root) for task in {cell.task for cell in cells}}
    other = []
    for cell in cells:
        result = result_of(cell, root)
        if result and result["config"] != config_of(study, cell, tuned[cell.task].get(cell.method or "", {})).digest():
            other.append(str(cell.directory(root)))
    if other:
        raise InputError(f"done with other settings; delete or take another directory: {' '.join(other)}")


def result_of(cell: Cell, root: Path) -> dict | None:
    """The cell's result; None: it is not finished."""
    path = cell.directory(root) / "cell.json"
    return read_json(path) if path.exists() else None


def tuned_settings(study: Study, task: str, root: Path) -> dict[str, dict[str, float | str]]:
    """For each method the setting of its grid with the best sampled accuracy on the tuning seed (so far)."""
    best: dict[str, dict[str, float | str]] = {}
    for name, variant in study.methods.items():
        scores = []
        for cell, setting in zip([c for c in tuning_cells(study, task) if c.variant.startswith(f"{name}@")],
                                 variant.grid, strict=True):  # fmt: skip
            result = result_of(cell, root)
            if result:
                scores.append((_sampled(result), setting))
        if scores:
            best[name] = max(scores, key=lambda pair: pair[0])[1]
    return best


def _sampled(result: dict) -> float:
    """Sampled accuracy of the last policy that was measured."""
    return [row for row in result["rows"] if "sampled" in row][-1]["sampled"]["accuracy"]
