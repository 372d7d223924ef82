"""The tables of docs/scale.md, at a size that takes seconds."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import scale

STATES = scale.TRUNKS * (scale.STEPS - 1) + 1  # of a tree: trunks share s_0


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """Title → rows, column → cell, as ``python -m benchmarks.scale`` prints them."""
    with pytest.MonkeyPatch.context() as patch, open(tmp_path_factory.mktemp("out") / "text", "w+") as out:
        patch.setattr(sys, "argv", ["scale", "--problems", "16", "--states", str(STATES), str(2 * STATES)])
        patch.setattr(sys, "stdout", out)
        patch.setattr(scale, "LONG", (20, 40))
        patch.setattr(scale, "MOST", 2048)
        scale.main()
        out.seek(0)
        found = {}
        for part in out.read().split("\n### ")[1:]:
            title, _, header, _, *lines = part.strip().split("\n")
            columns = header.strip("| ").split(" | ")
            found[title] = [dict(zip(columns, line.strip("| ").split(" | "), strict=True)) for line in lines]
    return found


def number(cell):
    return float(cell.replace(",", ""))


def test_a_store_is_read_as_it_was_made(tables):
    (memory,), (report,) = tables["Memory of a rank"], tables["The report"]
    assert number(memory["problems"]) == 16
    assert number(memory["batches"]) == round(16 * STATES * scale.CANDIDATES / 2048)
    assert number(report["problems"]) == 16 and number(report["peak GiB"]) < 4


def test_dealing_and_trunks_are_measured_against_what_is_possible(tables):
    assert [number(row["ranks"]) for row in tables["Dealing"]] == [1, 2, 8, 64] * 2 + [64]
    for row in tables["Dealing"]:
        assert 1 <= number(row["of what is possible"]) <= number(row["imbalance"]) + 1e-3
        assert number(row["tokens ÷ ideal"]) >= 1
    assert number(tables["Dealing"][1]["imbalance"]) < 1.05
    short, long = tables["Long trunks"]
    assert number(long["trunk"]) > number(short["trunk"])
    for row in (short, long):
        assert number(row["ratio"]) == pytest.approx(number(row["packed"]) / number(row["ideal tree"]), abs=1e-3)
        assert 1 < number(row["ratio, growing"]) <= number(row["ratio"])
    assert number(long["ratio, growing"]) < 1.2 and number(long["longest pack"]) > 2048


def test_epochs_are_of_whole_trees(tables):
    assert [number(row["states"]) for row in tables["An epoch"]] == [STATES, 2 * STATES]
    assert all(number(row["tokens/s"]) > 0 for row in tables["An epoch"])
