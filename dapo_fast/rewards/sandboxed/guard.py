"""The process that stands outside a sandbox: bounds what all of it uses together, and ends it with its caller.

Of the standard library alone. Limits of the kernel's are for one process each, and a cgroup is rarely ours to
make; so this one adds up what its descendants use. It is no process of the sandbox's own, which can neither see nor
signal it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from typing import Any

_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
# One process is bounded by the kernel already; several need a closer look.
_SECONDS_BETWEEN_LOOKS, _WITH_SEVERAL = 0.02, 0.004
_FORGET_AFTER = 50  # looks: then a number that was another's may be one of ours


class Family:
    """All descendants of ``root``, and what they use."""

    def __init__(self, root: int, proc: int) -> None:
        """``proc``: a descriptor of ``/proc``."""
        self.root, self.proc = root, proc
        self.members: list[int] = []
        self.asleep = False
        self.cpu_seconds = 0.0
        self.threads = 0
        self._ever = {root}
        self._others: set[str] = set()
        self._looks = 0

    def look(self) -> None:
        """Find its members, whether all of them sleep, and the CPU time they have had."""
        self._looks += 1
        if self._looks % _FORGET_AFTER == 0:
            self._others.clear()
        listed = [name for name in os.listdir(self.proc) if name.isdigit()]
        self._others &= set(listed)
        self.members, self.asleep, self.threads = [], True, 0
        ticks = 0
        for name in sorted(set(listed) - self._others, key=int):
            stat = self._read(f"{name}/stat").rpartition(b")")[2].split()
            if len(stat) < 18:
                continue
            # A child's number is above its parent's, all but always: one pass in order finds the whole tree.
            if int(name) not in self._ever and int(stat[1]) not in self._ever:
                self._others.add(name)
                continue
            self._ever.add(int(name))
            self.members.append(int(name))
            self.threads += int(stat[17])
            ticks += sum(map(int, stat[11:15]))
            self.asleep = self.asleep and not self._works(name, stat)
        # What died without being waited for is in no sum any more.
        self.cpu_seconds = max(self.cpu_seconds, ticks / _TICK)

    def memory(self, enough: int) -> int:
        """Bytes in use; shared pages count once where that decides whether it is more than ``enough``."""
        resident = 0
        for pid in self.members:
            fields = self._read(f"{pid}/statm").split()
            resident += int(fields[1]) * _PAGE if len(fields) > 1 else 0
        if resident <= enough:
            return resident
        return sum(map(self._proportional, self.members))

    def end(self) -> None:
        """Kill all of it, and the process group of this one, who leads it.

        A wrapper that is killed while it starts can leave a first process inside that waits for it for ever, which is
        in the group still.
        """
        for pid in self.members:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        os.killpg(0, signal.SIGKILL)

    def _proportional(self, pid: int) -> int:
        for line in self._read(f"{pid}/smaps_rollup").splitlines():
            if line.startswith(b"Pss:"):
                return int(line.split()[1]) * 1024
        fields = self._read(f"{pid}/statm").split()
        return int(fields[1]) * _PAGE if len(fields) > 1 else 0

    def _works(self, name: str, stat: list[bytes]) -> bool:
        """Runs, waits for a core or for a disk."""
        if stat[0] in (b"R", b"D"):
            return True
        if int(stat[17]) < 2:
            return False
        try:
            folder = os.open(f"{name}/task", os.O_RDONLY | os.O_DIRECTORY, dir_fd=self.proc)
        except OSError:
            return False
        try:
            states = [self._read(f"{name}/task/{task}/stat").rpartition(b")")[2].split() for task in os.listdir(folder)]
        finally:
            os.close(folder)
        return any(state and state[0] in (b"R", b"D") for state in states)

    def _read(self, name: str) -> bytes:
        try:
            file = os.open(name, os.O_RDONLY, dir_fd=self.proc)
        except OSError:
            return b""
        try:
            return os.read(file, 1 << 16)
        except OSError:
            return b""
        finally:
            os.close(file)


def watch(child: int, proc: int, caller: int, limits: dict[str, Any]) -> int:
    """Wait for ``child`` and return its exit code; where its family exceeds a limit or ``caller`` is gone, end all.

    Args:
        child: The sandbox's first process; its end is the end of all.
        proc: A descriptor of ``/proc``.
        caller: The process that must be this one's parent.
        limits: ``memory_bytes`` and ``processes`` (threads included) of all of them; ``seconds`` of CPU time and, where
            ``sleep_counts``, of time in which all sleep; ``own_processes`` of those that are the sandbox's, not the
            program's.
    """
    _before_all_others()
    family = Family(child, proc)
    slept = 0.0
    before = time.monotonic()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    while True:
        # All the dead: in the first process of a container, others' orphans may be ours.
        while True:
            try:
                ended, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return 1
            if ended == child:
                return os.waitstatus_to_exitcode(status) & 0xFF
            if not ended:
                break
        now = time.monotonic()
        begun = time.thread_time()
        family.look()
        slept += now - before if family.asleep and limits["sleep_counts"] else 0.0
        before = now
        if (
            os.getppid() != caller
            or slept + family.cpu_seconds > limits["seconds"]
            # Not the bound itself, which the kernel keeps, but where it does not: it counts no processes of root's.
            or family.threads > 2 * limits["processes"] + 8
            or family.memory(limits["memory_bytes"]) > limits["memory_bytes"]
        ):
            family.end()
        looking = time.thread_time() - begun
        wait_s = _WITH_SEVERAL if len(family.members) > limits["own_processes"] else _SECONDS_BETWEEN_LOOKS
        signal.sigtimedwait({signal.SIGCHLD}, max(wait_s, 5 * looking))


def _before_all_others() -> None:
    """Where root may: a look takes a fraction of a millisecond, and a thousand processes must not hold it up."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, -20)
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))


def close_other_files(kept: int) -> None:
    """The pipes must close when the sandbox ends, whatever this process holds."""
    os.closerange(0, kept)
    os.closerange(kept + 1, 1 << 16)


def main() -> None:
    """Arguments behind the first: the limits as JSON, with ``caller``; then the command that makes the sandbox."""
    limits = json.loads(sys.argv[2])
    child = os.fork()
    if not child:
        try:
            os.execv(sys.argv[3], sys.argv[3:])
        finally:
            os._exit(127)
    proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
    close_other_files(proc)
    os._exit(watch(child, proc, limits["caller"], limits))
