"""How a batch fills the ranks: into how many packs it is cut, where, and which rank takes which."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from dapo_fast.data.line import FEW, Evening, Line, Sums
from dapo_fast.data.pack import Pack, empty_pack, pack_cost

log = logging.getLogger("dapo_fast.packing")

Packed = TypeVar("Packed")

TOLERANCE = 0.005  # of a pack's work, between the limit that is found and the least
# With room for four times its longest prefix, the packs of a trunk repeat at most about a seventh of its tree:
# (4/3) · 3 · ln(4/3) = 1.15, if as many branches hang on every part of it.
BRANCHES = 4
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
        longest: Tokens of a pack that it has memory for: where trunks are long, packs may grow up to that.
    """

    size: int = 1
    busy_tokens: int = 1
    hidden_size: int = 1024
    padded: bool = False
    longest: int = 0

    def work(self, depth: np.ndarray) -> np.ndarray:
        """What paths of ``depth`` tokens cost, each as ``pack_cost`` counts it."""
        return depth + depth * (depth + 1) / (12 * self.hidden_size)


ONE = Ranks()


def cut_line(sizes: Sequence[int], shared: Sequence[int], most: int, ranks: Ranks = ONE) -> list[list[int]]:
    """Which items of a line make up each pack, for packs that fill the ranks.

    Neighbours share the beginnings of their paths, so that only a cut repeats one.

    Args:
        sizes: ``(n,)`` tokens of each item's whole path.
        shared: ``(n,)`` tokens of it that are the item's before as well; 0 where a tree begins.
        most: Tokens of a pack at most; of one tree's ``BRANCHES`` times its longest prefix, as far as ``ranks.longest``
            allows; with a prefix that is longer itself ``GROWTH`` times that, or one path.

    Returns:
        The items of each pack, ascending.
    """
    if not len(sizes):
        return []
    line = Line(sizes, shared, ranks.work)
    tokens, work = Sums(line.whole, line.common), Sums(line.work(line.whole), line.work(line.common))
    heads = np.flatnonzero(line.common == 0)
    spans = np.diff(heads, append=len(line))
    ends = np.repeat(heads + spans, spans)
    grown = np.minimum(BRANCHES * np.repeat(np.maximum.reduceat(line.common, heads), spans), ranks.longest)

    def cut(limit: float) -> list[np.ndarray]:
        packs: list[np.ndarray] = []
        start = 0
        while start < len(line):
            repeated = line.common[start + 1] if start + 1 < len(line) else 0  # by a cut after the first item
            room = GROWTH * repeated if repeated > max(most, grown[start]) else most
            stop = max(tokens.stop(start, room), min(tokens.stop(start, grown[start]), ends[start]))
            stop = min(stop, work.stop(start, limit))
            packs.append(np.arange(start, stop))
            start = stop
        return packs

    packs = _evened(cut, work.total, tokens.total, ranks)
    if 1 < len(packs) <= ranks.size:
        packs = _evened_out(line, packs, most)
    return [line.paths(part) for part in packs]


def _evened_out(line: Line, packs: list[np.ndarray], most: int) -> list[np.ndarray]:
    """As many packs of nearly the same work; where chains are few, from the better of two beginnings."""
    starts = [packs]
    if len(line) <= FEW * len(packs):
        alone = line.work(line.whole).tolist()
        starts.append([np.array(sorted(part)) for part in in_rounds(alone, len(packs))])
    ways = [Evening(line, start, most) for start in starts]
    ways = [way for way in ways if way.longest <= max(most, ways[0].longest)]
    for way in ways:
        way.run()
    return min(ways, key=lambda way: way.fullest).parts


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
