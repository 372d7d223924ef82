"""Computer algebra in worker processes: a hang or a blow-up costs one worker and a wrong verdict, never the caller.

math-verify's own timeouts are signals, which threads cannot use, and which do not stop a huge power.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import queue
import resource
import select
import signal
import subprocess
import sys
import threading

from dapo_fast.names import import_path
from dapo_fast.rewards.cores import usable_cores

log = logging.getLogger("dapo_fast.rewards")

CPU_SECONDS = 2.0  # of the worker, for one question: a busy machine does not change verdicts
WALL_SECONDS = 600.0  # only of a worker that hangs without computing; an overloaded machine must not reach it
_START_SECONDS = 600.0  # importing sympy on a loaded machine
_MEMORY_BYTES = 4 * 2**30
_QUESTIONS_OF_A_WORKER = 5_000  # then a fresh one, since sympy's caches grow


class _Worker:
    """One process that answers one question at a time over pipes."""

    def __init__(self) -> None:
        self.asked = 0
        environment = {
            k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "TMPDIR")
        }
        environment["PYTHONPATH"] = import_path()  # so that a source checkout works from any directory
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dapo_fast.rewards.algebra"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # Ctrl-C in the terminal is the parent's to handle
        )
        if self._read(_START_SECONDS) != b"ready\n":
            self.kill()
            raise RuntimeError("the algebra worker did not start: is math-verify installed?")

    def ask(self, given: str, reference: str) -> bool | None:
        """The verdict; None if the worker died or was killed over it."""
        assert self.process.stdin is not None
        self.asked += 1
        try:
            self.process.stdin.write(json.dumps([given, reference]).encode() + b"\n")
            self.process.stdin.flush()
        except OSError:
            self.kill()
            return None
        answer = self._read(WALL_SECONDS)
        if answer not in (b"1\n", b"0\n"):
            self.kill()
            return None
        return answer == b"1\n"

    def _read(self, seconds: float) -> bytes:
        assert self.process.stdout is not None
        poll = select.poll()  # select() cannot take file numbers above 1,023
        poll.register(self.process.stdout, select.POLLIN)
        return self.process.stdout.readline() if poll.poll(seconds * 1000) else b""

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


class _Pool:
    """Idle workers of this process. As many questions at a time as there are cores."""

    def __init__(self) -> None:
        self.idle: queue.LifoQueue[_Worker] = queue.LifoQueue()
        self.slots = threading.BoundedSemaphore(usable_cores())

    def ask(self, given: str, reference: str) -> bool:
        with self.slots:
            try:
                worker = self.idle.get_nowait()
            except queue.Empty:
                worker = _Worker()
            verdict = worker.ask(given, reference)
            if verdict is None:
                log.debug("algebra gave up on %.80r against %.80r", given, reference)
            elif worker.asked >= _QUESTIONS_OF_A_WORKER:
                worker.kill()
            else:
                self.idle.put(worker)
            return bool(verdict)

    def close(self) -> None:
        while not self.idle.empty():
            self.idle.get_nowait().kill()


_pool = _Pool()


def _forget_workers() -> None:
    # After a fork the pipes belong to the parent; two processes on one pipe would read each other's verdicts.
    global _pool
    _pool = _Pool()


os.register_at_fork(after_in_child=_forget_workers)
atexit.register(lambda: _pool.close())


def same_by_algebra(given: str, reference: str) -> bool:
    """Whether two LaTeX expressions or relations are the same. False when it cannot tell in ``CPU_SECONDS``."""
    return _pool.ask(given, reference)


# In the worker ------------------------------------------------------------------------------------------------------


def _serve() -> None:
    from dapo_fast.rewards import symbolic

    # First use builds the parser's tables; it must not count against a question.
    symbolic.same("x+1", "1+x")
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    output = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # nothing that a library prints may pass for a verdict
    output.write(b"ready\n")
    for line in sys.stdin.buffer:
        given, reference = json.loads(line)
        # SIGPROF's default kills the process even inside one long multiplication.
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        try:
            verdict = symbolic.same(given, reference)
        except Exception:
            # sympy and the parser raise anything from TypeError to RecursionError on what is no mathematics.
            verdict = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        output.write(b"1\n" if verdict else b"0\n")


if __name__ == "__main__":
    _serve()
