"""What bounds a sandbox as a whole, whatever it starts, and what is left of it when its caller is gone."""

import functools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from dapo_fast.errors import InputError
from dapo_fast.rewards import code, memory, sandbox
from dapo_fast.rewards.sandboxed import guard

MEMORY_IN_CHILDREN = """
import os, time
def f(children):
    ready, tell = os.pipe()
    for _ in range(children):
        if os.fork() == 0:
            block = bytearray(b'x') * (70 << 20)
            os.write(tell, b'.')
            time.sleep(1000)
    for _ in range(children):
        os.read(ready, 1)
    time.sleep(1)  # in which the guard looks, on the busiest machine
    return children
"""


WHY_NOT = functools.cache(sandbox._why_not)


@pytest.fixture(params=["namespaces", "bubblewrap"])
def isolation(request, monkeypatch):
    """Each of the two, where it works; where DAPO_REQUIRE_BWRAP is set, bubblewrap must."""
    reason = WHY_NOT(request.param)
    if reason and not (request.param == "bubblewrap" and os.environ.get("DAPO_REQUIRE_BWRAP") == "1"):
        pytest.skip(f"{request.param}: {reason}")
    assert reason is None
    monkeypatch.setattr(sandbox, "_working_method", lambda: (request.param, ""))
    return request.param


def test_memory_of_all_processes_together(isolation, monkeypatch):
    monkeypatch.setenv(memory.MEMORY_VARIABLE, "512M")
    assert code.verify(MEMORY_IN_CHILDREN, ["assert f(1) == 1"])
    assert not code.verify(MEMORY_IN_CHILDREN, ["assert f(4) == 4"])
    assert not code.verify("def f(x): return len(bytearray(b'x') * (300 << 20))", ["assert f(0)"])


def test_a_sleeping_program_costs_its_limit(isolation):
    orders = {"program": "import time\ntime.sleep(1000)"}
    with (
        open("/dev/null", "rb") as nothing,
        sandbox.Sandboxed("script", orders, sandbox.Limits(2), {"stdin": nothing.fileno()}, isolation) as run,
    ):
        # The guard's end of it, long before the wall's limit.
        assert run.output() == b""
        assert run.exit_code() == -signal.SIGKILL


def test_who_waits_for_a_core_does_not_sleep():
    proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
    family = guard.Family(os.getpid(), proc)
    family.look()
    assert os.getpid() in family.members and not family.asleep
    child = os.fork()
    if not child:
        signal.pause()
    try:
        others = guard.Family(child, proc)
        while not others.asleep:
            others.look()
        assert others.members == [child]
        family.look()
        assert child in family.members
        # Pages that both share count once, where it matters.
        assert family.memory(0) < family.memory(1 << 62)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(proc)


def test_sandboxes_side_by_side_never_exceed_the_total(monkeypatch):
    monkeypatch.setattr(memory, "_NAME", f"\0dapo-fast-test-{os.getpid()}-{{user}}-{{number}}")
    monkeypatch.setenv(memory.MEMORY_VARIABLE, "4G")
    inside, most = [], []
    both = threading.Barrier(2)

    def work(_):
        with memory.reserved(2**30) as each:
            inside.append(each)
            most.append(sum(inside) * 2)
            both.wait()  # two at a time get in: one alone would wait for ever
            inside.pop()

    with ThreadPoolExecutor(10) as pool:
        list(pool.map(work, range(10)))
    assert max(most) == 4 * 2**30
    monkeypatch.setenv(memory.MEMORY_VARIABLE, "512M")
    with memory.reserved(2**30) as each:
        assert each == 2**28


def test_a_place_is_free_again_however_its_holder_ends(monkeypatch):
    monkeypatch.setattr(memory, "_NAME", f"\0dapo-fast-test-{os.getpid()}-{{user}}-{{number}}")
    monkeypatch.setenv(memory.MEMORY_VARIABLE, "512M")
    held, tell = os.pipe()
    child = os.fork()
    if not child:
        with memory.reserved(2**30):
            if not os.fork():
                signal.alarm(60)
                signal.pause()  # a child that was forked meanwhile, and lives on
            os.write(tell, b".")
            signal.pause()
    os.read(held, 1)
    assert memory._taken(0) is None
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with memory.reserved(2**30):
        pass
    os.close(held)
    os.close(tell)


@pytest.mark.parametrize("size", ["much", "0", "-1G", "100M", "1.5G", ""])
def test_the_setting_must_be_a_size(size, monkeypatch):
    monkeypatch.setenv(memory.MEMORY_VARIABLE, size)
    with pytest.raises(InputError, match=memory.MEMORY_VARIABLE):
        code.verify("x = 1", ["assert x == 1"])


CALLER = """
from dapo_fast.rewards import code, sandbox
sandbox._working_method = lambda: ({method!r}, "")
code.verify("import time\\nprint(0, flush=True)\\ntime.sleep(1000)", {{"inputs": [""], "outputs": [""]}}, timeout=300)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_stays_behind_when_the_caller_is_killed(number, isolation, tmp_path):
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    caller = subprocess.Popen([sys.executable, "-c", CALLER.format(method=isolation)], env=environment)
    proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
    family = guard.Family(caller.pid, proc)
    while len(family.members) < 4:  # the caller, the guard, and in the sandbox
        assert caller.poll() is None
        family.look()
        time.sleep(0.02)
    caller.send_signal(number)
    caller.wait()
    while any(family._read(f"{pid}/cmdline") for pid in family.members):  # for ever, if they outlive it
        time.sleep(0.02)
    os.close(proc)
    assert not list(tmp_path.iterdir())


def test_bubblewrap_that_fails_is_reported_and_the_next_one_used(tmp_path, monkeypatch, caplog):
    if WHY_NOT("namespaces"):
        pytest.skip("namespaces do not work here")
    monkeypatch.setattr(sandbox.os, "geteuid", lambda: 1000)  # who is asked for bubblewrap first
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for script in ("#!/bin/sh\necho no permission >&2\nexit 1\n", "#!/bin/sh\nkill -SEGV $$\n", "#!/no/interpreter\n"):
        (tmp_path / "bwrap").write_text(script)
        (tmp_path / "bwrap").chmod(0o755)
        caplog.clear()
        with caplog.at_level("WARNING", logger="dapo_fast.rewards"):
            assert sandbox._working_method.__wrapped__() == ("namespaces", "")
        assert len(caplog.records) == 1 and f"{tmp_path / 'bwrap'} does not work here" in caplog.text
        assert "no permission" in caplog.text or "echo" not in script


def test_python_under_tmp_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "base_prefix", "/tmp/python")  # hidden by the sandbox's own /tmp: imports would fail
    for method in ("namespaces", "bubblewrap"):
        assert "its Python must be elsewhere" in sandbox._why_not(method) or shutil.which("bwrap") is None


def test_bubblewrap_is_found_anywhere_on_the_path(isolation, tmp_path, monkeypatch):
    if isolation != "bubblewrap":
        return
    (tmp_path / "bwrap").symlink_to(shutil.which("bwrap"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert sandbox._bubblewrap() == str(tmp_path / "bwrap")
    assert code.verify("def f(x): return x + 1", ["assert f(1) == 2"])


FILES = """
def f(x):
    made = 0
    try:
        for _ in range(10**6):
            open(f'/tmp/{made}', 'w').close()
            made += 1
    except OSError:
        return made
"""


def test_files_are_bounded(isolation):
    assert code.verify(FILES, ["assert 1000 < f(0) < 4096"])
