"""Sandboxes for untrusted Python: bubblewrap where it works, else Linux namespaces by hand, else refusal.

In a sandbox there is no network, no process but its own, no environment, a read-only file system of the interpreter and
the system's libraries, and a private ``/tmp``. Memory, processes, files and time are bounded, by the kernel for each
process and by a guard outside (``sandboxed/guard.py``) for all of them together; the end of its first process, or of
its caller, is the end of all.
"""

from __future__ import annotations

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
from dapo_fast.rewards.memory import reserved
from dapo_fast.rewards.sandboxed.data import FRAME_HEAD

log = logging.getLogger("dapo_fast.rewards")

INSECURE_VARIABLE = "DAPO_FAST_INSECURE_SANDBOX"
_INSIDE = Path(__file__).with_name("sandboxed")
# A package of its own, behind the standard library's folders, which it must not shadow.
_START = "import sys; sys.path.append(sys.argv[1]); from sandboxed.{} import main; sys.path.pop(); main()"
_SYSTEM = ("/usr", "/lib", "/lib64", "/lib32", "/bin", "/etc/ld.so.cache", "/etc/alternatives")
_DEVICES = ("/dev/null", "/dev/urandom", "/dev/random")  # not zero: mapped, it is memory
_ENVIRONMENT = {"HOME": "/tmp", "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "OPENBLAS_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Limits:
    """What one sandbox may use."""

    seconds: float = 10.0  # of CPU time or asleep; the wall allows three times that and a minute
    memory_bytes: int = 2**30  # of all its processes together
    processes: int = 32  # threads included
    file_bytes: int = 2**24
    tmp_bytes: int = 2**26
    output_bytes: int = 2**24


class Sandboxed:
    """One running sandbox. Closing kills everything in it."""

    def __init__(
        self,
        role: str,
        orders: dict[str, Any],
        limits: Limits,
        fds: dict[str, int],
        method: str,
        errors: int = subprocess.DEVNULL,
    ) -> None:
        """Start ``role`` ("script", "program" or "judge") with the file descriptors it is given by name."""
        # The guard ends what works or sleeps for too long; this is for what a busy machine holds up.
        self.deadline = time.monotonic() + 3 * limits.seconds + 60
        self.limits = limits
        together = {
            "caller": os.getpid(),
            "seconds": limits.seconds,
            "sleep_counts": role != "judge",  # which waits for the program
            "memory_bytes": limits.memory_bytes - limits.tmp_bytes,  # /tmp is in no process's count
            "processes": limits.processes,
            "own_processes": _OWN_PROCESSES[method],
        }
        orders = orders | {
            "role": role,
            "fds": fds,
            "method": method,
            "limits": together,
            "read_only": _read_only_paths(),
            "site": [] if method == "none" else ["/site"],
            "environment": _ENVIRONMENT,
            "memory_bytes": limits.memory_bytes,
            # Outside of a sandbox all of the user's processes count, so it can bound nothing there.
            "processes": limits.processes if method != "none" else 2**20,
            "file_bytes": limits.file_bytes,
            "tmp_bytes": limits.tmp_bytes,
            "cpu_seconds": math.ceil(limits.seconds),
        }
        self.process = subprocess.Popen(
            _command(method, together, fds.get("stdin")),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
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
        """Kill what is left. The guard's death kills the namespace's first process, and that kills the rest."""
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
    # Never bubblewrap as root: it maps its user to root, whose processes the kernel does not count, and the guard alone
    # is too slow for a fork bomb.
    for candidate in ("namespaces",) if os.geteuid() == 0 else ("bubblewrap", "namespaces"):
        reason = _why_not(candidate)
        if reason is None:
            log.info("code sandbox: %s", candidate)
            return candidate, ""
        reasons.append(f"{candidate}: {reason}")
        if candidate == "bubblewrap" and _bubblewrap():
            log.warning("%s does not work here: %s", _bubblewrap(), reason)
    return None, "; ".join(reasons)


def _why_not(candidate: str) -> str | None:
    """None if the isolation works here."""
    if candidate == "bubblewrap" and _bubblewrap() is None:
        return "not installed"
    if candidate == "namespaces" and platform.machine() not in ("x86_64", "aarch64"):
        return f"not written for {platform.machine()}"
    if Path(os.path.realpath(sys.base_prefix)).is_relative_to("/tmp"):
        return f"{sys.base_prefix}: a sandbox has a /tmp of its own, so its Python must be elsewhere"
    orders = {"program": "import os\nprint('inside', len(os.listdir('/tmp')))"}
    with (
        tempfile.TemporaryFile() as errors,
        open("/dev/null", "rb") as nothing,
        reserved(Limits.memory_bytes) as memory,
    ):
        limits = Limits(seconds=10, memory_bytes=memory)
        fds = {"stdin": nothing.fileno()}
        with Sandboxed("script", orders, limits, fds, candidate, errors.fileno()) as probe:
            if probe.output() == b"inside 0\n":
                return None
            code = probe.exit_code()
        errors.seek(0)
        said = errors.read().decode("utf-8", "replace").strip().splitlines()
        return f"{said[-1] if said else 'no answer'} (exit code {code})"


def _bubblewrap() -> str | None:
    found = shutil.which("bwrap")
    return os.path.abspath(found) if found else None


@functools.cache
def _warn_insecure() -> None:
    log.warning("RUNNING UNTRUSTED PROGRAMS WITHOUT A SANDBOX: they can read and write whatever this user can")


# Of those that the guard sees: all but the program's first. Bubblewrap has one outside and one inside, namespaces one.
_OWN_PROCESSES = {"bubblewrap": 3, "namespaces": 2, "none": 1}


def _command(method: str, limits: dict[str, Any], stdin: int | None) -> list[str]:
    """What to start. In namespaces it forks its guard itself, else the guard starts the rest."""
    python = [os.path.realpath(sys._base_executable), "-I", "-S", "-c"]
    inside = [*python, _START.format("main"), str(_INSIDE.parent)]
    if method == "namespaces":
        return inside
    guard = [*python, _START.format("guard"), str(_INSIDE.parent), json.dumps(limits)]
    if method == "none":
        return [*guard, *inside]
    wrapper = [
        str(_bubblewrap()),
        "--unshare-all",
        "--unshare-user",
        "--die-with-parent",
        "--new-session",
        "--clearenv",
    ]
    # To mount /tmp with a bound of files, which it cannot: what runs inside gives the capability up.
    wrapper += ["--uid", "65534", "--gid", "65534", "--cap-drop", "ALL", "--cap-add", "CAP_SYS_ADMIN"]
    for source, target in _read_only_paths():
        if os.path.islink(source):
            wrapper += ["--symlink", os.readlink(source), target]
        else:
            wrapper += ["--dev-bind" if source.startswith("/dev/") else "--ro-bind", source, target]
    if stdin is not None:
        wrapper += ["--ro-bind-data", str(stdin), "/dev/stdin"]
    wrapper += ["--symlink", "/tmp", "/dev/shm", "--ro-bind", str(_INSIDE), "/init/sandboxed"]
    return [*guard, *wrapper, "--dir", "/tmp", "--remount-ro", "/", *inside[:-1], "/init"]


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


def close_all(files: Iterable[int]) -> None:
    """Close file descriptors."""
    for file in files:
        with contextlib.suppress(OSError):
            os.close(file)
