"""The tables of docs/models.md: families, how they are read, and the tests that hold them to it."""

from __future__ import annotations

import sys
from pathlib import Path

from study.tables import markdown

sys.path.append(str(Path(__file__).parents[1] / "tests" / "tree"))

import families


def _names(row: families.Row) -> str:
    return ", ".join(f"`{family}`" for family in row.families)


def trees() -> str:
    """Families that read trees."""
    header = ["family (`model_type`)", "attention", "tree on a CPU", "tree on a GPU", "critic", "export"]
    lines = [[_names(r), r.layers, r.cpu, r.gpu, "yes", "yes", r.sampled, r.tested] for r in families.TREES]
    return markdown([*header, "sampled in process", "tested in"], lines)


def rows() -> str:
    """Families that read padded rows."""
    header = ["family (`model_type`)", "layers", "read as", "critic", "export", "two processes"]
    lines = [[_names(r), r.layers, "rows", "yes", "yes", r.processes, r.sampled, r.tested] for r in families.ROWS]
    return markdown([*header, "sampled in process", "tested in"], lines)


def more() -> str:
    """Families that are tested in one process only."""
    header = ["family (`model_type`)", "layers", "read as", "critic", "export", "sampled in process", "tested in"]
    lines = [
        [_names(r), r.layers, "rows" if r.cpu is None else "trees", "yes", "yes", r.sampled, r.tested]
        for r in families.MORE
    ]
    return markdown(header, lines)


BLOCKS = {"trees": trees, "rows": rows, "more": more}
