"""What must hold of trees that are read back: whoever changes a shard may give it a digest too.

Readers rely on it where they index and divide: what is said here by name would be an IndexError somewhere below.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

_MAYBE = {"answer", "value", "q", "advantage", "ref_logp", "logp_after", "kept"}  # null where they are not known


def check_trees(batch: pa.RecordBatch) -> None:
    """ValueError, naming a problem, where a tree of ``batch``, whose schema is the store's, is none.

    Args:
        batch: Without nulls in its lists (``columns.Columns``).
    """
    _Trees(batch).check()


class _Trees:
    """Rows of trunks, states and candidates, each with the tree that it is of."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        self._batch = batch
        rows = np.arange(batch.num_rows)
        trunks, states = batch.column("trunks"), batch.column("states")
        self._trunks, self._of_trunk = trunks.flatten(), np.repeat(rows, _lengths(trunks))
        self._states, self._of_state = states.flatten(), np.repeat(rows, _lengths(states))
        candidates = self._states.field("candidates")
        self._candidates, self._of_candidate = candidates.flatten(), np.repeat(self._of_state, _lengths(candidates))

    def check(self) -> None:
        """Raise what is wrong, the first of it."""
        self._check_nulls()
        self._check_tokens(self._batch.column("prompt_ids"), np.arange(self._batch.num_rows), "prompt_ids")
        self._check_tokens(self._trunks.field("ids"), self._of_trunk, "trunks.ids")
        self._check_tokens(self._candidates.field("ids"), self._of_candidate, "candidates.ids")
        self._check_steps()
        self._check_states()
        rewards = self._states.field("rewards")
        of_reward = np.repeat(self._of_state, _lengths(rewards))
        self._check_shares(_numbers(rewards.flatten()), of_reward, "rewards")
        self._check_shares(_numbers(self._trunks.field("reward")), self._of_trunk, "trunks.reward")
        self._check_shares(_numbers(self._states.field("value")), self._of_state, "states.value")
        for name in ("reward", "value", "q"):
            self._check_shares(_numbers(self._candidates.field(name)), self._of_candidate, f"candidates.{name}")
        for name in ("count", "n"):
            self._refuse(_numbers(self._candidates.field(name)) < 0, self._of_candidate, f"candidates.{name} below 0")
        for name in ("advantage", "ref_logp", "logp_after", "right"):
            wild = np.isinf(_numbers(self._candidates.field(name)))
            self._refuse(wild, self._of_candidate, f"candidates.{name} is infinite")

    def _refuse(self, wrong: np.ndarray, of: np.ndarray, what: str) -> None:
        if wrong.any():
            name = self._batch.column("problem_id")[int(of[int(wrong.argmax())])]
            raise ValueError(f"problem {name.as_py()!r}: {what}")

    def _check_nulls(self) -> None:
        tables = [
            (self._batch.to_struct_array(), np.arange(self._batch.num_rows)),
            (self._trunks, self._of_trunk),
            (self._states, self._of_state),
            (self._candidates, self._of_candidate),
        ]
        for table, of in tables:
            for name in (field.name for field in table.type if field.name not in _MAYBE):
                null = table.field(name).is_null().to_numpy(zero_copy_only=False)
                self._refuse(null, of, f"{name} is null")

    def _check_tokens(self, lists: pa.ListArray, of: np.ndarray, name: str) -> None:
        lengths = _lengths(lists)
        self._refuse(lengths == 0, of, f"{name} is empty")
        self._refuse(lists.flatten().to_numpy() < 0, np.repeat(of, lengths), f"{name} holds a token below 0")

    def _check_steps(self) -> None:
        ends, ids = self._trunks.field("step_ends"), _lengths(self._trunks.field("ids"))
        lengths, values = _lengths(ends), ends.flatten().to_numpy()
        self._refuse(lengths == 0, self._of_trunk, "step_ends is empty")
        last = np.cumsum(lengths) - 1
        before = np.concatenate([[0], values[:-1]])
        before[(last + 1)[:-1]] = 0
        of_end = np.repeat(self._of_trunk, lengths)
        self._refuse(values <= before, of_end, "step_ends do not increase")
        self._refuse(values[last] != ids, self._of_trunk, "step_ends do not end where the response does")

    def _check_states(self) -> None:
        trunk, step = (_numbers(self._states.field(name)).astype(np.int64) for name in ("trunk", "step"))
        trunks = _lengths(self._batch.column("trunks"))
        first = np.cumsum(trunks) - trunks
        exists = (trunk >= 0) & (trunk < trunks[self._of_state])
        steps = _lengths(self._trunks.field("step_ends"))
        place = np.where(exists, first[self._of_state] + trunk, 0)
        within = exists & (step >= 0) & (step < steps[place]) if len(steps) else exists
        # The prompt is a state even where no response was kept.
        self._refuse(~within & ((trunk != 0) | (step != 0)), self._of_state, "a state at a step that no trunk has")

    def _check_shares(self, numbers: np.ndarray, of: np.ndarray, name: str) -> None:
        """Numbers from 0 to 1, or NaN for null: rounding in fp32 may take the mean of some past them."""
        self._refuse((numbers < -1e-3) | (numbers > 1 + 1e-3), of, f"{name} is not from 0 to 1")


def _lengths(lists: pa.ListArray) -> np.ndarray:
    return lists.value_lengths().to_numpy(zero_copy_only=False)


def _numbers(column: pa.Array) -> np.ndarray:
    """fp64, NaN for null."""
    return column.to_numpy(zero_copy_only=False).astype(np.float64)
