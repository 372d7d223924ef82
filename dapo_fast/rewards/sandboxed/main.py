"""Read the orders, close in, play the part."""

from __future__ import annotations

import contextlib
import os
import sys

from .closing import give_up_privileges, isolate, limit, mount_tmp, refuse_system_calls
from .data import read_frame
from .judge import judge
from .program import Program, run_script
from .remote import Channel


def main() -> None:
    """Read the orders, close in, play the part."""
    orders = read_frame(0)
    if orders["method"] == "namespaces":
        isolate(orders)
    elif orders["method"] == "bubblewrap":
        mount_tmp("/tmp", orders["tmp_bytes"])
        os.chdir("/tmp")
    for path in orders["site"]:
        sys.path.append(path)
    os.environ.clear()
    os.environ.update(orders["environment"])
    limit(orders)
    if orders["method"] != "none":
        give_up_privileges()
        refuse_system_calls()
    sys.setrecursionlimit(5000)
    sys.set_int_max_str_digits(0)
    requests, replies, stdin = (orders["fds"].get(name, -1) for name in ("requests", "replies", "stdin"))
    nothing = os.open("/dev/null", os.O_RDWR)
    if orders["role"] == "script":
        os.dup2(nothing, 2)
        run_script(orders, stdin if orders["method"] == "none" else os.open("/dev/stdin", os.O_RDONLY))
        return
    verdict = os.dup(1)
    tests = read_frame(0) if orders["role"] == "judge" else None
    for file in (0, 1, 2):
        os.dup2(nothing, file)
    if tests is None:
        os.close(verdict)
        for file in range(3, 128):
            if file not in (requests, replies):
                with contextlib.suppress(OSError):
                    os.close(file)
        with contextlib.suppress(BaseException):
            Program(orders, requests, replies).serve()
        os._exit(0)
    try:
        judge(tests, Channel(requests, replies))
        os.write(verdict, b"right")
    except BaseException as error:
        os.write(verdict, f"wrong: {type(error).__name__}: {error}"[:500].encode("utf-8", "replace"))
    os._exit(0)
