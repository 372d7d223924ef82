"""The critic's training and reading: see critic.py."""

from critic import run, table


def test_critic(quick, record):
    rows = run(quick)
    record(rows)
    print("\n" + table(rows))
    tokens = {(row["case"], row["peer"]): row["tokens"] for row in rows}
    for case, peer in tokens:
        assert tokens[case, "tree"] <= tokens[case, peer]
