"""The study's statistics, tables and figures, from made-up rows."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from benchmarks.study import tables
from benchmarks.study.figures import FIGURES, stale_figures, write_figures
from benchmarks.study.statistics import interval, paired

CRITIC = {
    "critic": {
        "brier": 0.15, "calibration_error": 0.03, "auc": 0.8, "squared_error": 0.06,
        "calibration": [{"low": 0.4, "high": 0.5, "states": 3, "predicted": 0.45, "observed": 0.5}],
    },
    "mc": {"squared_error": 0.03}, "noise": 0.01,
}  # fmt: skip


def row(variant, group, seed, sampled, greedy=0.9, task="arithmetic", actor=None, **more):
    return {
        "task": task, "variant": variant, "group": group, "seed": seed, "peer": f"label of {variant}",
        "sampled": {"accuracy": sampled}, "greedy": {"accuracy": greedy}, "actor": actor or {}, **more,
    }  # fmt: skip


@pytest.fixture
def rows():
    found = [row("dapo@0", "tuning", 9, 0.6), row("dapo@1", "tuning", 9, 0.4)]
    for seed, base in enumerate((0.30, 0.40, 0.50)):
        found.append(row("base", "methods", seed, base))
        found.append(row("dapo", "methods", seed, base + 0.2, actor={"beta": 0.05}, pairs=100, calibration=CRITIC))
        found.append(row("gap", "ablations", seed, base + 0.1 + 0.01 * seed, pairs=150))
        found.append(row("dapo3", "iterated", seed, base + 0.3, iterations=[{}] * 4))
    found.append(row("completions=2", "completions", 0, 0.45, calibration=CRITIC))
    found.append(row("completions=4", "completions", 0, 0.5, calibration=CRITIC))
    found += [row("beta=0.1", "beta", seed, 0.5) for seed in (0, 1)]
    return found


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
    methods = tables.methods(rows)
    assert "| label of dapo | 90.0 ± 0.0 | 60.0 ± 24.8 |  |" in methods
    assert "**-20.0 ± 0.0**" in methods
    several = "| *with 3 times the rollouts and updates:* |"
    for table in (methods, tables.summary(rows)):
        assert table.index("label of dapo |") < table.index(several) < table.index("label of dapo3 |")
    assert tables.sweeps_of(rows) == ["completions", "beta"]
    assert "β 0.05; all 2: 40.0 to 60.0" in tables.tuned(rows)
    assert "**-9.0 ± 2.5** | 150 |" in tables.ablations(rows)
    assert "| 0.1 | 90.0 ± 0.0 (2 seeds) | 50.0 ± 0.0 (2 seeds) |" in tables.sweep(rows, "beta")
    assert "| 0.150 | 0.030 | 0.800 | 0.050 | 0.020 |" in tables.critics(rows)


def test_figures_know_their_rows(rows, tmp_path):
    assert stale_figures(rows, tmp_path) == [f"{name}.png" for name in FIGURES]
    write_figures(rows, tmp_path)
    assert stale_figures(rows, tmp_path) == []
    rows[0]["sampled"]["accuracy"] += 0.01
    assert len(stale_figures(rows, tmp_path)) == len(FIGURES)
