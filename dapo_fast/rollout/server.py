"""A sampling server for as long as it is needed: started on the policy at hand, watched, started again if it dies.

Its life is tied to the run's (see ``guard``): it ends with the run, however that ends, and what a killed run left
behind is ended by the next one, if it is provably that run's.
"""

from __future__ import annotations

import logging
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from dapo_fast.config import EngineSettings
from dapo_fast.errors import InputError
from dapo_fast.rollout import guard
from dapo_fast.rundir import read_state
from dapo_fast.state import Serving
from dapo_fast.sums import check_model

log = logging.getLogger("dapo_fast.rollout.server")

_TAIL_BYTES = 8192
_TAIL_LINES = 6


@contextmanager
def serving(settings: EngineSettings, model: str | Path, log_path: Path) -> Iterator[Server | None]:
    """Run ``settings.command`` with ``{model}`` replaced, until the block ends; None where no command is set.

    Args:
        settings: ``command`` is split like a shell line and started without a shell; ``urls`` are polled until each
            answers ``/v1/models``, for at most ``start_timeout_s``.
        model: Hugging Face directory of the policy to serve.
        log_path: Where the server's output goes; beside it, with the ending ``.pid``, lies who it is. A run keeps both
            in one place, or a killed run's server could not be found.

    Raises:
        InputError: something that is not this run's answers at one of ``urls`` already, which would be taken for the
            server; the policy is damaged; or the command cannot be started, ends early, or does not answer in time.
    """
    if settings.command is None:
        yield None
        return
    for weights in (False, True):
        check_model(model, weights)
    server = Server(settings, model, log_path)
    try:
        server.start()
        yield server
    finally:
        server.stop()


class Server:
    """The server that ``engine.command`` starts, behind its guard.

    Attributes:
        generation: How often it has been started.
        last_words: The end of its output when it last died, on one line.
    """

    def __init__(self, settings: EngineSettings, model: str | Path, log_path: Path) -> None:
        self.settings = settings
        self.log_path = log_path
        self.generation = 0
        self.last_words = ""
        self._pid_file = log_path.with_suffix(".pid")
        self._words = [word.replace("{model}", str(model)) for word in shlex.split(settings.command or "")]
        self._guard: subprocess.Popen | None = None
        self._began = 0  # where in the log its present life begins
        self._closing = threading.Event()
        self._lock = threading.RLock()

    def start(self) -> None:
        """Start it and wait until every URL answers; see ``serving``."""
        if not Path("/proc/self/stat").exists():
            raise InputError("engine.command: needs Linux, whose /proc says whether the server lives; start it by hand")
        self._end_what_was_left()
        for url in self.settings.urls:
            if _answers(url):
                raise InputError(
                    f"engine.urls: {url} answers before engine.command has started anything there, and what it serves "
                    "may be another policy; stop it, or take another port"
                )
        with self._lock:
            self._start()

    def stop(self) -> None:
        """End it with all its children; says so, since that can take a while."""
        self._closing.set()
        with self._lock:
            if self._guard is None:
                return
            if self._guard.poll() is None:
                log.info("stopping the server; it has %.0f s to end by itself", guard.GRACE)
                self._guard.terminate()
            self._wait_for_guard()

    def revive(self, generation: int) -> bool:
        """Start it again if it has died since its start number ``generation``.

        Threads that meet the same death wait for the same start.

        Returns:
            Whether there is a newer server than ``generation``; False where that one is alive.

        Raises:
            InputError: it does not come up again; or the block of ``serving`` has ended.
        """
        with self._lock:
            if self._closing.is_set():
                raise InputError("the server has been stopped")
            if self.generation != generation:
                return True
            if not self._died():
                return False
            self._wait_for_guard()
            self.last_words = self.tail()
            log.warning(
                "the server has ended %s and is started again; its last words (%s): %s",
                *(_how(self._guard.returncode), self.log_path, self.last_words),
            )
            self._start()
            return True

    def tail(self) -> str:
        """The last lines of its output since it was started, on one line."""
        with open(self.log_path, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(self._began, file.tell() - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
        lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
        return " | ".join(lines[-_TAIL_LINES:])[-1000:] or "none"

    def _start(self) -> None:
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log_path, "ab") as output:
            self._began = output.tell()
            self._guard = subprocess.Popen(
                [sys.executable, "-I", guard.__file__, str(self._pid_file), *self._words],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._wait_until_ready()
        self.generation += 1

    def _wait_until_ready(self) -> None:
        log.info("waiting for %s (its output: %s)", ", ".join(self.settings.urls), self.log_path)
        deadline = time.monotonic() + self.settings.start_timeout_s
        waiting = list(self.settings.urls)
        while waiting:
            if self._died():
                self._wait_for_guard()
                raise InputError(
                    f"engine.command: ended {_how(self._guard.returncode)} before it served; its last words "
                    f"({self.log_path}): {self.tail()}"
                )
            if time.monotonic() > deadline:
                raise InputError(
                    f"engine.command: no answer from {waiting[0]} in {self.settings.start_timeout_s:.0f} s; its last "
                    f"words ({self.log_path}): {self.tail()}"
                )
            waiting = [url for url in waiting if not _answers(url)]
            if waiting and self._closing.wait(0.2):
                raise InputError("the server was stopped while it started")

    def _died(self) -> bool:
        """Whether the command's process is gone; others of its session may live on, which the guard then ends."""
        if self._guard.poll() is not None:
            return True
        known = self._known()
        # Until the guard has written its file, it is the one before, which knows another guard.
        ours = known.get("guard") == guard.identity(self._guard.pid)
        return ours and not guard.alive(known.get("server"))

    def _wait_for_guard(self) -> None:
        try:
            self._guard.wait(guard.GRACE + 30)
        except subprocess.TimeoutExpired:
            self._guard.kill()
            self._guard.wait()
        if self._guard.returncode < 0:  # it was killed itself, and has ended nothing
            guard.end(self._guard.pid)
            self._pid_file.unlink(missing_ok=True)

    def _known(self) -> dict:
        try:
            return read_state(self._pid_file, Serving)
        except InputError:  # there is none, or a kill or a full disk left half of one: it proves nothing
            return {}

    def _end_what_was_left(self) -> None:
        """End the server of an earlier run that was killed, if it still runs and is certainly that."""
        known = self._known()
        owner, guarding, server = (known.get(name) for name in ("owner", "guard", "server"))
        if guard.alive(owner) and owner != guard.identity(os.getpid()):
            raise InputError(f"{self._pid_file}: process {owner.split()[0]} has a server running here; wait or stop it")
        if guard.alive(guarding) or guard.alive(server):
            session = int(guarding.split()[0])
            log.warning(
                "ending the server that a killed run left behind (session %d), within %.0f s", session, guard.GRACE
            )
            deadline = time.monotonic() + guard.GRACE + 30
            while guard.alive(guarding) and time.monotonic() < deadline:  # it has noticed by itself
                time.sleep(0.1)
            guard.end(session, 0 if guard.alive(guarding) else guard.GRACE)
        self._pid_file.unlink(missing_ok=True)


def _how(code: int) -> str:
    """How a process ended, from the code that a shell, or Popen, gives."""
    number = code - 128 if code > 128 else -code
    if number in {s.value for s in signal.Signals}:
        return f"by {signal.Signals(number).name}"
    return f"with code {code}"


def _answers(url: str) -> bool:
    try:
        answer = httpx.get(f"{url.rstrip('/').removesuffix('/v1')}/v1/models", timeout=5)
    except httpx.HTTPError:
        return False
    return answer.is_success or answer.status_code in (401, 403)  # it is there and wants a key
