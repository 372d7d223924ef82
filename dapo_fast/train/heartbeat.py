"""Who is still alive: a process of the training that dies or hangs stops the others, with one message.

torchrun notices a process that dies on its own node; this covers other launchers, other nodes, and processes that
hang. It beats in a thread, so neither a long step nor a wait in a collective is a silence.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time

import torch.distributed as dist

from dapo_fast.errors import first_line

log = logging.getLogger("dapo_fast.train")

HEARTBEAT_S = 2.0
LOST_AFTER_S = 30.0
_REPORTED = "reported"  # how many ranks have given up


class Pulse:
    """What a rank tells in the store and reads there, three calls a beat: its own beats, those of the rank before it in
    a ring, and whether anybody has given up, which is how the others hear of a rank that only its neighbour watches."""

    def __init__(self, store: dist.Store, rank: int, size: int) -> None:
        self._store = store
        self._own = f"beat {rank}"
        self._before = (rank - 1) % size
        self._seen: tuple[int, float] | None = None

    def beat(self, now: float) -> str | None:
        """Tell that this rank lives; why it should give up, or None.

        Args:
            now: Seconds of a clock that goes on steadily.
        """
        self._store.add(self._own, 1)
        if self._store.add(_REPORTED, 0):
            return "another rank gave up"
        count = self._store.add(f"beat {self._before}", 0)
        if self._seen is None or count != self._seen[0]:
            self._seen = (count, now)
        elif now - self._seen[1] > LOST_AFTER_S and not self._store.add(f"left {self._before}", 0):
            return f"no sign of life from rank {self._before} for {LOST_AFTER_S:.0f} s"
        return None


class Heart:
    """Tells the other ranks that this one lives, and ends the process when one of them has stopped telling."""

    def __init__(self, store: dist.Store, rank: int, size: int) -> None:
        """Start beating; with ``size`` 1 there is nobody to tell."""
        self._store = store
        self._rank = rank
        self._alone = size == 1
        self._pulse = Pulse(store, rank, size)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        if not self._alone:
            self._thread.start()

    def _beat(self) -> None:
        while not self._stopped.wait(HEARTBEAT_S):
            try:
                reason = self._pulse.beat(time.monotonic())
            except RuntimeError as error:
                reason = f"the launcher's store is gone: {first_line(error)}"
            if reason is not None and not self._stopped.is_set():
                self.give_up(reason)

    def stop(self, in_order: bool = True) -> None:
        """This rank leaves: in good order, or for the others to miss it, who may wait for it in a collective."""
        self._stopped.set()
        if self._alone:
            return
        self._thread.join()
        if in_order:
            with contextlib.suppress(RuntimeError):
                self._store.add(f"left {self._rank}", 1)

    def give_up(self, reason: str) -> None:
        """End this process at once; the first rank to do so says why.

        The others are gone and a collective may hang for ever: neither an exception nor an orderly exit is safe.
        """
        first = True
        with contextlib.suppress(RuntimeError):
            first = self._store.add(_REPORTED, 1) == 1
        if first:
            log.error(
                "rank %d: another process of this training died or hangs (%s); stopping. Its own message says why; "
                "the same command resumes from the last checkpoint.",
                self._rank,
                reason,
            )
        logging.shutdown()
        os._exit(1)


def is_lost_peer(error: BaseException) -> bool:
    """Whether ``error`` is a collective's way of saying that another process is gone."""
    signs = ("Connection closed by peer", "Connection reset", "Broken pipe", "gloo/transport")
    return isinstance(error, dist.DistBackendError) or any(sign in str(error) for sign in signs)
