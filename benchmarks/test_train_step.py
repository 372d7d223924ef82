"""Step-time breakdown of the actor: see train_step.py."""

from train_step import PIECES, run, table


def test_train_step(quick, record):
    rows = run(quick)
    record(rows)
    print("\n" + table(rows))
    for row in rows:
        assert all(row[f"{piece}_s"] > 0 for piece in PIECES)
        assert row["dedup_ratio"] > 1
