"""B.1: from values and outcomes to step advantages, and which states they keep (paper, section 3, the three tricks)."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dapo_fast.config import AdvantageSettings
from dapo_fast.data.store import (
    checked_shards,
    read_shard,
    scan_trees,
    seal,
    sealed_summary,
    shard_meta,
    write_shard,
)
from dapo_fast.data.tree import Candidate, State, Tree
from dapo_fast.errors import InputError
from dapo_fast.evidence import ASSUMED, shrunk
from dapo_fast.rundir import add_seconds
from dapo_fast.state import AdvantagesDone
from dapo_fast.train.parallel import ALONE, World

log = logging.getLogger("dapo_fast.advantages")

_DIGEST, _COUNTS = "digest", "counts"  # of a shard's metadata
_ROUNDING = 1e-6  # stores hold fp32 rewards and sums of them: equal fractions differ from their mean by less


def set_q(tree: Tree, k: float) -> None:
    """Fill ``q`` of every candidate: its reward if it ends the response, else Q̂ = (right + k·V) / (n + k).

    Args:
        k: How many outcomes the critic is worth; 0: the critic alone, as in the paper.
    """
    for state in tree.states:
        for candidate in state.candidates:
            if candidate.terminal:
                candidate.q = candidate.reward
                continue
            if candidate.value is None:
                raise ValueError("a candidate has no value yet: run the critic over the tree first")
            candidate.q = shrunk(candidate.right, candidate.n, candidate.value, k) if k else candidate.value


def state_advantages(state: State) -> list[float]:
    """Â(s, a_i) = Q_i − mean_j Q_j over the steps sampled at the state, one value a unique candidate.

    The mean runs over what was sampled, so that a candidate sampled three times counts three times and one that only a
    trunk takes does not count; duplicates are dropped only afterwards (the paper's second trick).
    """
    total = sum(candidate.count for candidate in state.candidates)
    mean = sum(candidate.count * _q(candidate.q) for candidate in state.candidates) / total
    return [_q(candidate.q) - mean for candidate in state.candidates]


def _q(value: float | None) -> float:
    if value is None:
        raise ValueError("a candidate has no Q yet: call set_q")
    return value


def critic_advantages(tree: Tree, settings: AdvantageSettings, any_right: bool = True) -> None:
    """Fill ``advantage`` of every candidate and ``kept`` of every state: kept if max Â − min Â ≥ ``settings.gap``.

    A state whose candidates are all the same step has no contrast and is never kept, whatever the gap; nor is one with
    no right outcome, unless ``settings.keep_all_wrong``: nothing there backs what the critic says. With
    ``settings.unique`` off, a candidate stands as often as it was sampled; with ``settings.trunk_steps`` off, steps
    that only a trunk takes are left out.

    Args:
        any_right: Whether any completion of the whole store was right. If not, the critic has seen one label only, and
            no state is kept.
    """
    for state in tree.states:
        if not settings.trunk_steps:
            state.candidates = [candidate for candidate in state.candidates if candidate.count]
        if not any(candidate.count for candidate in state.candidates):
            state.kept = False
            continue
        advantages = state_advantages(state)
        for candidate, advantage in zip(state.candidates, advantages, strict=True):
            candidate.advantage = advantage
        right = any(state.rewards) or any(candidate.right for candidate in state.candidates)
        backed = any_right and (settings.keep_all_wrong or right)
        state.kept = backed and len(advantages) > 1 and max(advantages) - min(advantages) >= settings.gap
        if not settings.unique:
            state.candidates = [
                replace(c, count=min(c.count, 1)) for c in state.candidates for _ in range(max(c.count, 1))
            ]


def trunk_advantages(tree: Tree, source: str) -> None:
    """Advantages without a critic, as baselines: the actions are the trunks' own steps.

    ``"mc"``: Â = MC(s∘a) − MC(s), with the reward for a last step (VinePPO's signal).
    ``"response"``: Â = the response's reward − the mean reward of the problem's samples, the same for each of its
    steps (offline GRPO's signal). States are kept where an advantage is not zero; there is no gap to filter by.
    """
    by_prefix = {tuple(tree.response_prefix(state)): state for state in tree.states}
    ends = {tuple(trunk.ids[: trunk.step_ends[-1]]) for trunk in tree.trunks}
    for state in tree.states:
        prefix = tuple(tree.response_prefix(state))
        outcomes: dict[tuple[int, ...], list[float]] = {}
        for trunk, end in tree.steps_from(state):
            after = by_prefix.get(tuple(trunk.ids[:end]))
            from_states = source == "mc" and end < len(trunk.ids)
            if from_states and (after is None or not after.rewards):
                continue
            outcome = after.mc if from_states and after is not None else trunk.reward
            outcomes.setdefault(tuple(trunk.ids[len(prefix) : end]), []).append(outcome)
        baseline = state.mc if source == "mc" else tree.correct / tree.sampled
        state.candidates = []
        for ids, seen in outcomes.items():
            q = sum(seen) / len(seen)
            terminal = prefix + ids in ends
            reward = q if terminal else 0.0
            candidate = Candidate(list(ids), len(seen), terminal, reward, q=q, advantage=q - baseline)
            state.candidates.append(candidate)
        state.kept = any(abs(candidate.advantage) > _ROUNDING for candidate in state.candidates)


def compute_advantages(
    trees_directory: str | Path,
    out_directory: str | Path,
    settings: AdvantageSettings,
    fill_values: Callable[[Sequence[Tree]], None] | None,
    digest: str,
    fitted_k: float = ASSUMED,
    world: World = ALONE,
) -> dict:
    """Read the collected store, fill Q, advantages and ``kept``, write the same shards to ``out_directory``.

    Every rank of ``world`` calls it, reads values with the others and computes what follows from them; rank 0 writes.

    Args:
        fill_values: Sets ``value`` of every state and candidate of a shard's trees; needed for
            ``settings.source == "critic"``, not called for the baselines.
        fitted_k: k of ``evidence.fit_shrinkage`` on the critic's held-out states; used with ``settings.shrink`` auto.
        digest: Identifies the settings; a finished shard of another digest is an error, one of this digest is kept.

    Returns:
        Counts: states, kept states, pairs, and why states were dropped.
    """
    out = Path(out_directory)
    done = sealed_summary(out, AdvantagesDone)
    if done is not None:
        if done.get("digest") != digest:
            raise InputError(f"{out / 'done.json'}: made with other settings; use a new run directory")
        return done
    k = fitted_k if settings.shrink == "auto" else settings.shrink
    shards = checked_shards(trees_directory)  # all of them before the first is read by a critic
    any_right = _any_right(Path(trees_directory))
    totals: Counter[str] = Counter()
    for path in shards:
        target = out / path.name
        # Rank 0 decides for all: a file seen by some ranks only would leave the others alone in a collective.
        if world.broadcast(target.exists()):
            totals.update(_finished(target, digest))
            continue
        began = time.monotonic()
        trees = read_shard(path)
        if settings.source == "critic":
            if fill_values is None:
                raise ValueError("fill_values: source 'critic' needs one")
            fill_values(trees)
        for tree in trees:
            if settings.source == "critic":
                set_q(tree, k)
                critic_advantages(tree, settings, any_right)
            else:
                trunk_advantages(tree, settings.source)
        if world.rank == 0:
            counts = count_states(trees)
            write_shard(target, trees, {_DIGEST: digest, _COUNTS: json.dumps(counts)})
            totals.update(counts)
            add_seconds(out, time.monotonic() - began)
    summary: dict[str, Any] = {"digest": digest, "k": k if settings.source == "critic" else None}
    if world.rank == 0:
        summary |= totals
        seal(out, summary)
        log.info(
            "advantages: %(kept)d of %(states)d states kept, %(pairs)d pairs (states with only wrong completions: "
            "%(all_wrong)d, with only right ones: %(all_right)d, with a single candidate: %(single)d)",
            summary,
        )
    return world.broadcast(summary)


def _any_right(collected: Path) -> bool:
    """Whether any outcome of a state was right: what the collection says where it has counted, as a whole one has."""
    done = sealed_summary(collected)
    if done is not None and {"states", "all_wrong"} <= done.keys():
        return done["all_wrong"] < done["states"]
    return any(any(state.rewards) for tree in scan_trees(collected) for state in tree.states)


def _finished(path: Path, digest: str) -> dict[str, int]:
    """Counts of a shard that is there already; InputError where it is of another digest."""
    meta = shard_meta(path)
    if meta.get(_DIGEST) != digest:
        raise InputError(f"{path}: made with other settings; use a new run directory")
    return json.loads(meta[_COUNTS]) if _COUNTS in meta else count_states(read_shard(path))  # not counted: of old


def count_states(trees: Iterable[Tree]) -> dict[str, int]:
    """How many states there are, how many are kept, and what the others look like."""
    counts = {"states": 0, "kept": 0, "pairs": 0, "all_wrong": 0, "all_right": 0, "single": 0}
    for tree in trees:
        for state in tree.states:
            counts["states"] += 1
            counts["all_wrong"] += bool(state.rewards) and state.mc == 0
            counts["all_right"] += bool(state.rewards) and state.mc == 1
            counts["single"] += len(state.candidates) < 2
            if state.kept:
                counts["kept"] += 1
                counts["pairs"] += len(state.candidates)
    return counts
