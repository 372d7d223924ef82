"""What runs in the sandbox: closes itself in, then is either the program under test or its judge.

A script of the standard library alone, started by ``sandbox.py`` with ``python -I -S``. Its standard input is one frame
(four bytes of length, JSON) with its orders. The judge and the program are two sandboxes that share two pipes and no
more: the program receives calls as plain data and answers with plain data. What it answers is rebuilt from its data on
the judge's side, so that no object of the program's making, with whatever ``__eq__``, ever meets an assertion, and no
name, module, frame or descriptor of the judge's exists where the program runs.
"""

from __future__ import annotations

import ast
import base64
import builtins
import collections
import collections.abc
import contextlib
import ctypes
import datetime
import decimal
import errno
import fractions
import importlib
import json
import math
import os
import platform
import re
import resource
import signal
import site
import struct
import sys
import types
import warnings
from importlib.machinery import SourceFileLoader
from typing import Any

NOBODY = 65534
MAX_FRAME = 32 * 2**20
FRAME_HEAD = struct.Struct(">I")

# Closing in ---------------------------------------------------------------------------------------------------------

NEW_NAMESPACES = 0x00020000 | 0x20000000 | 0x40000000 | 0x08000000 | 0x04000000  # mount, pid, net, ipc, uts
NEW_USER = 0x10000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 24, 38

libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    arguments = [text.encode() if text is not None else None for text in (source, target, kind)]
    _check(libc.mount(*arguments, ctypes.c_ulong(flags), data.encode() if data else None), f"mount {target}")


def _prctl(option: int, *values: int) -> None:
    padded = [ctypes.c_ulong(value) for value in (*values, 0, 0, 0, 0)[:4]]
    _check(libc.prctl(option, *padded), f"prctl {option}")


def _map_user(proc: int, outside_user: int, outside_group: int) -> None:
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{NOBODY} {outside_user} 1"),
        ("gid_map", f"{NOBODY} {outside_group} 1"),
    ):
        file = os.open(f"self/{name}", os.O_WRONLY, dir_fd=proc)
        try:
            os.write(file, text.encode())
        finally:
            os.close(file)


def isolate(orders: dict[str, Any]) -> None:
    """Enter new namespaces with a root directory of their own; returns in their second process, without privileges.

    This process stays outside as their guard. The first one inside waits for the second and takes all the others along
    when it ends. It runs nothing of the program's, which could otherwise shake off the signal that ties the sandbox to
    its owner, and outlive both.
    """
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    guard = _guard(orders["guard"])
    privileged = os.geteuid() == 0
    user, group = os.geteuid(), os.getegid()
    proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
    _check(libc.unshare(NEW_NAMESPACES | (0 if privileged else NEW_USER)), "unshare")
    if not privileged:
        _map_user(proc, user, group)
    child = os.fork()
    if child:
        guard.close_other_files(proc)
        os._exit(guard.watch(child, proc, orders["limits"]["caller"], orders["limits"]))
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    _new_root(orders["read_only"], orders["tmp_bytes"], orders["fds"].get("stdin"))
    if privileged:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # a change of user clears it
        _prctl(PR_SET_DUMPABLE, 1)
        # A user namespace of its own makes RLIMIT_NPROC count this sandbox's processes, not every sandbox's.
        if libc.unshare(NEW_USER) == 0:
            _map_user(proc, NOBODY, NOBODY)
    os.close(proc)
    _fork_and_reap()


def _guard(path: str) -> types.ModuleType:
    """The guard's script as a module, while it can still be read."""
    module = types.ModuleType("guard")
    exec(SourceFileLoader("guard", path).get_code("guard"), module.__dict__)
    return module


def _fork_and_reap() -> None:
    """Go on in a new process; this one, the first of the name space, reaps, and ends as that one does."""
    child = os.fork()
    if not child:
        return
    os.closerange(0, 65536)  # the pipes must close when the sandbox ends
    while True:
        ended, status = os.wait()
        if ended == child:
            os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def _new_root(read_only: list[list[str]], tmp_bytes: int, stdin: int | None) -> None:
    # Any folder will do in a mount namespace of one's own, and one that is always there leaves none behind.
    stage = "/proc"
    _mount(None, "/", None, MS_REC | MS_PRIVATE)
    size = 2**20 + (os.fstat(stdin).st_size if stdin is not None else 0)
    _mount("root", stage, "tmpfs", MS_NOSUID | MS_NODEV, f"size={size},mode=755")
    for source, target in read_only:
        inside = stage + target
        os.makedirs(os.path.dirname(inside), exist_ok=True)
        if os.path.islink(source):
            os.symlink(os.readlink(source), inside)
            continue
        if os.path.isdir(source):
            os.makedirs(inside, exist_ok=True)
        else:
            os.close(os.open(inside, os.O_CREAT | os.O_WRONLY, 0o644))
        _mount(source, inside, None, MS_BIND | MS_REC)
        if not source.startswith("/dev/"):
            _read_only(inside)
    os.makedirs(f"{stage}/tmp", exist_ok=True)
    if stdin is not None:
        # A file that can be opened by its name: the link that this is elsewhere leads through /proc.
        with open(f"{stage}/dev/stdin", "wb") as copy:
            while part := os.read(stdin, 1 << 20):
                copy.write(part)
    os.symlink("/tmp", f"{stage}/dev/shm")  # where multiprocessing's semaphores are
    mount_tmp(f"{stage}/tmp", tmp_bytes)
    _mount(None, stage, None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)
    os.chdir(stage)
    _check(libc.syscall(_PIVOT_ROOT[platform.machine()], b".", b"."), "pivot_root")
    _check(libc.umount2(b".", MNT_DETACH), "umount")
    os.chdir("/tmp")


def mount_tmp(path: str, size: int) -> None:
    """A place to write to, bounded in bytes and in files: an empty file takes a kilobyte of the kernel's."""
    _mount("tmp", path, "tmpfs", MS_NOSUID | MS_NODEV, f"size={size},nr_inodes=4096,mode=1777")


def _read_only(path: str) -> None:
    """Recursively, as a bind brings its submounts along (mount_setattr, Linux 5.12), else the mount itself."""
    attributes = struct.pack("<QQQQ", 0x1 | 0x2 | 0x4, 0, 0, 0)  # read-only, nosuid, nodev
    at_fdcwd, recursive = -100, 0x8000
    if libc.syscall(442, at_fdcwd, path.encode(), recursive, attributes, len(attributes)) == 0:
        return
    if ctypes.get_errno() != errno.ENOSYS:
        raise OSError(ctypes.get_errno(), f"mount_setattr {path}")
    _mount(None, path, None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)


def give_up_privileges() -> None:
    """No capabilities, now or after an exec."""
    for capability in range(64):
        if libc.prctl(PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0) < 0:
            break
    header = struct.pack("<Ii", 0x20080522, 0)
    _check(libc.capset(header, bytes(24)), "capset")
    _prctl(PR_SET_NO_NEW_PRIVS, 1)


_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# socket (not socketpair), connect, bind, listen; ptrace, process_vm_readv/writev, pidfd_getfd; mount and friends,
# unshare, setns, bpf, perf_event_open, userfaultfd, keyctl and friends, io_uring; and memory that no RLIMIT counts:
# shmget, semget, msgget, memfd_create.
_REFUSED = {
    "x86_64": (
        *(41, 42, 49, 50, 101, 310, 311, 438, 165, 166, 155, 161, 272, 308, 321, 298, 323),
        *(248, 249, 250, 425, 426, 427, 428, 429, 430, 432, 442),
        *(29, 64, 68, 319),
    ),
    "aarch64": (
        *(198, 203, 200, 201, 117, 270, 271, 438, 40, 39, 41, 51, 97, 268, 280, 241, 282),
        *(217, 218, 219, 425, 426, 427, 428, 429, 430, 432, 442),
        *(194, 190, 186, 279),
    ),
}
_MMAP = {"x86_64": 9, "aarch64": 222}
_MAP_SHARED, _MAP_ANONYMOUS = 1, 32  # together: memory of no process in particular, so the guard would not see it
_CLONE = {"x86_64": 56, "aarch64": 220}
_CLONE3 = 435  # its flags are behind a pointer; the C library falls back to clone, whose flags are not
_CLONE_NEW = 0x7E020000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET


def refuse_system_calls() -> None:
    """A seccomp filter over what no tested program needs. The namespaces hold without it, so others go without."""
    machine = platform.machine()
    if machine not in _REFUSED:
        return
    load, equal, above, any_of, give = 0x20, 0x15, 0x35, 0x45, 0x06  # ld word, jeq, jge, jset, ret
    allow, refuse, absent, kill = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS, 0x80000000
    program = [(load, 0, 0, 4), (equal, 1, 0, _AUDIT_ARCH[machine]), (give, 0, 0, kill), (load, 0, 0, 0)]
    if machine == "x86_64":
        program += [(above, 0, 1, 0x40000000), (give, 0, 0, kill)]  # the x32 numbers of the same calls
    for number in _REFUSED[machine]:
        program += [(equal, 0, 1, number), (give, 0, 0, refuse)]
    program += [(equal, 0, 1, _CLONE3), (give, 0, 0, absent)]
    first_argument, fourth_argument = 16, 40  # their low halves, on these little-endian machines
    program += [(equal, 0, 5, _MMAP[machine]), (load, 0, 0, fourth_argument), (any_of, 0, 2, _MAP_ANONYMOUS)]
    program += [(any_of, 0, 1, _MAP_SHARED), (give, 0, 0, refuse), (give, 0, 0, allow)]
    program += [(equal, 0, 3, _CLONE[machine]), (load, 0, 0, first_argument)]
    program += [(any_of, 0, 1, _CLONE_NEW), (give, 0, 0, refuse), (give, 0, 0, allow)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *line) for line in program))
    filter_ = struct.pack("HxxxxxxP" if struct.calcsize("P") == 8 else "HxxI", len(program), ctypes.addressof(code))
    held = ctypes.create_string_buffer(filter_)
    _prctl(PR_SET_SECCOMP, 2, ctypes.addressof(held))


_STACK = 120 * 2**20


def limit(orders: dict[str, Any]) -> None:
    """Bound what this process and its children can use."""
    for name, value in (
        ("RLIMIT_AS", orders["limits"]["memory_bytes"]),
        ("RLIMIT_NPROC", orders["processes"]),
        ("RLIMIT_FSIZE", orders["file_bytes"]),
        ("RLIMIT_CPU", orders["cpu_seconds"]),
        ("RLIMIT_NOFILE", 128),
        ("RLIMIT_CORE", 0),
        ("RLIMIT_MEMLOCK", 0),
        ("RLIMIT_MSGQUEUE", 0),
    ):
        which = getattr(resource, name)
        hard = resource.getrlimit(which)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (value, value))
    # What recursion through C needs, and the sites of such problems give; the kernel leaves that much room.
    hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
    resource.setrlimit(resource.RLIMIT_STACK, (_STACK if hard == resource.RLIM_INFINITY else min(_STACK, hard), hard))


# Plain data over a pipe ---------------------------------------------------------------------------------------------


def read_exactly(file: int, count: int) -> bytes:
    """``count`` bytes; EOFError if the other side closes first."""
    parts = []
    while count:
        part = os.read(file, min(count, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def read_frame(file: int) -> Any:
    """One value; ValueError for a frame that is too long or not JSON."""
    (length,) = FRAME_HEAD.unpack(read_exactly(file, 4))
    if length > MAX_FRAME:
        raise ValueError("frame too long")
    return json.loads(read_exactly(file, length))


def write_frame(file: int, value: Any) -> None:
    """Send one JSON value."""
    data = json.dumps(value).encode()
    view = memoryview(FRAME_HEAD.pack(len(data)) + data)
    while view:
        view = view[os.write(file, view) :]


_SEQUENCES = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset, "deque": collections.deque}
_AS_TEXT = {
    "Decimal": (decimal.Decimal, str, decimal.Decimal),
    "Fraction": (fractions.Fraction, str, fractions.Fraction),
    "datetime": (datetime.datetime, datetime.datetime.isoformat, datetime.datetime.fromisoformat),
    "date": (datetime.date, datetime.date.isoformat, datetime.date.fromisoformat),
    "time": (datetime.time, datetime.time.isoformat, datetime.time.fromisoformat),
}


def pack(value: Any, keep: Any) -> Any:
    """``value`` as JSON with tags; ``keep(value)`` names what is no plain data."""
    if value is None or value is True or value is False:
        return value
    if isinstance(value, str):
        return ["str", base64.b64encode("".join(value).encode("utf-8", "surrogatepass")).decode()]
    if isinstance(value, int):
        return ["int", hex(int.__index__(value))]
    if isinstance(value, float):
        return ["float", float.hex(value)]
    if isinstance(value, complex):
        return ["complex", float.hex(value.real), float.hex(value.imag)]
    if isinstance(value, bytes | bytearray):
        return ["bytes", base64.b64encode(bytes(value)).decode()]
    if isinstance(value, range):
        return ["range", value.start, value.stop, value.step]
    if isinstance(value, tuple) and isinstance(getattr(type(value), "_fields", None), tuple):
        return ["named", list(map(str, type(value)._fields)), [pack(item, keep) for item in tuple.__iter__(value)]]
    for tag, kind in _SEQUENCES.items():
        if isinstance(value, kind):
            return [tag, [pack(item, keep) for item in kind.__iter__(value)]]
    if isinstance(value, dict):
        return ["dict", [[pack(key, keep), pack(item, keep)] for key, item in dict.items(value)]]
    for tag, (kind, write, _) in _AS_TEXT.items():
        if type(value) is kind:
            return ["text", tag, write(value)]
    if isinstance(value, datetime.timedelta):
        return ["timedelta", value.days, value.seconds, value.microseconds]
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        return pack(value.tolist(), keep)
    return keep(value)


def unpack(data: Any, held: Any) -> Any:
    """The value of ``pack``; ``held(name)`` gives what is no plain data. ValueError for anything else."""
    if data is None or data is True or data is False:
        return data
    try:
        tag, *rest = data
        if tag == "str":
            return base64.b64decode(rest[0]).decode("utf-8", "surrogatepass")
        if tag == "int":
            return int(rest[0], 16)
        if tag == "float":
            return float.fromhex(rest[0])
        if tag == "complex":
            return complex(float.fromhex(rest[0]), float.fromhex(rest[1]))
        if tag == "bytes":
            return base64.b64decode(rest[0])
        if tag == "range":
            return range(*rest)
        if tag in _SEQUENCES:
            return _SEQUENCES[tag](unpack(item, held) for item in rest[0])
        if tag == "named":
            return collections.namedtuple("Named", rest[0])(*(unpack(item, held) for item in rest[1]))
        if tag == "dict":
            return {unpack(key, held): unpack(item, held) for key, item in rest[0]}
        if tag == "text":
            return _AS_TEXT[rest[0]][2](rest[1])
        if tag == "timedelta":
            return datetime.timedelta(*rest)
        if tag == "iterator":
            return iter([unpack(item, held) for item in rest[0]])
        if tag == "builtin":
            return held(str(rest[0]))
        if tag == "held":
            return held(rest[0])
    except (TypeError, KeyError, IndexError, OverflowError) as error:
        raise ValueError(f"no plain data: {error}") from error
    raise ValueError("no plain data")


# The program under test ---------------------------------------------------------------------------------------------


def _as_from_a_terminal(name: str) -> dict[str, Any]:
    """The name space of a new module ``name``, with what a program finds when it is started by hand."""
    site.setquit()  # exit() and quit(), which -S leaves out
    site.setcopyright()
    sys.argv = ["program.py"]
    # A pool of processes as large as the machine would meet the limit of processes.
    os.cpu_count = lambda: 2
    # Registered, so that pickle and dataclasses find a class's module.
    sys.modules[name] = types.ModuleType(name)
    space = sys.modules[name].__dict__
    space |= {"__builtins__": builtins, "__file__": "/tmp/program.py"}
    return space


def _run(source: str, file: str, space: dict[str, Any]) -> None:
    """Execute as a module of its own: this script's future annotations are not the source's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        code = compile(source, file, "exec", dont_inherit=True)
    exec(code, space)


def run_script(orders: dict[str, Any], stdin: int) -> None:
    """A whole program, reading standard input and writing standard output.

    It ends as any program does: by the interpreter, which waits for threads, runs ``atexit`` and gives the exit code.
    """
    os.dup2(stdin, 0)
    os.closerange(3, 65536)
    sys.stdin = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115 - the program's own
    sys.stdout = open(1, "w", encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115 - likewise
    sys.__stdin__, sys.__stdout__ = sys.stdin, sys.stdout
    _run(orders["program"], "program.py", _as_from_a_terminal("__main__"))


_MUTABLE = (list, dict, set, bytearray, collections.deque)
_MISSING = object()


class Program:
    """The program's side: defines its names, then does what the judge asks of them."""

    def __init__(self, orders: dict[str, Any], requests: int, replies: int) -> None:
        self.requests, self.replies = requests, replies
        self.objects: list[Any] = []
        self.space = _as_from_a_terminal("program")
        self.given: dict[str, Any] = {}
        self.operations = {
            "function": self.function,
            "name": self.name,
            "call": lambda target, positional, named: target(*positional, **named),
            "get": getattr,
            "set": setattr,
            "item": lambda target, key: target[key],
            "length": len,
            "iterate": iter,
            "truth": bool,
            "text": str,
        }
        try:
            _run(orders["preamble"], "preamble.py", self.space)
            self.given = dict(self.space)
            _run(orders["program"], "program.py", self.space)
        except SystemExit as stop:
            if stop.code not in (None, 0):
                write_frame(replies, ["raised", "SystemExit", ""])
                return
        except BaseException as error:
            write_frame(replies, ["raised", type(error).__name__, str(error)[:500]])
            return
        write_frame(replies, ["ready"])

    def name(self, name: str) -> Any:
        """What the program, and not the preamble, calls ``name``."""
        value = self.space[name]
        if self.given.get(name, _MISSING) is value:
            raise KeyError(name)
        return value

    def function(self, name: str, owner: str) -> Any:
        """The function ``name``, or the method of a new ``owner``."""
        try:
            return self.name(name)
        except KeyError:
            return getattr(self.space[owner](), name)

    def keep(self, value: Any) -> Any:
        self.objects.append(value)
        return ["held", [len(self.objects) - 1, callable(value)]]

    def held(self, name: Any) -> Any:
        if isinstance(name, str):
            return getattr(builtins, name)
        kind, number = name if len(name) == 2 else ("object", name[0])
        return self.callback(number) if kind == "callback" else self.objects[number]

    def callback(self, number: int) -> Any:
        """A function of the test's: each call is asked of the judge."""

        def call(*positional: Any, **named: Any) -> Any:
            write_frame(self.replies, ["callback", number, pack(list(positional), self.keep), pack(named, self.keep)])
            kind, *rest = self.serve(until_returned=True)
            if kind == "returned":
                return unpack(rest[0], self.held)
            raise getattr(builtins, rest[0], Exception)(rest[1])

        return call

    def serve(self, until_returned: bool = False) -> Any:
        """Answer requests; the answer to a callback ends the loop that waits for it."""
        while True:
            operation, *rest = read_frame(self.requests)
            if until_returned and operation in ("returned", "raised"):
                return [operation, *rest]
            write_frame(self.replies, self.answer(operation, rest[0]))

    def answer(self, operation: str, arguments: list[Any]) -> list[Any]:
        """The reply to one request: with what has become of the arguments that a call has changed."""
        values = [unpack(argument, self.held) for argument in arguments]
        try:
            if operation == "next":
                value = next(values[0], _MISSING)
                return ["end"] if value is _MISSING else ["value", pack(value, self.keep)]
            if operation != "call":
                return ["value", pack(self.operations[operation](*values), self.keep)]
            target, positional, named = values
            passed = [*positional, *named.values()]  # a program may rebind its *args, not these
            value = target(*positional, **named)
        except BaseException as error:
            return ["raised", type(error).__name__, str(error)[:500]]
        try:
            same = next((i for i, item in enumerate(passed) if item is value and isinstance(item, _MUTABLE)), None)
            reply = ["value", None if same is not None else pack(value, self.keep), same, {}]
            sent = [*arguments[1][1], *(item for _, item in arguments[2][1])]
            for index, item in enumerate(passed):
                if isinstance(item, _MUTABLE) and (now := pack(item, self.keep)) != sent[index]:
                    reply[3][index] = now
        except BaseException as error:
            return ["raised", type(error).__name__, str(error)[:500]]
        return reply


# The judge ----------------------------------------------------------------------------------------------------------

# An exception of these ends a loop instead of failing a test, or ends the judge.
_NEVER_RAISED = {"StopIteration", "StopAsyncIteration", "GeneratorExit", "SystemExit", "KeyboardInterrupt"}


class Wrong(Exception):
    """The program broke off or answered with no answer."""


class Channel:
    """The judge's end of the two pipes."""

    def __init__(self, requests: int, replies: int) -> None:
        self.requests, self.replies = requests, replies
        self.callbacks: list[Any] = []
        if read_frame(replies) != ["ready"]:
            raise Wrong("the program does not load")

    def ask(self, operation: str, *arguments: Any) -> Any:
        """Have the program's side do ``operation``; its exception is raised here, as a plain built-in one."""
        packed = [pack(argument, self._name_of) for argument in arguments]
        write_frame(self.requests, [operation, packed])
        kind, *rest = read_frame(self.replies)
        while kind == "callback":
            self._call_back(*rest)
            kind, *rest = read_frame(self.replies)
        if kind == "value" and operation == "call":
            return self._after_call([*arguments[1], *arguments[2].values()], *rest)
        if kind == "value":
            return unpack(rest[0], self._remote)
        if kind == "end":
            if operation != "next":
                raise Wrong("an end of what is no iteration")
            raise StopIteration
        name = str(rest[0])
        exception = getattr(builtins, name, None)
        ordinary = isinstance(exception, type) and issubclass(exception, Exception) and name not in _NEVER_RAISED
        if not ordinary or issubclass(exception, UnicodeError | BaseExceptionGroup):
            exception = Wrong
        raise exception(str(rest[1]))

    def _after_call(self, passed: list[Any], value: Any, same: Any, changed: Any) -> Any:
        """The value of a call; its arguments have been changed in place as the program changed its own."""
        for index, packed in dict(changed).items():
            target, now = passed[int(index)], unpack(packed, self._remote)
            if type(target) is not type(now) or not isinstance(target, _MUTABLE):
                raise Wrong("an argument became another")
            _become(target, now)
        if same is None:
            return unpack(value, self._remote)
        if not isinstance(passed[int(same)], _MUTABLE):
            raise Wrong("an argument is no result")
        return passed[int(same)]

    def _call_back(self, number: Any, positional: Any, named: Any) -> None:
        """Call a function of the test's that the program was given."""
        function = self.callbacks[int(number)]
        arguments, keywords = unpack(positional, self._remote), unpack(named, self._remote)
        if not isinstance(arguments, list) or not isinstance(keywords, dict):
            raise Wrong("no arguments")
        try:
            reply = ["returned", pack(function(*arguments, **keywords), self._name_of)]
        except (Wrong, EOFError):
            raise
        except Exception as error:
            reply = ["raised", type(error).__name__, str(error)[:500]]
        write_frame(self.requests, reply)

    def _name_of(self, value: Any) -> list[Any]:
        if isinstance(value, Remote):
            return ["held", value._number]
        if getattr(builtins, getattr(value, "__name__", ""), None) is value:
            return ["builtin", value.__name__]  # remove_datatype(values, int)
        if isinstance(value, collections.abc.Iterator):
            return ["iterator", [pack(item, self._name_of) for item in value]]
        if callable(value):
            self.callbacks.append(value)
            return ["held", ["callback", len(self.callbacks) - 1]]
        raise TypeError(f"a test passes {type(value).__name__}, which is no plain data")

    def _remote(self, name: Any) -> Any:
        number, is_callable = name  # a bare name, of a built-in, is for the other direction only
        return (RemoteCallable if is_callable else Remote)(self, [int(number)])


class Remote:
    """An object that stays on the program's side. It equals itself and nothing else, whatever its class says."""

    __slots__ = ("_channel", "_number")

    def __init__(self, channel: Channel, number: list[int]) -> None:
        object.__setattr__(self, "_channel", channel)
        object.__setattr__(self, "_number", number)

    def __getattr__(self, name: str) -> Any:
        return self._channel.ask("get", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._channel.ask("set", self, name, value)

    def __getitem__(self, key: Any) -> Any:
        return self._channel.ask("item", self, key)

    def __len__(self) -> int:
        return self._channel.ask("length", self)

    def __bool__(self) -> bool:
        return self._channel.ask("truth", self) is True

    # No __contains__: `in` goes through __iter__ and compares on this side.
    def __iter__(self) -> Remote:
        return self._channel.ask("iterate", self)

    def __next__(self) -> Any:
        return self._channel.ask("next", self)

    def __str__(self) -> str:
        return str(self._channel.ask("text", self))


class RemoteCallable(Remote):
    """One that can be called."""

    __slots__ = ()

    def __call__(self, *positional: Any, **named: Any) -> Any:
        return self._channel.ask("call", self, list(positional), named)


def _become(target: Any, now: Any) -> None:
    """Make ``target`` equal ``now`` in place, and what is in it as far as both have one shape: a test may hold it."""
    if isinstance(target, list) and len(target) == len(now):
        for index, item in enumerate(now):
            if isinstance(item, _MUTABLE) and type(target[index]) is type(item):
                _become(target[index], item)
            else:
                target[index] = item
    elif isinstance(target, list | bytearray):
        target[:] = now
    else:
        target.clear()
        (target.extend if isinstance(target, collections.deque) else target.update)(now)


def judge(tests: dict[str, Any], channel: Channel) -> None:
    """Run the tests; whatever is raised means that the program is wrong."""
    if "cases" in tests:
        candidate = channel.ask("function", tests["entry_point"], tests["method_of"])
        for given, wanted in unpack(tests["cases"], None):
            found, wanted = _as_json(candidate(*map(_whole_keys, given))), _as_json(wanted)
            # APPS wraps some results into a list of one.
            wrapped = isinstance(wanted, list) and len(wanted) == 1 and _same(found, wanted[0])
            if not wrapped and not _same(found, wanted):
                raise Wrong("another result")
        return
    if "entry_point" in tests:
        space = _trusted_space(tests.get("prompt", ""))
        candidate = channel.ask("function", tests["entry_point"], tests.get("method_of", ""))
        space[tests["entry_point"]] = candidate  # HumanEval/33 calls it by its name too
        _run(tests["test"], "test.py", space)
        space["check"](candidate)
        return
    setup = tests.get("test_setup_code", "")
    lines = list(tests["test_list"])
    space = _trusted_space("")
    space |= _names_for(setup, "\n".join(lines), channel)
    _run(setup, "setup.py", space)
    for line in lines:
        _run(line, "test.py", space)


def _as_json(value: Any) -> Any:
    """JSON has no tuples, and only text as keys."""
    if isinstance(value, list | tuple):
        return [_as_json(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _as_json(item) for key, item in value.items()}
    return value


def _whole_keys(value: Any) -> Any:
    """JSON turns whole numbers that are keys into text; APPS's own checker turns them back."""
    if isinstance(value, dict) and all(re.fullmatch("-?[0-9]+", key) for key in value):
        return {int(key): item for key, item in value.items()}
    return value


def _same(found: Any, wanted: Any) -> bool:
    if _number(found) and _number(wanted) and float in (type(found), type(wanted)):
        return math.isclose(found, wanted, rel_tol=1e-6, abs_tol=1e-9)
    if isinstance(found, list) and isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(_same, found, wanted))
    if isinstance(found, dict) and isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(_same(found[key], wanted[key]) for key in wanted)
    return type(found) is type(wanted) and found == wanted


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _trusted_space(preamble: str) -> dict[str, Any]:
    space: dict[str, Any] = {"__name__": "tests", "__builtins__": builtins}
    # HumanEval's prompt defines helpers that its tests call: the tests get their own copy, never the program's.
    try:
        _run(preamble, "prompt.py", space)
    except SyntaxError:
        _run(f"{preamble}\n    pass\n", "prompt.py", space)  # it ends behind the line that opens a body
    return space


def _names_for(setup: str, asserts: str, channel: Channel) -> dict[str, Any]:
    """What stands behind the names that the tests use and do not define.

    The functions under test are the program's. Everything else that a test leans on is the judge's own, or a program
    could bring a ``set`` or a ``Counter`` that makes all things equal: built-ins, modules, and names of the standard
    library. Where such a name is all that the tests call, as in MBPP's ``assert sum(10, 15) == 6``, it is under test.
    """
    tree = ast.parse(f"{setup}\n{asserts}")
    free = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - _bound_names(tree)
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    known = {name: value for name in free if (value := _library(name)) is not None}
    under_test = free - known.keys() - set(dir(builtins))
    if not called & under_test:
        under_test |= _innermost_calls(tree)
    found = {name: value for name, value in known.items() if name not in under_test}
    for name in sorted(under_test):
        # What the program lacks is a NameError in the test that needs it.
        with contextlib.suppress(KeyError):
            found[name] = channel.ask("name", name)
    return found


def _bound_names(tree: ast.AST) -> set[str]:
    bound = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            bound.add(node.id)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef | ast.ExceptHandler) and node.name:
            bound.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            bound |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    return bound


def _innermost_calls(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            inside = [n for argument in node.args for n in ast.walk(argument) if isinstance(n, ast.Call)]
            if not any(isinstance(n.func, ast.Name) for n in inside):
                found.add(node.func.id)
    return found if len(found) == 1 else set()


_LIBRARY = ("math", "cmath", "collections", "itertools", "functools", "operator", "datetime", "decimal", "fractions")
_LIBRARY += ("re", "heapq", "bisect", "copy", "string", "typing", "random", "statistics", "json")


def _library(name: str) -> Any:
    """A module, or what ``from module import name`` would have brought; None if there is none of that name."""
    if name in sys.stdlib_module_names:
        return importlib.import_module(name)
    if name in ("np", "numpy"):
        with contextlib.suppress(ImportError):
            return importlib.import_module("numpy")
    for module in map(importlib.import_module, _LIBRARY):
        if name in getattr(module, "__all__", dir(module)) and not name.startswith("_"):
            return getattr(module, name)
    return None


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


if __name__ == "__main__":
    main()
