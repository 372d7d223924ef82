"""A shard of trees as flat Arrow columns, from which trees are made one at a time.

As Python lists the trees of 7,500 problems take fifteen times what their numbers do. Columns are views of the table's
memory, which may be a mapped file: then nothing is in memory but what was just asked for.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, TypeVar, overload

import numpy as np
import pyarrow as pa

from dapo_fast.data.tree import Candidate, State, Tree, Trunk

Item = TypeVar("Item")

_NUMBERS = tuple(field.name for field in fields(Candidate) if field.name != "ids")
_OF_TREE = ("problem_id", "prompt", "answer", "sampled", "correct")


class Made(Sequence[Item]):
    """A list of known length whose items are made when the first of them is asked for."""

    __slots__ = ("_items", "_length", "_make")

    def __init__(self, length: int, make: Callable[[], list[Item]]) -> None:
        self._length = length
        self._make = make
        self._items: list[Item] | None = None

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if self._items is None:
            self._items = self._make()
        return self._items[index]


class _Lists:
    """A column of lists of numbers, or of structs: its values, and where each list begins and ends among them."""

    def __init__(self, column: pa.Array) -> None:
        if column.null_count or column.values.null_count:
            raise ValueError("a list or an item of it is null")
        self.values = column.values
        self.offsets = column.offsets.to_numpy()

    def span(self, row: int) -> tuple[int, int]:
        """Where list ``row`` begins and ends."""
        return int(self.offsets[row]), int(self.offsets[row + 1])

    def lists(self, start: int, stop: int) -> list[list]:
        """The lists of rows ``start`` to ``stop``."""
        ends = self.offsets[start : stop + 1].tolist()
        values = _values(self.values, ends[0], ends[-1])
        return [values[a - ends[0] : b - ends[0]] for a, b in itertools.pairwise(ends)]


def _values(column: pa.Array, start: int, stop: int) -> list:
    part = column.slice(start, stop - start)
    # By way of NumPy where it can be: ten times as fast.
    return part.to_pylist() if part.null_count else part.to_numpy(zero_copy_only=False).tolist()


class Columns:
    """The trees of one shard.

    Attributes:
        batch: Where they are.
        count: How many trees there are.
    """

    def __init__(self, batch: pa.RecordBatch) -> None:
        """Take the columns of ``batch``, whose schema is the store's.

        Raises:
            ValueError: text that is not UTF-8, or a list that is null.
        """
        batch.validate(full=True)
        self.batch = batch
        self.count = batch.num_rows
        self._rows = {name: batch.column(name) for name in _OF_TREE}
        self._prompts = _Lists(batch.column("prompt_ids"))
        self._trunks = _Lists(batch.column("trunks"))
        self._trunk = {name: self._trunks.values.field(name) for name in ("reward", "finished")}
        self._responses = _Lists(self._trunks.values.field("ids"))
        self._step_ends = _Lists(self._trunks.values.field("step_ends"))
        self._states = _Lists(batch.column("states"))
        self._state = {name: self._states.values.field(name) for name in ("trunk", "step", "value", "kept")}
        self._rewards = _Lists(self._states.values.field("rewards"))
        self._candidates = _Lists(self._states.values.field("candidates"))
        self._steps = _Lists(self._candidates.values.field("ids"))
        self._numbers = {name: self._candidates.values.field(name) for name in _NUMBERS}
        self._set: dict[str, np.ndarray] = {}

    def tree(self, row: int) -> Tree:
        """Tree ``row``, whose trunks, states and candidates are made when they are asked for."""
        of_tree: dict[str, Any] = {name: column[row].as_py() for name, column in self._rows.items()}
        trunks, states = self._trunks.span(row), self._states.span(row)
        return Tree(
            prompt_ids=self._prompts.lists(row, row + 1)[0],
            trunks=Made(trunks[1] - trunks[0], lambda: self._make_trunks(*trunks)),
            states=Made(states[1] - states[0], lambda: self._make_states(*states)),
            **of_tree,
        )

    def whole_tree(self, row: int) -> Tree:
        """Tree ``row`` in lists, which may be changed."""
        tree = self.tree(row)
        tree.trunks, tree.states = list(tree.trunks), list(tree.states)
        for state in tree.states:
            state.candidates = list(state.candidates)
        return tree

    def set(self, name: str, places: np.ndarray, values: np.ndarray) -> None:
        """Have a number of candidates be ``values`` from now on, in trees made from now on.

        Args:
            name: Of a number that may be None, as which it counts wherever it is not set.
            places: ``(n, 3)`` row, state and candidate.
            values: ``(n,)``.
        """
        if name not in self._set:
            self._set[name] = np.full(len(self._numbers[name]), np.nan, dtype=np.float32)
        row, state, candidate = places.T
        place = self._candidates.offsets[self._states.offsets[row] + state] + candidate
        self._set[name][place] = values

    def _make_trunks(self, start: int, stop: int) -> list[Trunk]:
        columns = [_values(self._trunk[name], start, stop) for name in ("reward", "finished")]
        ids, ends = self._responses.lists(start, stop), self._step_ends.lists(start, stop)
        return [Trunk(*row) for row in zip(ids, ends, *columns, strict=True)]

    def _make_states(self, start: int, stop: int) -> list[State]:
        trunks, steps, values, kept = (_values(column, start, stop) for column in self._state.values())
        rewards = self._rewards.lists(start, stop)
        candidates = [self._later(place) for place in range(start, stop)]
        return [State(*row) for row in zip(trunks, steps, rewards, candidates, values, kept, strict=True)]

    def _later(self, state: int) -> Made[Candidate]:
        start, stop = self._candidates.span(state)
        return Made(stop - start, lambda: self._make_candidates(start, stop))

    def _make_candidates(self, start: int, stop: int) -> list[Candidate]:
        numbers = [self._number(name, start, stop) for name in _NUMBERS]
        return [Candidate(*row) for row in zip(self._steps.lists(start, stop), *numbers, strict=True)]

    def _number(self, name: str, start: int, stop: int) -> list:
        if name in self._set:
            return [None if number != number else number for number in self._set[name][start:stop].tolist()]
        return _values(self._numbers[name], start, stop)
