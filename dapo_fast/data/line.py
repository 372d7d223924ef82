"""A batch as a line of paths whose neighbours share their beginnings: what parts come to, and evening them out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

CLOSE = 1.03  # the fullest part's work over the mean at which nothing more is moved
MOVES = 40  # at most
EMPTIEST = 8  # parts that the fullest may give to, beside its neighbours on the line
FEW = 10  # chains of two parts for which all 2^10 ways to divide them are tried


def chains(whole: np.ndarray, common: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and last of each stretch of paths of which every one begins with all of the one before.

    Whoever reads its last path reads them all, so that to divide it saves nothing.
    """
    last = np.flatnonzero(np.append(common[1:] < whole[:-1], True)) if len(whole) else np.zeros(0, dtype=np.int64)
    return np.append(0, last[:-1] + 1)[: len(last)], last


class Line:
    """Chains in depth-first order.

    Attributes:
        whole: ``(n,)`` tokens of each chain's last path.
        common: ``(n,)`` tokens of it that are the chain's before as well; 0 where a tree begins.
        work: Of paths of as many tokens.
    """

    def __init__(self, sizes: Sequence[int], shared: Sequence[int], work: Callable[[np.ndarray], np.ndarray]) -> None:
        whole, common = np.asarray(sizes, dtype=np.float64), np.asarray(shared, dtype=np.float64)
        self._first, self._last = chains(whole, common)
        self.whole, self.common, self.work = whole[self._last], common[self._first], work

    def __len__(self) -> int:
        return len(self.whole)

    def paths(self, part: np.ndarray) -> list[int]:
        """The paths of these chains, by index."""
        return [path for chain in part.tolist() for path in range(self._first[chain], self._last[chain] + 1)]


class Sums:
    """What stretches of a line come to: their first item whole, of each that follows what is not shared."""

    def __init__(self, whole: np.ndarray, shared: np.ndarray) -> None:
        self._shared = shared
        self._until = np.concatenate([[0], np.cumsum(whole - shared)])

    @property
    def total(self) -> float:
        """Of the whole line."""
        return float(self._until[-1])

    def stop(self, start: int, limit: float) -> int:
        """The end of the longest stretch from ``start`` that comes to ``limit`` at most; one item at least."""
        room = limit - self._shared[start] + self._until[start]
        return max(start + 1, int(np.searchsorted(self._until, room, side="right")) - 1)


class _Shared:
    """Tokens that any two chains of a line share: the least of ``common`` between them, from a sparse table."""

    def __init__(self, common: np.ndarray) -> None:
        self._least = [common]  # level k: of 2^k neighbours
        while 2 ** len(self._least) <= len(common):
            half = 2 ** (len(self._least) - 1)
            self._least.append(np.minimum(self._least[-1][:-half], self._least[-1][half:]))

    def __call__(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """``(n,)`` of pairs, ``first`` before ``second``."""
        level = np.frexp(second - first)[1] - 1
        found = np.empty(len(first))
        for k in np.unique(level).tolist():
            of = level == k
            found[of] = np.minimum(self._least[k][first[of] + 1], self._least[k][second[of] - 2**k + 1])
        return found


@dataclass(frozen=True)
class _Division:
    """Two parts divided anew: the ``first`` and the ``second``, and the work of the ``fuller``."""

    fuller: float
    first: np.ndarray
    second: np.ndarray


class Evening:
    """Moves chains from the fullest of some parts of a line to others, as long as that makes the fullest smaller.

    What a part repeats of others counts, so that mostly branches of a prefix move that both parts have.

    Attributes:
        parts: The chains of each, ascending.
        longest: Tokens of a part at most: as many as those had that were given, if that is more than ``most``.
    """

    def __init__(self, line: Line, parts: Sequence[np.ndarray], most: float) -> None:
        self._line, self._shared = line, _Shared(line.common)
        self._alone = line.work(line.whole)
        self.parts = list(parts)
        self._work = np.array([self._sum(part, self._alone, line.work) for part in self.parts])
        self.longest = max(most, *(self._tokens(part) for part in self.parts))

    @property
    def fullest(self) -> float:
        """The work of the fullest part."""
        return float(self._work.max())

    def run(self) -> None:
        """Move work between the parts until nothing that is tried helps, or they are alike."""
        for _ in range(MOVES):
            fullest = int(self._work.argmax())
            if self._work[fullest] <= CLOSE * self._work.mean():
                break
            near = [k for k in (fullest - 1, fullest + 1) if 0 <= k < len(self.parts)]
            others = dict.fromkeys([*np.argsort(self._work, kind="stable")[:EMPTIEST].tolist(), *near])
            found = [(to, self._divided(fullest, to)) for to in others if to != fullest]
            to, best = min(found, key=lambda pair: pair[1].fuller)
            if not self._take(fullest, to, best):
                break

    def _sum(self, part: np.ndarray, alone: np.ndarray, of: Callable[[np.ndarray], np.ndarray]) -> float:
        if not len(part):
            return 0.0
        return float(alone[part].sum() - of(self._shared(part[:-1], part[1:])).sum())

    def _tokens(self, part: np.ndarray) -> float:
        return self._sum(part, self._line.whole, lambda tokens: tokens)

    def _added(self, chains: np.ndarray, part: np.ndarray) -> np.ndarray:
        """What each of ``chains`` adds to the work of ``part``, or if it is in it, added."""
        known = np.zeros(len(chains))
        before = np.searchsorted(part, chains) - 1
        after = np.searchsorted(part, chains, side="right")
        some = before >= 0
        known[some] = self._shared(part[before[some]], chains[some])
        some = after < len(part)
        known[some] = np.maximum(known[some], self._shared(chains[some], part[after[some]]))
        return self._alone[chains] - self._line.work(known)

    def _divided(self, start: int, to: int) -> _Division:
        """The best way found to divide two parts."""
        if len(self.parts[start]) + len(self.parts[to]) <= FEW:
            return self._best_of_all(np.sort(np.concatenate([self.parts[start], self.parts[to]])))
        return self._exchanged(start, to)

    def _best_of_all(self, chains: np.ndarray) -> _Division:
        """Of every way to divide ``chains``; subset number Σ 2^i of the i-th."""
        count = len(chains)
        work = np.zeros(2**count)
        for chain in range(count):
            # Subsets whose last is this chain: those of the ones before it, which share most with their own last.
            known = self._shared(chains[:chain], np.repeat(chains[chain], chain))
            known = np.concatenate([[0.0], np.repeat(known, 2 ** np.arange(chain))])
            work[2**chain : 2 ** (chain + 1)] = work[: 2**chain] + self._alone[chains[chain]] - self._line.work(known)
        fuller = np.maximum(work, work[::-1])
        best = int(fuller.argmin())
        first = (best >> np.arange(count)) & 1 == 1
        return _Division(float(fuller[best]), chains[first], chains[~first])

    def _exchanged(self, start: int, to: int) -> _Division:
        """With one chain of the first in the second, or one of each exchanged."""
        mine, its = self.parts[start], self.parts[to]
        left = self._work[start] - self._added(mine, mine)
        made = self._work[to] + self._added(mine, its)
        after = np.maximum(left, made)[:, None]
        if len(its):
            back, freed = self._added(its, mine), self._added(its, its)
            after = np.concatenate([after, np.maximum(left[:, None] + back, made[:, None] - freed)], axis=1)
        give, take = np.unravel_index(after.argmin(), after.shape)
        taken = its[take - 1 : take]
        first = np.sort(np.append(np.delete(mine, give), taken))
        second = np.sort(np.append(np.setdiff1d(its, taken), mine[give]))
        # What both chains share with one another is counted here only.
        fuller = max(self._sum(part, self._alone, self._line.work) for part in (first, second))
        return _Division(fuller, first, second)

    def _take(self, start: int, to: int, division: _Division) -> bool:
        """Divide two parts so, if that helps and neither is too large."""
        new = (division.first, division.second)
        if division.fuller >= self._work[start] or max(self._tokens(part) for part in new) > self.longest:
            return False
        for place, part in zip((start, to), new, strict=True):
            self.parts[place] = part
            self._work[place] = self._sum(part, self._alone, self._line.work)
        return True
