"""What an iteration's trees say: why states were kept or dropped, how advantages lie, and a sample to look at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dapo_fast.data.store import scan_trees
from dapo_fast.data.tables import read_table
from dapo_fast.data.tree import State, Tree, is_heldout
from dapo_fast.errors import InputError
from dapo_fast.report.read import Iteration

BINS = 40  # of advantages, on [-1, 1], where every advantage lies since Q is in [0, 1]
GAP_BINS = 40  # of gaps, on [0, 1]; a gap of 1 falls in the last

REASONS = {
    "kept": "kept",
    "small": "gap too small",
    "single": "one candidate step only",
    "wrong": "all completions wrong",
    "right": "all completions right",
    "empty": "not completed",
}


@dataclass(slots=True)
class TreeSummary:
    """Counts over all trees of one iteration, and the trees worth a look.

    Attributes:
        source: The directory that was read: "advantages", or "collect" while there are no advantages yet.
        finished: Whether the stage that writes it has finished.
        fates: States by why they were kept or dropped, keys of REASONS, every state in one; empty before advantages.
        advantages: (BINS,) candidates of kept states by advantage.
        gaps: (GAP_BINS,) states with more than one candidate by gap.
        kept_gaps: (GAP_BINS,) those of them that are kept.
        moves: (pairs, 3) advantage, log-prob before and after training of each trained pair; empty before training.
        heldout: (states, 3) the critic's V, correct completions and completions of the problems it was not trained on.
        sample: (tree index, tree) by ``interest``.
    """

    source: str
    finished: bool
    problems: int = 0
    states: int = 0
    pairs: int = 0
    fates: dict[str, int] = field(default_factory=dict)
    advantages: np.ndarray = field(default_factory=lambda: np.zeros(BINS, dtype=np.int64))
    gaps: np.ndarray = field(default_factory=lambda: np.zeros(GAP_BINS, dtype=np.int64))
    kept_gaps: np.ndarray = field(default_factory=lambda: np.zeros(GAP_BINS, dtype=np.int64))
    moves: np.ndarray = field(default_factory=lambda: np.zeros((0, 3)))
    heldout: np.ndarray = field(default_factory=lambda: np.zeros((0, 3)))
    sample: list[tuple[int, Tree]] = field(default_factory=list)


def summarise(iteration: Iteration, sample: int, heldout_fraction: float) -> TreeSummary | None:
    """Read an iteration's trees once, shard after shard; None if it has collected none.

    The ``sample`` trees of largest ``interest`` are kept whole. ``heldout_fraction`` is the critic's setting.
    """
    stages = [iteration.stages[name] for name in ("advantages", "collect")]
    stage = next((stage for stage in stages if any(stage.path.glob("shard-*.parquet"))), None)
    if stage is None:
        return None
    summary = TreeSummary(stage.name, stage.done is not None)
    scores = Scores(iteration.stages["actor"].path / "scores.parquet")
    moves: list[tuple[float, float, float]] = []
    heldout: list[tuple[float, float, float]] = []
    ranked: list[tuple[float, int, Tree]] = []
    for index, tree in enumerate(scan_trees(stage.path)):
        scores.fill(index, tree)
        _count(summary, tree, moves)
        if is_heldout(tree.problem_id, heldout_fraction):
            valued = (state for state in tree.states if state.rewards and state.value is not None)
            heldout += [(state.value, sum(state.rewards), len(state.rewards)) for state in valued]
        # The actor scores the first trees only: show those, so that the log-probs before and after can be seen.
        if tree.trunks and scores.covers(index):
            ranked = sorted([*ranked, (-interest(tree), index, tree)], key=lambda row: row[:2])[:sample]
    summary.sample = [(index, tree) for _, index, tree in ranked]
    summary.moves = np.array(moves, dtype=np.float64).reshape(-1, 3)
    summary.heldout = np.array(heldout, dtype=np.float64).reshape(-1, 3)
    return summary


def gap(state: State) -> float | None:
    """max Â − min Â over a state's candidates; None without advantages."""
    known = [c.advantage for c in state.candidates if c.advantage is not None]
    return max(known) - min(known) if known else None


def interest(tree: Tree) -> float:
    """Orders trees for display: the mean gap of kept states, more if both correct and wrong trunks can be compared."""
    gaps = [gap(state) or 0.0 for state in tree.states if state.kept is not False]
    mixed = len({trunk.right for trunk in tree.trunks}) == 2
    return (sum(gaps) / len(gaps) if gaps else 0.0) + (0.5 if mixed else 0.0)


def _count(summary: TreeSummary, tree: Tree, moves: list[tuple[float, float, float]]) -> None:
    summary.problems += 1
    for state in tree.states:
        summary.states += 1
        if state.kept is None:
            continue
        fate = _fate(state)
        summary.fates[fate] = summary.fates.get(fate, 0) + 1
        spread = gap(state)
        if spread is not None and len(state.candidates) > 1:
            place = _bin(spread, 0.0, 1.0, GAP_BINS)
            summary.gaps[place] += 1
            summary.kept_gaps[place] += state.kept
        if not state.kept:
            continue
        for candidate in state.candidates:
            summary.pairs += 1
            if candidate.advantage is None:
                continue
            summary.advantages[_bin(candidate.advantage, -1.0, 1.0, BINS)] += 1
            if candidate.ref_logp is not None and candidate.logp_after is not None:
                moves.append((candidate.advantage, candidate.ref_logp, candidate.logp_after))


def _fate(state: State) -> str:
    if state.kept:
        return "kept"
    if not state.rewards:
        return "empty"
    if len(state.candidates) < 2:
        return "single"
    return {0.0: "wrong", 1.0: "right"}.get(state.mc, "small")


def _bin(value: float, low: float, high: float, bins: int) -> int:
    # An advantage of exactly a bin's edge, stored as float32, must not fall below it.
    return min(bins - 1, max(0, int((value - low) / (high - low) * bins + 1e-6)))


class Scores:
    """Log-probs before and after training, from the actor's scores.parquet: they join the trees by index."""

    def __init__(self, path: Path) -> None:
        """Read ``path`` if it is there; InputError if it is not a table of scores."""
        self._rows: dict[str, np.ndarray] = {}
        self._path = path
        if not path.exists():
            return
        rows, _ = read_table(path, ("tree", "state", "candidate", "ref_logp", "logp_after"))
        order = np.argsort(rows["tree"], kind="stable")
        self._rows = {name: values[order] for name, values in rows.items()}

    def covers(self, index: int) -> bool:
        """Whether tree ``index`` lies among those that were scored; all do while none was."""
        return not len(self._rows.get("tree", ())) or index <= self._rows["tree"][-1]

    def fill(self, index: int, tree: Tree) -> None:
        """Set ``ref_logp`` and ``logp_after`` of the candidates of tree ``index`` that were trained on."""
        if not self._rows:
            return
        for row in self._of(index):
            try:
                candidate = tree.states[row["state"]].candidates[row["candidate"]]
            except IndexError as error:
                raise InputError(f"{self._path}: tree {index} has no such step {row}; other trees?") from error
            candidate.ref_logp, candidate.logp_after = row["ref_logp"], row["logp_after"]

    def _of(self, index: int) -> Iterator[dict[str, Any]]:
        start, stop = np.searchsorted(self._rows["tree"], [index, index + 1])
        for i in range(start, stop):
            yield {name: values[i].item() for name, values in self._rows.items()}
