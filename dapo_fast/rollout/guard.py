"""Stands between a run and the server that it started: whatever becomes of the run, the server ends with it.

``python -I guard.py PIDFILE WORD...`` runs the words in a session of its own and ends that session, every process of
it, when the words' process ends, when it is told to (SIGTERM), or when its parent, the run, is gone, by kill -9 too.
Each process first gets SIGTERM and ``GRACE`` seconds, in which a server removes its shared memory, then SIGKILL. (A
parent-death signal does less: it reaches one process of many, and comes when the thread ends that started it.)

PIDFILE says who is who as long as anything runs, so that a later run can tell what it may end if this process was
killed as well. Linux only, for /proc; the standard library only, so that it starts at once.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

GRACE = 30.0  # seconds from SIGTERM to SIGKILL
_POLL = 0.1


def identity(pid: int) -> str | None:
    """What tells a process from all others that ever had its number, on any machine; None where none is alive."""
    fields = _stat(pid)
    return fields and f"{pid} {fields[19]} {Path('/proc/sys/kernel/random/boot_id').read_text().strip()}"


def alive(who: str | None) -> bool:
    """Whether the process of that ``identity`` still runs."""
    return who is not None and identity(int(who.split()[0])) == who


def members(session: int) -> list[int]:
    """Processes of a session or process group, this one left out."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            fields = _stat(int(entry))
            if fields and str(session) in fields[2:4]:
                found.append(int(entry))
    return found


def end(session: int, grace: float = GRACE) -> None:
    """End every process of ``session`` but this one: SIGTERM, and SIGKILL for those there after ``grace`` seconds."""
    _signal(members(session), signal.SIGTERM)
    deadline = time.monotonic() + grace
    while members(session) and time.monotonic() < deadline + GRACE:  # one in the kernel's hands is past helping
        if time.monotonic() > deadline:
            _signal(members(session), signal.SIGKILL)
        time.sleep(_POLL)


def _signal(pids: Sequence[int], number: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def _stat(pid: int) -> list[str] | None:
    """/proc/PID/stat from the state on; None for a process that is gone, or a zombie, which is dead."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields


def main(pid_file: Path, words: list[str]) -> int:
    """Run ``words`` until one of the three ends; returns their exit code as a shell would."""
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    owner = os.getppid()
    who = {"owner": identity(owner), "guard": identity(os.getpid())}
    try:
        server = subprocess.Popen(words, stdin=subprocess.DEVNULL)
    except OSError as error:
        print(f"cannot start {words[0]} ({error})", flush=True)
        return 127
    temporary = pid_file.with_name(pid_file.name + ".tmp")
    temporary.write_text(json.dumps(who | {"server": identity(server.pid)}))
    os.replace(temporary, pid_file)
    while server.poll() is None and not told and os.getppid() == owner:
        time.sleep(_POLL)
    code = server.poll()  # of its own accord, or None
    try:
        # In a session of its own everything of it is the server's; in another (by hand) there is one child to end.
        session = os.getpid() if os.getsid(0) == os.getpid() else server.pid
        end(session)
    finally:
        server.poll()
        pid_file.unlink(missing_ok=True)
    code = server.returncode if code is None else code
    return 128 - code if code is not None and code < 0 else code or 0


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]), sys.argv[2:]))
