"""Memory for sandboxes side by side: what all of them together may use, and who waits until there is some."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import re
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from dapo_fast.errors import InputError

MEMORY_VARIABLE = "DAPO_FAST_SANDBOX_MEMORY"
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_CGROUPS = ("memory.max", "memory/memory.limit_in_bytes")  # v2, v1, as a container sees its own
_NAME = "\0dapo-fast-sandboxes-{user}-{number}"  # abstract: of no file
_held: set[socket.socket] = set()
_turn = itertools.count()


def total_bytes() -> int:
    """What all of this user's sandboxes on this machine may use: the setting, or half of the machine's memory.

    Raises:
        InputError: the environment variable is no size.
    """
    text = os.environ.get(MEMORY_VARIABLE)
    if text is None:
        return _machine_bytes() // 2
    match = re.fullmatch(r"([1-9][0-9]*)([KMGT]?)(?:i?B)?", text.strip())
    if match is None or int(match[1]) * _UNITS[match[2]] < 2**28:
        raise InputError(f"{MEMORY_VARIABLE}={text}: must be a size of at least 256M, such as 16G")
    return int(match[1]) * _UNITS[match[2]]


@functools.cache
def _machine_bytes() -> int:
    sizes = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for name in _CGROUPS:
        with contextlib.suppress(OSError, ValueError):
            sizes.append(int((Path("/sys/fs/cgroup") / name).read_text()))
    return min(sizes)


@contextlib.contextmanager
def reserved(most: int) -> Iterator[int]:
    """Wait for the memory of a program and its judge; gives what each may use: ``most``, or half of a smaller total.

    A place is a socket's name, which one process of the machine can hold at a time: it leaves no file behind, and it is
    free again however its holder ends.
    """
    total = total_bytes()
    each = min(most, total // 2)
    places = total // (2 * each)
    if not sys.platform.startswith("linux"):  # nothing but an insistent user's own programs run there
        yield each
        return
    place = None
    while place is None:
        # Not all at the first place first: the next one is all but always free.
        start = next(_turn)
        place = next(filter(None, (_taken((start + i) % places) for i in range(places))), None)
        if place is None:
            time.sleep(0.01)
    _held.add(place)
    try:
        yield each
    finally:
        _held.discard(place)
        place.close()


def _taken(number: int) -> socket.socket | None:
    place = socket.socket(socket.AF_UNIX)
    try:
        place.bind(_NAME.format(user=os.getuid(), number=number))
    except OSError:
        place.close()
        return None
    return place


def _leave_places() -> None:
    """A forked process holds none, however long it lives."""
    for place in _held:
        place.close()
    _held.clear()


os.register_at_fork(after_in_child=_leave_places)
