"""The fused loss against its peers, as part of the suite."""

import fused_loss


def test_fused_loss(benchmark, quick, record, capsys):
    rows = benchmark.pedantic(fused_loss.run, args=(quick,), rounds=1)
    record(rows)
    fused_loss.plot(rows, record.path.with_name(f"{record.path.stem}-fused-loss.png"))
    with capsys.disabled():
        print("\n" + fused_loss.table(rows))
    for row in rows:
        # Speed is reported, never asserted; the same loss must be the same number, whoever computes it.
        assert row.get("difference_from_ours", 0) < 0.05, row
    assert any("median_s" in row for row in rows if row["peer"] == "dapo-fast")
