"""The trees of a store as a sequence of which nothing is in memory but the few that were asked for last."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np
import pyarrow as pa

from dapo_fast.data.columns import Columns
from dapo_fast.data.tree import Tree

# Trees that are kept as they were made. A batch of 2,048 pairs asks about ten trees, again and again, and the next one
# is made while its numbers are counted.
KEPT = 32


class _ByIndex(Sequence[Tree]):
    """A sequence that makes the tree of an index, and of a slice only notes the indices."""

    @overload
    def __getitem__(self, index: int) -> Tree: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Tree]: ...
    def __getitem__(self, index: int | slice) -> Tree | Sequence[Tree]:
        chosen = range(len(self))[index]
        return Chosen(self, chosen) if isinstance(chosen, range) else self._tree(chosen)

    @abstractmethod
    def _tree(self, index: int) -> Tree:
        """Tree ``index``, counted from 0."""


class MappedTrees(_ByIndex):
    """The trees of a file that ``store.write_columns`` wrote, mapped into memory: its pages are the system's, shared by
    all processes that read it, and taken back where memory is short."""

    def __init__(self, path: Path) -> None:
        with pa.memory_map(str(path)) as source:
            reader = pa.ipc.open_file(source)
            self._shards = [Columns(reader.get_batch(number)) for number in range(reader.num_record_batches)]
        self._starts = np.cumsum([0] + [shard.count for shard in self._shards])
        self._made = functools.lru_cache(KEPT)(self._make)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _tree(self, index: int) -> Tree:
        return self._made(index)

    def _make(self, index: int) -> Tree:
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._shards[shard].tree(index - int(self._starts[shard]))

    def set(self, name: str, places: np.ndarray, values: np.ndarray) -> None:
        """``Columns.set``, with the tree's index in ``places``."""
        shards = np.searchsorted(self._starts, places[:, 0], side="right") - 1
        for shard in np.unique(shards).tolist():
            mine = shards == shard
            self._shards[shard].set(name, places[mine] - np.array([self._starts[shard], 0, 0]), values[mine])
        self._made.cache_clear()


class Chosen(_ByIndex):
    """Some trees of a sequence, by index."""

    def __init__(self, trees: Sequence[Tree], indices: Sequence[int]) -> None:
        self._trees = trees
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def _tree(self, index: int) -> Tree:
        return self._trees[self._indices[index]]
