"""How good the Q that the actor trains on is, against success rates measured with many completions."""

from __future__ import annotations

import random
from statistics import fmean

from dapo_fast.data.store import read_trees
from dapo_fast.data.tree import Candidate, State, Tree
from dapo_fast.rewards import verify_many
from dapo_fast.rollout.engine import SamplingParams, make_engine
from dapo_fast.rundir import read_json, write_json
from dapo_fast.tasks import get_task

from .cell import CellPipeline
from .config import Truth


def measure_evidence(pipeline: CellPipeline, settings: Truth) -> None:
    """Squared errors of Q over trained pairs of iteration 1; ``evidence.json`` in the iteration keeps them.

    Whole states are drawn, kept ones, until there are ``settings.pairs`` pairs; the truth of each step that does not
    end its response is the share correct of ``settings.completions`` fresh completions.
    """
    path = pipeline.directory.path / "iter1" / "evidence.json"
    if path.exists() and read_json(path)["settings"] == settings.model_dump():
        return
    states = _drawn(list(read_trees(pipeline.directory.stage(1, "advantages"))), settings.pairs, pipeline.config.seed)
    pairs = [(tree, state, c) for tree, state in states for c in state.candidates if not c.terminal]
    shares = _shares(pipeline, settings, pairs)
    estimates = {
        "critic": lambda c: c.value,
        "outcomes": lambda c: c.right / c.n if c.n else c.value,
        "shrunk": lambda c: c.q,
    }
    # What even the exact Q would seem to err by: the variance of the measured shares.
    noise = fmean(s * (1 - s) / (settings.completions - 1) for s in shares)
    found = {"settings": settings.model_dump(), "pairs": len(pairs), "states": len(states), "noise": noise}
    for name, estimate in estimates.items():
        errors = [(estimate(c) - share) ** 2 for (_, _, c), share in zip(pairs, shares, strict=True)]
        found[name] = fmean(errors) - noise
    write_json(path, found)


def _drawn(trees: list[Tree], pairs: int, seed: int) -> list[tuple[Tree, State]]:
    kept = [(tree, state) for tree in trees for state in tree.states if state.kept]
    random.Random(seed).shuffle(kept)
    drawn, count = [], 0
    for tree, state in kept:
        if count >= pairs:
            break
        drawn.append((tree, state))
        count += len(state.candidates)
    return drawn


def _shares(pipeline: CellPipeline, settings: Truth, pairs: list[tuple[Tree, State, Candidate]]) -> list[float]:
    config = pipeline.config
    problems = {problem.id: problem for problem in pipeline.parts.problems(1)}
    engine = make_engine(config.engine, pipeline.layout.policy(0), config.model)
    prefixes = [tree.response_prefix(state) + candidate.ids for tree, state, candidate in pairs]
    params = SamplingParams(
        n=settings.completions,
        max_tokens=tuple(max(1, config.collect.max_tokens - len(prefix)) for prefix in prefixes),
        temperature=config.collect.temperature,
        top_p=config.collect.top_p,
        seed=config.seed + 777,
    )
    groups = engine.generate([t.prompt_ids + p for (t, _, _), p in zip(pairs, prefixes, strict=True)], params)
    shares = []
    for (tree, _, _), prefix, group in zip(pairs, prefixes, groups, strict=True):
        problem = problems[tree.problem_id]
        ends = [engine.tokenizer.decode(prefix + s.ids, skip_special_tokens=True) for s in group if s.finished]
        right = sum(verify_many([(problem, text) for text in ends], get_task(problem.kind).verify))
        shares.append(right / settings.completions)
    return shares
