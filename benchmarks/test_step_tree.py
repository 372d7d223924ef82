"""Step trees against padded, flat and state-wise batches: see step_tree.py."""

from step_tree import disagreements, run, table


def test_step_tree(quick, responses, record):
    rows = run(quick, responses)
    record(rows)
    print("\n" + table(rows))
    assert not disagreements(rows)
    # Counted, not timed: at least 15 times fewer tokens than one sequence a pair, at the shape of real responses.
    for row in rows:
        if row["peer"] == "tree" and not row["case"].endswith(("long-1000", "long-2048")):
            assert row["token_ratio"] >= 15
