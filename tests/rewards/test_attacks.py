"""No attack turns a wrong program into a right one, has an effect outside, or leaves a process behind."""

import os
import shutil
import subprocess
import sys
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from attacks import ATTACKS, PRINTS

from dapo_fast.rewards import code, sandbox

ASSERTS = ["assert f(1) == 2", "assert f(5) == 6"]
PRINTED = {"inputs": ["5"], "outputs": ["6"]}


def lineage(pid):
    """``pid``, its parent, and so on up to the first process of all."""
    found = []
    while pid:
        found.append(pid)
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return found


def processes_of_sandboxes():
    """Those of this process, or left behind by it: an orphan's parent is one of its forebears."""
    found, ours = set(), lineage(os.getpid())
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and b"from sandboxed." in (entry / "cmdline").read_bytes():
                above = lineage(int(entry.name))
                outside = (pid for pid in above if b"from sandboxed." not in Path(f"/proc/{pid}/cmdline").read_bytes())
                found |= {int(entry.name)} if next(outside, 1) in ours else set()
        except OSError:
            continue
    return found


def settled_below(before):
    """Processes die asynchronously: wait for it, but not for ever."""
    for _ in range(1200):
        if not processes_of_sandboxes() - before:
            return True
        time.sleep(0.05)
    return False


FORK_BOMB = """
import os, time
def f(x):
    made = 0
    for _ in range(200):
        try:
            if os.fork() == 0:
                time.sleep(1000)
        except OSError:
            return made
        made += 1
    return made
"""
LEFT_BEHIND = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(1000)
    os._exit(0)
def f(x): return x + 1
"""


UNTIED = """
import ctypes, os, time
ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)  # PR_SET_PDEATHSIG: no signal when the parent dies
os.setsid()
time.sleep(1000)
"""


def test_processes_are_bounded_and_none_is_left():
    before = processes_of_sandboxes()
    assert not code.verify(UNTIED, ASSERTS, timeout=1)
    assert code.verify(FORK_BOMB, ["assert 1 <= f(0) < 40"])
    assert not code.verify("import os\nwhile True: os.fork()", ASSERTS, timeout=1)
    assert code.verify(LEFT_BEHIND, ASSERTS)
    assert settled_below(before)


@pytest.mark.parametrize(
    ("isolation", "form"), [("namespaces", "called"), ("namespaces", "printed"), ("bubblewrap", "called")]
)
def test_attacks_are_contained(isolation, form, monkeypatch):
    reason = sandbox._why_not(isolation)
    if reason and not (isolation == "bubblewrap" and os.environ.get("DAPO_REQUIRE_BWRAP") == "1"):
        pytest.skip(f"{isolation}: {reason}")
    assert reason is None
    monkeypatch.setenv("DAPO_TEST_SECRET", "1")
    monkeypatch.setattr(sandbox.Limits, "memory_bytes", 2**28)
    monkeypatch.setattr(sandbox, "_working_method", lambda: (isolation, ""))
    if form == "called":
        cases = {name: (program, ASSERTS) for name, program in ATTACKS.items()}
    else:
        cases = {name: (f"{program}\nprint(f(5))", PRINTED) for name, program in ATTACKS.items()}
        cases |= {name: (program, PRINTED) for name, program in PRINTS.items()}
    if isolation == "bubblewrap" and os.geteuid() == 0:
        # Nothing counts root's processes, which is why root never gets this isolation.
        for name in ("fork bomb", "many processes", "many threads"):
            del cases[name]
    processes = processes_of_sandboxes()
    # All at once, most of them asleep or at their limits.
    with ThreadPoolExecutor(8) as pool:
        found = dict(zip(cases, pool.map(lambda case: code.verify(*case, timeout=1), cases.values()), strict=True))
    assert [name for name, right in found.items() if right] == []
    assert settled_below(processes)


AS_ORDINARY_USER = """
mount -t tmpfs -o mode=755 none /mnt || exit 99
cd /mnt
mkdir python packages source
mount --bind "$1" python && mount --bind "$2" packages && mount --bind "$3" source && cd source
shift 3
exec setpriv --reuid 23456 --regid 23456 --clear-groups "$@"
"""


def mounts_of_its_own() -> bool:
    """Whether this process may start others that see mounts of their own, and as another user."""
    may = ["unshare", "--mount", "setpriv", "--reuid", "23456", "true"]
    return bool(shutil.which("unshare")) and subprocess.run(may, capture_output=True).returncode == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user; the tests above were one's own")
@pytest.mark.skipif(not mounts_of_its_own(), reason="no mount namespace, or no other user")
def test_attacks_by_an_ordinary_user():
    """Above once more without root, whose interpreter and packages are often out of others' reach."""
    python, packages = os.path.realpath(sys.base_prefix), sysconfig.get_path("purelib")
    executable = Path(os.path.realpath(sys._base_executable)).relative_to(python)
    tests = Path(__file__).relative_to(Path(__file__).parents[2])
    inside = [f"/mnt/python/{executable}", "-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider"]
    command = ["unshare", "--mount", "sh", "-c", AS_ORDINARY_USER, "sh", python, packages, Path(__file__).parents[2]]
    environment = {"PYTHONPATH": "/mnt/source:/mnt/packages", "PYTHONDONTWRITEBYTECODE": "1"}
    kept = {name: os.environ[name] for name in ("PATH", "DAPO_REQUIRE_BWRAP") if name in os.environ}
    ran = subprocess.run(
        [*command, *inside, "-k", "not printed", tests], env=environment | kept, capture_output=True, text=True
    )
    if ran.returncode == 99:
        pytest.skip(f"no mount namespace: {ran.stderr}")
    assert ran.returncode == 0, ran.stdout + ran.stderr
