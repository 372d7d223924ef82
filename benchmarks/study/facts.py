"""What a cell's run says beyond accuracy: what its stages cost, its critic, where there was signal, who changed."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean

from dapo_fast.data.store import read_trees
from dapo_fast.report.cost import costs
from dapo_fast.report.read import Iteration, read_run
from dapo_fast.statistics import reward_of

from .statistics import Interval, interval


def facts_of(directory: Path) -> dict:
    """Facts of a finished cell for its row; one entry an iteration, or a stage, in each list."""
    run = read_run(directory)
    stages = [
        {"stage": cost.name, "seconds": cost.seconds, "sampled": cost.generated, "trained": cost.trained}
        for cost in costs(run)
    ]
    signals = [signal_of(i) for i in run.rounds if i.stages["advantages"].done]
    critics = [{k: i.heldout["critic"][k] for k in ("auc", "brier")}
               | {"constant_brier": i.heldout["constant"]["brier"], "states": i.heldout["states"]}
               for i in run.rounds if i.heldout and "critic" in i.heldout]  # fmt: skip
    return {"lr": run.config.actor.lr, "stages": stages, "signals": signals, "critics": critics}


def signal_of(iteration: Iteration) -> dict[str, int]:
    """Problems, states and candidates that were sampled, and those of them that the actor trains on."""
    trees = list(read_trees(iteration.stages["advantages"].path))
    states = [state for tree in trees for state in tree.states]
    kept = [state for state in states if state.kept]
    return {
        "problems": len(trees),
        "mixed_problems": sum(0 < tree.correct < tree.sampled for tree in trees),
        "kept_problems": sum(any(state.kept for state in tree.states) for tree in trees),
        "states": len(states),
        "kept_states": len(kept),
        "candidates": sum(len(state.candidates) for state in states),
        "pairs": sum(len(state.candidates) for state in kept),
    }


def changes_of(before: Path, after: Path) -> dict[str, dict[str, float]]:
    """How much accuracy changed from one evaluation to another, problem by problem: mean and half a 95% interval."""
    found = {}
    for mode in ("greedy", "sampled"):
        old, new = (_shares(directory / f"{mode}.jsonl") for directory in (before, after))
        change: Interval = interval([new[problem] - share for problem, share in old.items()])
        found[mode] = {"mean": change.mean, "half": change.half}
    return found


def _shares(path: Path) -> dict[str, float]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {row["id"]: fmean(map(reward_of, row["responses"])) for row in rows}
