"""How a batch fills the ranks: into how many packs it is cut, where, and which rank takes which."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from dapo_fast.data.pack import Pack, empty_pack, pack_cost

log = logging.getLogger("dapo_fast.packing")

Packed = TypeVar("Packed")

TOLERANCE = 0.005  # of a pack's work, between the limit that is found and the least
# Where a prefix alone is over the limit, whoever reads it has memory for it: room for as many tokens again makes a pack
# of its branches at most twice as large as what must fit, and what the prefix costs to repeat at most half of all.
GROWTH = 2


@dataclass(frozen=True)
class Ranks:
    """Who reads a batch's packs.

    Attributes:
        size: How many there are.
        busy_tokens: Tokens of a pack below which a rank takes no less time over it.
        hidden_size: Of the model: what its attention costs beside its matrix products.
        padded: It reads sequences, each in a row as long as the pack's longest; else trees.
    """

    size: int = 1
    busy_tokens: int = 1
    hidden_size: int = 1024
    padded: bool = False

    def work(self, depth: np.ndarray) -> np.ndarray:
        """``pack_cost`` of paths of ``depth`` tokens."""
        return depth + depth * (depth + 1) / (12 * self.hidden_size)


ONE = Ranks()


class _Sums:
    """What stretches of a line come to: their first item whole, of each that follows what is not shared."""

    def __init__(self, whole: np.ndarray, shared: np.ndarray) -> None:
        self._shared = shared
        self._until = np.concatenate([[0], np.cumsum(whole - shared)])

    @property
    def total(self) -> float:
        return float(self._until[-1])

    def stop(self, start: int, limit: float) -> int:
        """The end of the longest stretch from ``start`` that comes to ``limit`` at most; one item at least."""
        room = limit - self._shared[start] + self._until[start]
        return max(start + 1, int(np.searchsorted(self._until, room, side="right")) - 1)


def cut_line(sizes: Sequence[int], shared: Sequence[int], most: int, ranks: Ranks = ONE) -> list[slice]:
    """Where to cut a line of items into packs that fill the ranks.

    Neighbours share the beginnings of their paths, so that only a cut repeats one.

    Args:
        sizes: ``(n,)`` tokens of each item's whole path.
        shared: ``(n,)`` tokens of it that are the item's before as well; 0 where a tree begins.
        most: Tokens of a pack at most; with a shared prefix of more than that ``GROWTH`` times the prefix, or one path.

    Returns:
        The stretch of items of each pack.
    """
    if not len(sizes):
        return []
    whole, common = np.asarray(sizes, dtype=np.float64), np.asarray(shared, dtype=np.float64)
    tokens, work = _Sums(whole, common), _Sums(ranks.work(whole), ranks.work(common))

    def cut(limit: float) -> list[slice]:
        packs: list[slice] = []
        start = 0
        while start < len(whole):
            repeated = common[start + 1] if start + 1 < len(common) else 0  # by a cut after the first item
            room = GROWTH * repeated if repeated > most else most
            stop = min(tokens.stop(start, room), work.stop(start, limit))
            packs.append(slice(start, stop))
            start = stop
        return packs

    return _evened(cut, work.total, tokens.total, ranks)


def first_fit(sizes: Sequence[int], most: int, ranks: Ranks = ONE) -> list[list[int]]:
    """Items that share nothing, by index, first-fit decreasing in packs of ``most`` tokens that fill the ranks."""
    whole = np.asarray(sizes, dtype=np.float64)
    work = ranks.work(whole)
    order = np.argsort(-whole, kind="stable").tolist()

    def fill(limit: float) -> list[list[int]]:
        packs: list[list[int]] = []
        room, left = np.zeros(len(whole)), np.zeros(len(whole))
        for index in order:
            fits = (room[: len(packs)] >= whole[index]) & (left[: len(packs)] >= work[index])
            chosen = int(fits.argmax()) if fits.any() else len(packs)
            if chosen == len(packs):
                packs.append([])
                room[chosen], left[chosen] = most, limit
            packs[chosen].append(index)
            room[chosen] -= whole[index]
            left[chosen] -= work[index]
        return [sorted(pack) for pack in packs]

    return _evened(fill, float(work.sum()), float(whole.sum()), ranks) if len(whole) else []


def by_length(sizes: Sequence[int], most: int, ranks: Ranks = ONE) -> list[list[int]]:
    """Sequences by index, of like lengths, in packs whose rows are of ``most`` tokens together, padding included."""
    whole = np.asarray(sizes, dtype=np.float64)
    work = ranks.work(whole)
    order = np.argsort(-whole, kind="stable")

    def cut(limit: float) -> list[list[int]]:
        packs: list[list[int]] = []
        start = 0
        while start < len(order):
            longest = order[start]
            rows = max(1, int(min(most / whole[longest], limit / work[longest])))
            packs.append(sorted(order[start : start + rows].tolist()))
            start += rows
        return packs

    return _evened(cut, float(work.sum()), float(whole.sum()), ranks) if len(whole) else []


def _evened(divide: Callable[[float], list[Packed]], work: float, tokens: float, ranks: Ranks) -> list[Packed]:
    """The packs of the smallest limit on their work that makes no more of them than the ranks are to take.

    That is as many rounds of one pack a rank as full packs would need, unless packs would then be too small to keep a
    rank busy.

    Args:
        divide: The packs for a limit; with none, packs are full.
        work, tokens: Of the whole, with nothing repeated.
    """
    packs = divide(math.inf)
    if ranks.size == 1:
        return packs
    rounds = math.ceil(len(packs) / ranks.size)
    count = max(len(packs), min(rounds * ranks.size, int(tokens / ranks.busy_tokens)))
    low, high = work / count, work
    while high - low > TOLERANCE * low:
        limit = (low + high) / 2
        tried = divide(limit)
        if len(tried) <= count:
            packs, high = tried, limit
        else:
            low = limit
    return packs


def in_rounds(costs: Sequence[float], size: int) -> list[list[int]]:
    """Items, by index, for each of ``size`` ranks: of nearly the same cost, and as many of them but for one.

    They are dealt in rounds from the largest down, in each round the largest to the rank with the least, so that those
    of one round are alike.
    """
    ranks: list[list[int]] = [[] for _ in range(size)]
    had = [0.0] * size
    order = sorted(range(len(costs)), key=lambda i: -costs[i])
    for start in range(0, len(order), size):
        free = sorted(range(size), key=had.__getitem__)
        for rank, index in zip(free, order[start : start + size], strict=False):
            ranks[rank].append(index)
            had[rank] += costs[index]
    return ranks


def deal(packs: Sequence[Pack], to: Ranks, lengths: Sequence[int] | None = None) -> list[list[Pack]]:
    """Packs for each rank: the same number, of nearly the same work; a round that is not full gets empty packs."""
    costs = [pack_cost(pack, to.hidden_size) for pack in packs]
    dealt = in_rounds(costs, to.size)
    rounds = math.ceil(len(packs) / to.size)
    filler = empty_pack(None if to.padded else lengths)
    ranks = [[packs[i] for i in mine] + [filler] * (rounds - len(mine)) for mine in dealt]
    work = [sum(costs[i] for i in mine) for mine in dealt]
    if to.size > 1 and sum(work):
        fullest = max(work) * to.size / sum(work)
        log.debug("dealt %d packs to %d ranks: the fullest has %.3f of the mean work", len(packs), to.size, fullest)
    return ranks
