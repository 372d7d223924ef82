"""The token trie: prefixes and candidate steps of a tree, each token once, in depth-first order.

With the trunk's continuation first, attention needs one integer a token: key k is visible to query q iff
``k <= q < subtree_end[k]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(slots=True)
class Arrays:
    """A trie laid out: what `Pack` has of the same names, one row a token."""

    input_ids: np.ndarray
    position_ids: np.ndarray
    subtree_end: np.ndarray
    runs: np.ndarray


class Trie:
    """A token trie whose unbranched stretches (runs) are stored whole; ids are given in order of insertion."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.starts: list[int] = []  # first id of each run
        self.attach: list[int] = []  # id that each run hangs on; -1: the root
        self.ends: set[int] = set()  # last id of each run
        self.branches: dict[tuple[int, int], int] = {}  # (id, next token) -> first id of a run hanging there

    def insert(self, node: int, path: Sequence[int]) -> list[int]:
        """Walk ``path`` from ``node``, adding what is new; the ids of its tokens."""
        tokens, ends, branches = self.tokens, self.ends, self.branches
        ids: list[int] = []
        for index, token in enumerate(path):
            if node >= 0 and node not in ends and tokens[node + 1] == token:
                node += 1
            else:
                child = branches.get((node, token))
                if child is None:
                    start = len(tokens)
                    branches[node, token] = start
                    self.starts.append(start)
                    self.attach.append(node)
                    tokens.extend(path[index:])
                    ends.add(len(tokens) - 1)
                    ids.extend(range(start, len(tokens)))
                    return ids
                node = child
            ids.append(node)
        return ids

    def layout(self) -> tuple[np.ndarray, Arrays]:
        """Depth-first rows: (row of each id, the trie's arrays).

        Below a run's tokens stand the runs that hang on it, deepest first, so that at every token the continuation
        of its own run precedes the branches; insertion order decides among branches of one token.
        """
        total, count = len(self.tokens), len(self.starts)
        starts = np.asarray(self.starts, dtype=np.int64)
        attach = np.asarray(self.attach, dtype=np.int64)
        lengths = np.diff(starts, append=total)
        parents = np.searchsorted(starts, attach, side="right") - 1  # -1 for roots
        parent_list, sizes = parents.tolist(), lengths.tolist()
        for run in range(count - 1, -1, -1):  # children come after their parents
            if parent_list[run] >= 0:
                sizes[parent_list[run]] += sizes[run]
        offsets, depths = [0] * count, [0] * count
        cursor = (np.zeros(count, dtype=np.int64) + lengths).tolist()  # next free row, relative to the parent
        root_cursor = 0
        starts_list, attach_list = self.starts, self.attach
        for run in np.lexsort((np.arange(count), -attach, parents)).tolist():
            parent = parent_list[run]
            if parent < 0:
                offsets[run] = root_cursor
                root_cursor += sizes[run]
                continue
            offsets[run] = offsets[parent] + cursor[parent]
            cursor[parent] += sizes[run]
            depths[run] = depths[parent] + attach_list[run] - starts_list[parent] + 1
        offset = np.asarray(offsets, dtype=np.int64)
        run_of = np.repeat(np.arange(count), lengths)
        local = np.arange(total) - starts[run_of]
        rows = offset[run_of] + local
        hanging = np.zeros(total + 1, dtype=np.int64)
        np.add.at(hanging, attach + 1, np.asarray(sizes))  # slot 0 takes the roots
        below = np.cumsum(hanging[1:])
        last = starts + lengths - 1
        subtree_end = (offset + lengths)[run_of] + below[last][run_of] - below + hanging[1:]
        order = np.argsort(offset)
        parent_rows = np.where(attach >= 0, rows[attach], -1)
        arrays = Arrays(
            input_ids=np.empty(total, dtype=np.int64),
            position_ids=np.empty(total, dtype=np.int64),
            subtree_end=np.empty(total, dtype=np.int64),
            runs=np.stack([offset, lengths, parent_rows], axis=1)[order],
        )
        arrays.input_ids[rows] = np.asarray(self.tokens, dtype=np.int64)
        arrays.position_ids[rows] = np.asarray(depths)[run_of] + local
        arrays.subtree_end[rows] = subtree_end
        return rows, arrays
