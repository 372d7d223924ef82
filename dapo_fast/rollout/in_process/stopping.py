"""Samples that end with their first step."""

from __future__ import annotations

import numpy as np

from dapo_fast.rollout.in_process.slots import Slots
from dapo_fast.rollout.steps import Splitter


class Stopping:
    """Where growing samples are cut.

    To cut the whole of a sample into steps for every token of it would take time that grows with its square: a sample
    is looked at from the first token on in which a step may end.
    """

    def __init__(self, splitter: Splitter) -> None:
        self._splitter = splitter
        # (prompt, sample) of those that have said something: whether the first step may have ended.
        self._may_have_ended: dict[tuple[int, int], bool] = {}

    def cut(self, rows: Slots, ended: np.ndarray) -> np.ndarray:
        """Rows whose first step is whole now that each has a token more; what they have after it is dropped.

        Args:
            ended: (count,) rows that end with this token whatever it says.
        """
        cut = np.zeros(rows.count, dtype=bool)
        for slot, token in enumerate(rows.last[: rows.count].tolist()):
            if self._may_end(rows, slot, token):
                first = self._splitter.whole_first(rows.sampled(slot), over=bool(ended[slot]))
                if first is not None:
                    rows.drawn[slot] = first
                    cut[slot] = True
        return cut

    def _may_end(self, rows: Slots, slot: int, token: int) -> bool:
        job = rows.jobs[slot]
        sample = (job.prompt, job.sample)
        known = self._may_have_ended.get(sample)
        if known:
            return True
        found = self._splitter.may_end(token, leading=known is None)
        if found is not None:
            self._may_have_ended[sample] = found
        return bool(found)
