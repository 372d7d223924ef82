"""Processes that do not outlive the run: what is left on a GPU holds its memory against the next one."""

from __future__ import annotations

import ctypes
import signal
import sys

PR_SET_PDEATHSIG = 1  # Linux, prctl(2)


def end_on_sigterm() -> None:
    """Make SIGTERM end this process as an exception does: what is in ``finally`` runs."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def die_with_parent() -> None:
    """Of a new process, before it executes anything: the kernel kills it when its parent is gone, however that went."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
