"""The whole algorithm, as part of the suite: see end_to_end.py."""

import end_to_end


def test_end_to_end(benchmark, quick, record):
    rows = benchmark.pedantic(end_to_end.run, args=(quick,), rounds=1)
    if quick:  # the full preset's rows are those of several seeds, recorded by end_to_end.py's own command
        record(rows)
    assert rows[-1]["sampled"]["accuracy"] > rows[0]["sampled"]["high"]
