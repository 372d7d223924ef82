"""The study's statistics, tables and figures, from made-up rows."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from benchmarks.study import tables
from benchmarks.study.figures import FIGURES, stale_figures, write_figures
from benchmarks.study.statistics import interval, paired

EVIDENCE = {"critic": 0.05, "outcomes": 0.02, "shrunk": 0.01}


def row(variant, group, seed, sampled, greedy=0.9, task="arithmetic", actor=None, **more):
    return {
        "task": task, "variant": variant, "group": group, "seed": seed, "peer": f"label of {variant}",
        "sampled": {"accuracy": sampled}, "greedy": {"accuracy": greedy}, "actor": actor or {},
        "iterations": [{"greedy": 0.1, "sampled": 0.2}, {"greedy": greedy, "sampled": sampled}],
        "tokens": [1000 * (seed + 1)], **more,
    }  # fmt: skip


@pytest.fixture
def rows():
    found = []
    for seed, base in enumerate((0.30, 0.40, 0.50)):
        found.append(row("base", "methods", seed, base, iterations=[{"greedy": 0.9, "sampled": base}], tokens=[]))
        found.append(row("dapo", "methods", seed, base + 0.2, evidence=EVIDENCE, k=[1.5 + seed]))
        found.append(row("dpo", "methods", seed, base + 0.1 + 0.01 * seed, actor={"beta": 0.05}))
        found.append(row("shrink", "rules", seed, base + 0.1 + 0.01 * seed))
    found.append(row("many", "plans", 0, 0.45))
    return [*found, row("dpo@0", "tuning", 9, 0.6), row("dpo@1", "tuning", 9, 0.4)]


def test_intervals_against_a_textbook():
    # Standard deviation 1 of three values; t of two degrees of freedom is 4.303.
    found = interval([1.0, 2.0, 3.0])
    assert found.mean == 2.0 and found.half == pytest.approx(4.303 / 3**0.5)
    assert interval([0.5]).text() == "50.0 (one seed)" and not interval([0.5]).differs
    difference = paired({0: 0.5, 1: 0.7, 2: 0.9}, {1: 0.6, 2: 0.7, 3: 0.1})
    assert difference.n == 2 and difference.mean == pytest.approx(0.15)
    # Alike from seed to seed, however much the seeds differ.
    assert paired({0: 0.2, 1: 0.6}, {0: 0.1, 1: 0.5}).differs


def test_tables(rows):
    methods = tables.compared(rows, "methods")
    assert "| label of dapo | 60.0 ± 24.8 | 50.0 |  | 90.0 ± 0.0 | 2k |" in methods
    assert "| label of dpo | 51.0 ± 27.3 | 40.0 | **-9.0 ± 2.5** | 90.0 ± 0.0 | 2k |" in methods
    assert "label of dpo" in tables.summary(rows) and "label of shrink" not in tables.summary(rows)
    rules = tables.compared(rows, "rules")
    assert rules.index("label of dapo") < rules.index("label of shrink") and "label of dpo" not in rules
    assert "45.0 (one seed)" in tables.compared(rows, "plans")
    assert "β 0.05; all 2: 40.0 to 60.0" in tables.tuned(rows)
    assert "| label of dapo | 60.0 ± 24.8 |" in tables.iterations(rows)
    evidence = tables.evidence(rows)
    assert "| critic alone (the paper) | 0.0500 |" in evidence and "| 1.5 to 3.5 |" in evidence
    assert tables.gain(rows, "arithmetic", "dpo", "dapo").mean == pytest.approx(-0.09)


def test_what_is_declared_and_has_no_rows_is_said_to_be_not_measured(rows):
    declared = {"base": "base", "grpo": "GRPO", "dapo": "DAPO"}
    lines = tables.compared(rows, "methods", declared=declared).splitlines()
    assert "| GRPO | not measured |  |  | not measured |  |" in lines
    places = [
        next(i for i, line in enumerate(lines) if name in line) for name in ("of base", "GRPO", "of dapo", "of dpo")
    ]
    assert places == sorted(places), "in the order of the study"
    assert tables.compared([r for r in rows if r["group"] != "rules"], "rules", declared=declared) == "Not run yet."


def test_figures_know_their_rows(rows, tmp_path):
    assert stale_figures(rows, tmp_path) == [f"{name}.png" for name in FIGURES]
    write_figures(rows, tmp_path)
    assert stale_figures(rows, tmp_path) == []
    rows[0]["sampled"]["accuracy"] += 0.01
    assert len(stale_figures(rows, tmp_path)) == len(FIGURES)


def test_seeds_side_by_side():
    first = [row("dapo", "methods", seed, 0.5 + 0.1 * seed) for seed in (0, 1)]
    rows = [
        row("dapo", "methods", 1, 0.62),
        row("dapo", "methods", 2, 0.7),
        row("dapo", "methods", 2, 0.4, task="other"),
    ]
    assert tables.by_seed(rows).splitlines()[2:] == [
        "| arithmetic | 62.0 | 70.0 | 66.0 ± 50.8 |", "| other |  | 40.0 | 40.0 (one seed) |",
    ]  # fmt: skip
    again = tables.repeated([one for one in rows if one["task"] == "arithmetic"], first).splitlines()
    assert again[2] == "| arithmetic | 62.0 (60.0) |  | +2.0 (one seed) |"
