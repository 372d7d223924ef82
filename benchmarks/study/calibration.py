"""How good critics and MC estimates are against success rates measured with many completions, on unseen problems."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dapo_fast.data.store import read_trees
from dapo_fast.data.tree import Tree, is_heldout
from dapo_fast.rewards import verifier_for, verify_many
from dapo_fast.rollout.engine import SamplingParams, make_engine
from dapo_fast.rundir import digest, read_json, write_json
from dapo_fast.train.calibration import measure
from dapo_fast.train.critic import ValueFiller

from .cell import CellPipeline
from .config import Calibration


def heldout_trees(pipeline: CellPipeline, settings: Calibration) -> list[Tree]:
    """The first problems that the critic of iteration 1 has not seen, with their states."""
    fraction = pipeline.config.critic.heldout_fraction
    trees = [t for t in read_trees(pipeline.directory.stage(1, "collect")) if is_heldout(t.problem_id, fraction)]
    return trees[: settings.problems]


def truth(pipeline: CellPipeline, settings: Calibration, path: Path) -> list[int]:
    """Correct ones of ``settings.completions`` completions of every held-out state, kept in ``path``."""
    trees = heldout_trees(pipeline, settings)
    states = [(tree, state) for tree in trees for state in tree.states]
    key = digest([settings.model_dump(), [tree.prefix_ids(state) for tree, state in states]])
    if path.exists() and read_json(path)["key"] == key:
        return read_json(path)["correct"]
    config = pipeline.config
    problems = {problem.id: problem for problem in pipeline.problems(1)}
    engine = make_engine(config.engine, pipeline.policy(0), config.model)
    prefixes = [tree.response_prefix(state) for tree, state in states]
    params = SamplingParams(
        n=settings.completions,
        max_tokens=tuple(config.collect.max_tokens - len(prefix) for prefix in prefixes),
        temperature=config.collect.temperature,
        top_p=config.collect.top_p,
        seed=config.seed + 777,
    )
    groups = engine.generate([tree.prefix_ids(state) for tree, state in states], params)
    correct = []
    for (tree, _), prefix, group in zip(states, prefixes, groups, strict=True):
        problem = problems[tree.problem_id]
        ends = [engine.tokenizer.decode(prefix + s.ids, skip_special_tokens=True) for s in group if s.finished]
        correct.append(sum(verify_many([(problem, text) for text in ends], verifier_for(problem.kind))))
    write_json(path, {"key": key, "correct": correct})
    return correct


def calibrate_critic(pipeline: CellPipeline, settings: Calibration) -> None:
    """Measure the critic of iteration 1 once; ``calibration.json`` beside it keeps the result."""
    path = pipeline.directory.stage(1, "critic") / "calibration.json"
    if path.exists() and read_json(path).get("settings") == settings.model_dump():
        return
    correct = truth(pipeline, settings, pipeline.directory.path.parent / "truth.json")
    write_json(path, {"settings": settings.model_dump()} | _measure(pipeline, settings, correct))


def _measure(pipeline: CellPipeline, settings: Calibration, correct: list[int]) -> dict[str, Any]:
    """V of the cell's critic, and the MC of the cell's own completions, against the truth."""
    trees = heldout_trees(pipeline, settings)
    ValueFiller(pipeline.directory.stage(1, "critic") / "model", pipeline.config.model, 16384)(trees)
    states = [state for tree in trees for state in tree.states]
    right = torch.tensor(correct, dtype=torch.float64)
    sampled = torch.full_like(right, settings.completions)
    # MC may be 0 or 1, where cross-entropy has no bound: it is measured by squares only.
    mc = torch.tensor([state.mc for state in states], dtype=torch.float64)
    values = torch.tensor([state.value for state in states], dtype=torch.float64)
    share = right / sampled
    estimate = measure(mc.clamp(1e-6, 1 - 1e-6), right, sampled)
    return {
        "states": len(states),
        "critic": measure(values, right, sampled),
        "mc": {key: estimate[key] for key in ("squared_error", "brier", "auc", "calibration", "calibration_error")},
        # What a predictor that knew every state's true success rate would still seem to err by.
        "noise": (share * (1 - share) / (sampled - 1)).mean().item(),
        "spread": share.var(correction=0).item(),
    }
