"""Sandboxes for untrusted Python: bubblewrap where it works, else Linux namespaces by hand, else refusal.

In a sandbox there is no network, no process but its own, no environment, a read-only file system of the interpreter and
the system's libraries, and a private ``/tmp``; memory, processes, file sizes and time are bounded, and the end of
its first process is the end of all of them.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib.util
import json
import logging
import math
import os
import platform
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dapo_fast.errors import InputError
from dapo_fast.rewards.sandbox_init import FRAME_HEAD

log = logging.getLogger("dapo_fast.rewards")

INSECURE_VARIABLE = "DAPO_FAST_INSECURE_SANDBOX"
_SCRIPT = Path(__file__).with_name("sandbox_init.py")
# Through the loader and not as a script, so that its compiled form is reused: a third of the time of a start.
_START = (
    "import sys; from importlib.machinery import SourceFileLoader as Loader; "
    "exec(Loader('__main__', sys.argv[1]).get_code('__main__'), globals())"
)
_SYSTEM = ("/usr", "/lib", "/lib64", "/lib32", "/bin", "/etc/ld.so.cache", "/etc/alternatives")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")
_ENVIRONMENT = {"HOME": "/tmp", "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "OPENBLAS_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Limits:
    """What one sandbox may use."""

    seconds: float = 10.0  # of CPU time, rounded up; wall time is three times that and a second, for a busy machine
    memory_bytes: int = 2**30  # of address space, a process
    processes: int = 16  # threads included
    file_bytes: int = 2**24
    tmp_bytes: int = 2**26
    output_bytes: int = 2**24


class Sandboxed:
    """One running sandbox. Closing kills everything in it."""

    def __init__(self, role: str, orders: dict[str, Any], limits: Limits, fds: dict[str, int], method: str) -> None:
        """Start ``role`` ("script", "program" or "judge") with the file descriptors it is given by name."""
        self.deadline = time.monotonic() + 3 * limits.seconds + 1
        self.limits = limits
        orders = orders | {
            "role": role,
            "fds": fds,
            "isolated": method != "namespaces",
            "confined": method != "none",
            "stage": _stage() if method == "namespaces" else "",
            "read_only": _read_only_paths(),
            "site": [] if method == "none" else ["/site"],
            "environment": _ENVIRONMENT,
            "memory_bytes": limits.memory_bytes,
            "processes": limits.processes,
            "file_bytes": limits.file_bytes,
            "tmp_bytes": limits.tmp_bytes,
            "cpu_seconds": math.ceil(limits.seconds),
        }
        if method == "none":
            orders["processes"] = 2**20  # counts all of the user's processes there, so it can bound nothing
        self.process = subprocess.Popen(
            _command(method),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=tuple(fds.values()),
            env={},
            cwd="/",
            start_new_session=True,
        )
        self.send(orders)

    def send(self, value: Any) -> None:
        """One frame to the sandbox's standard input. What it does not read, it does not get."""
        assert self.process.stdin is not None
        data = json.dumps(value).encode()
        with contextlib.suppress(OSError):
            self.process.stdin.write(FRAME_HEAD.pack(len(data)) + data)
            self.process.stdin.flush()

    def output(self) -> bytes | None:
        """All of its standard output; None if it takes too long or writes too much."""
        assert self.process.stdout is not None
        poll = select.poll()
        poll.register(self.process.stdout, select.POLLIN | select.POLLHUP)
        parts: list[bytes] = []
        size = 0
        while True:
            left = self.deadline - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                return None
            part = os.read(self.process.stdout.fileno(), 1 << 16)
            if not part:
                return b"".join(parts)
            parts.append(part)
            size += len(part)
            if size > self.limits.output_bytes:
                return None

    def exit_code(self) -> int | None:
        """The first process's exit code; None if it does not end in time."""
        try:
            return self.process.wait(max(0.05, self.deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return None

    def close(self) -> None:
        """Kill what is left. The launcher's death kills the namespace's first process, and that kills the rest."""
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, 9)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def __enter__(self) -> Sandboxed:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def method(insecure: bool = False) -> str:
    """How programs are closed in here: "bubblewrap" or "namespaces"; "none" only where the user insists.

    Raises:
        InputError: neither works, and neither ``insecure`` nor the environment variable insists.
    """
    found, reasons = _working_method()
    if found:
        return found
    if insecure or os.environ.get(INSECURE_VARIABLE) == "1":
        _warn_insecure()
        return "none"
    raise InputError(
        f"no sandbox works here ({reasons}); install bubblewrap, allow user namespaces, or, for programs that you "
        f"trust, set {INSECURE_VARIABLE}=1"
    )


@functools.cache
def _working_method() -> tuple[str | None, str]:
    if not sys.platform.startswith("linux"):
        return None, "sandboxes need Linux"
    reasons = []
    # Bubblewrap maps its user to root when root starts it, and the kernel counts no processes of root.
    for candidate in ("namespaces", "bubblewrap") if os.geteuid() == 0 else ("bubblewrap", "namespaces"):
        if candidate == "bubblewrap" and shutil.which("bwrap") is None:
            reasons.append("bubblewrap: not installed")
            continue
        if candidate == "namespaces" and platform.machine() not in ("x86_64", "aarch64"):
            reasons.append(f"namespaces: not written for {platform.machine()}")
            continue
        orders = {"program": "import os\nprint('inside', len(os.listdir('/tmp')))"}
        null = os.open("/dev/null", os.O_RDONLY)
        try:
            with Sandboxed("script", orders, Limits(seconds=20), {"stdin": null}, candidate) as probe:
                if probe.output() == b"inside 0\n":
                    log.info("code sandbox: %s", candidate)
                    return candidate, ""
        finally:
            os.close(null)
        reasons.append(f"{candidate}: the kernel or container refuses")
    return None, "; ".join(reasons)


@functools.cache
def _warn_insecure() -> None:
    log.warning("RUNNING UNTRUSTED PROGRAMS WITHOUT A SANDBOX: they can read and write whatever this user can")


def _command(method: str) -> list[str]:
    python = [os.path.realpath(sys._base_executable), "-I", "-S"]
    if method != "bubblewrap":
        return [*python, "-c", _START, str(_SCRIPT)]
    wrapper = ["bwrap", "--unshare-all", "--unshare-user", "--die-with-parent", "--new-session", "--clearenv"]
    wrapper += ["--uid", "65534", "--gid", "65534", "--cap-drop", "ALL"]
    for source, target in _read_only_paths():
        if os.path.islink(source):
            wrapper += ["--symlink", os.readlink(source), target]
        else:
            wrapper += ["--dev-bind" if source.startswith("/dev/") else "--ro-bind", source, target]
    wrapper += ["--ro-bind", str(_SCRIPT), "/init.py"]
    wrapper += ["--size", str(Limits.tmp_bytes), "--tmpfs", "/tmp", "--remount-ro", "/", "--chdir", "/tmp"]
    return [*wrapper, *python, "/init.py"]


@functools.cache
def _read_only_paths() -> list[list[str]]:
    """[outside, inside] of all that a sandbox sees: the system's libraries, the interpreter, NumPy if installed."""
    paths: list[list[str]] = [[path, path] for path in (*_SYSTEM, *_DEVICES) if os.path.lexists(path)]
    prefix = os.path.realpath(sys.base_prefix)
    if not any(Path(prefix).is_relative_to(os.path.realpath(path)) for path, _ in paths):
        paths.append([prefix, prefix])
    numpy = importlib.util.find_spec("numpy")
    if numpy is not None and numpy.submodule_search_locations:
        package = Path(numpy.submodule_search_locations[0])
        for folder in (package, package.with_name("numpy.libs")):
            if folder.is_dir():
                paths.append([str(folder), f"/site/{folder.name}"])
    return paths


def _stage() -> str:
    # Each process its own, made once: every sandbox mounts its root over it in a mount namespace of its own.
    return _stage_of(os.getpid())


@functools.cache
def _stage_of(_: int) -> str:
    path = tempfile.mkdtemp(prefix="dapo-fast-sandbox-")
    owner = os.getpid()

    def remove() -> None:
        if os.getpid() == owner:
            with contextlib.suppress(OSError):
                os.rmdir(path)

    atexit.register(remove)
    return path


def close_all(files: Iterable[int]) -> None:
    """Close file descriptors."""
    for file in files:
        with contextlib.suppress(OSError):
            os.close(file)
