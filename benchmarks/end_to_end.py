"""The whole of Algorithm 1 on the built-in task: accuracy before and after, and where the time went.

``python benchmarks/end_to_end.py RUN [RUN …]`` takes finished runs of the ``arithmetic`` preset into this machine's
results file; the suite runs one of its own.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import yaml

SUITE = "end_to_end"
# A third of the preset's work: minutes on two cores, and it still learns.
QUICK = ["data.limit=200", "data.heldout_limit=300", "sft.steps=600", "iterations=1"]


def rows_of(run: Path) -> list[dict]:
    """One row a policy of a finished run."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    rows = []
    for result in json.loads((run / "results.json").read_text()):
        row = {
            "suite": SUITE,
            "case": f"{config['data']['task']}, seed {config['seed']}",
            "peer": "base" if result["iteration"] == 0 else f"iteration {result['iteration']}",
            "peer_version": "dapo-fast",
            "seed": config["seed"],
            "accepted": result["accepted"],
            "heldout_problems": result["greedy"]["n"],
        }
        for mode in ("greedy", "sampled"):
            row[mode] = {key: result[mode][key] for key in ("accuracy", "low", "high")}
        if result["iteration"]:
            row["states"] = result["advantages"]["states"]
            row["pairs"] = result["advantages"]["pairs"]
            row["critic_auc"] = result["critic"]["heldout"]["auc"]
        rows.append(row)
    return rows


def run(quick: bool) -> list[dict]:
    """One run of the preset, in a temporary directory."""
    from dapo_fast.cli import main

    with tempfile.TemporaryDirectory() as directory:
        code = main(["run", f"{directory}/run", "--preset", "arithmetic", *(QUICK if quick else [])])
        if code:
            raise RuntimeError(f"dapo-fast run ended with exit code {code}")
        return rows_of(Path(directory) / "run")


if __name__ == "__main__":
    from recorder import Recorder

    record = Recorder(quick=False)
    record([row for path in sys.argv[1:] for row in rows_of(Path(path))])
    print(record.path)
