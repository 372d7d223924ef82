"""Closing in: namespaces, a root directory of its own, no privileges, few system calls, limits."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import signal
import struct
from typing import Any

from . import guard

NOBODY = 65534
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
