"""``python benchmarks/compare.py BEFORE.json AFTER.json``: what got slower between two results files.

Each row is compared by its own ratio to the floor or peer of the same run, which other load on the machine moves less
than its seconds; rows without a ratio by their seconds.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

MEASURES = ("ratio_to_floor", "ratio", "token_ratio", "token_share", "step_s", "median_s")
HIGHER_IS_BETTER = {"ratio", "token_ratio"}
OURS = {"dapo-fast", "tree"}
OURS_WHATEVER_THE_PEER = {"rollout", "rollout_options", "train_step"}
NOTABLE = 0.05


def key(row: dict) -> tuple[str, str, str]:
    """What two rows must share to be compared."""
    return row["suite"], row["case"], row["peer"]


def load(path: str) -> dict[tuple[str, str, str], dict]:
    """Rows of a results file by their key."""
    suites = json.loads(Path(path).read_text())["suites"]
    return {key(row): row for suite in suites.values() for row in suite["rows"]}


def main() -> int:
    """Print every comparable row, slower ones marked. Exit code 1 if something of ours got slower."""
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    before, after = load(sys.argv[1]), load(sys.argv[2])
    slower = 0
    for shared in sorted(before.keys() & after.keys()):
        old, new = before[shared], after[shared]
        measure = next((m for m in MEASURES if old.get(m) and new.get(m)), None)
        if measure is None:
            continue
        change = new[measure] / old[measure] - 1
        worse = -change if measure in HIGHER_IS_BETTER else change
        mark = "slower" if worse > NOTABLE else "faster" if worse < -NOTABLE else ""
        ours = shared[2] in OURS or shared[0] in OURS_WHATEVER_THE_PEER
        slower += mark == "slower" and ours
        print(f"{' / '.join(shared):<80} {measure:<15} {old[measure]:10.4g} {new[measure]:10.4g} {mark}")
    for gone in sorted(before.keys() - after.keys()):
        print(f"{' / '.join(gone):<80} only in {sys.argv[1]}")
    return int(slower > 0)


if __name__ == "__main__":
    sys.exit(main())
