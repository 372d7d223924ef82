"""Wrapper of ``rollout.py``."""

import rollout


def test_rollout(quick, record, benchmark):
    rows = benchmark.pedantic(lambda: rollout.run(quick), rounds=1, iterations=1)
    record(rows)
    assert all(row["median_s"] > 0 for row in rows)
    saved = {row["case"]: row["token_share"] for row in rows if row["suite"] == "rollout_options"}
    assert saved["none"] == 1
    assert saved["every_state=2"] < 0.9 and saved["reuse_samples"] < 1 and saved["skip_decided"] < 1
