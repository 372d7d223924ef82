"""The GPU run, gone through on a CPU at tiny shapes, so that it works on the day that there is a GPU."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))


def gpu(*words, **environment):
    command = [sys.executable, "-m", "benchmarks.gpu", *map(str, words)]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""} | environment
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, check=False)


# What a machine with torch, triton and transformers alone does not have.
BARE = """
import sys
from importlib.machinery import PathFinder

MISSING = {"pydantic", "datasets", "pyarrow", "math_verify", "liger_kernel", "trl", "peft", "torchao", "accelerate"}

class Bare(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in MISSING else PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Bare
"""


def test_a_dry_run_on_a_bare_machine_goes_through_every_section(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(BARE)
    paths = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = gpu("--dry-run", "--budget", 3000, "--out", tmp_path, PYTHONPATH=paths)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert done.stdout.splitlines()[-1] == "nothing failed"
    (path,) = tmp_path.glob("*.json")
    suites = json.loads(path.read_text())["suites"]
    facts = suites["gpu"]["machine"]
    assert {"gpu", "driver", "libraries"} <= facts.keys() and facts["libraries"]["torch"]
    states = {row["case"]: row["state"] for row in suites["gpu"]["rows"]}
    assert states == dict.fromkeys(["errors", "tests", "attention", "fused_loss", "actor", "sampling"], "done")
    assert suites["gpu_tests"]["rows"][0]["passed"] > 0
    assert all(row["error"] <= row["limit"] for row in suites["gpu_errors"]["rows"])
    assert any("chunks of 16" in row["case"] for row in suites["gpu_errors"]["rows"])
    actor = {(row["peer"], row["liger"]) for row in suites["gpu_actor"]["rows"]}
    assert actor == {("flat", False), ("tree", False)}
    assert any(row["peer"] == "dapo-fast, chunks of 8" for row in suites["fused_loss"]["rows"])
    assert suites["rollout"]["rows"][0]["ratio"] > 0
    assert path.with_suffix(".png").stat().st_size > 1000


class Slow:
    """A pytest that does not end until it gets ``signals``; then it prints its summary."""

    def __init__(self, signals):
        self.left = list(signals)

    def communicate(self, timeout=None):
        if self.left:
            raise subprocess.TimeoutExpired("pytest", timeout)
        return "FAILED a.py::b - wrong\n!!! KeyboardInterrupt !!!\n1 failed, 2 passed in 3.00s\n(to show more)", None

    def send_signal(self, number):
        assert number == signal.SIGINT
        self.left.remove("interrupt")

    def kill(self):
        self.left.clear()


@pytest.mark.parametrize("signals", [["interrupt"], ["interrupt", "kill"]])
def test_tests_that_do_not_end_are_interrupted_and_still_counted(monkeypatch, signals):
    from benchmarks.gpu import cuda_tests
    from benchmarks.gpu.sections import Setup

    monkeypatch.setattr(cuda_tests.subprocess, "Popen", lambda *_, **__: Slow(signals))
    rows = cuda_tests.rows(Setup(True, 0.0))
    row = next(rows)
    assert (row["passed"], row["failed"]) == (2, 1) and row["failures"][-1] == "to end in time"
    with pytest.raises(AssertionError, match="to end in time"):
        next(rows)


@pytest.mark.parametrize("difference", [0.03, float("nan")])
def test_a_chunk_size_with_another_loss_is_a_failure(monkeypatch, difference):
    from benchmarks.gpu import losses
    from benchmarks.gpu.sections import Setup

    differences = {"dapo-fast": 0.0, "naive": 0.5, "dapo-fast, chunks of 8": difference}
    differences |= {"dapo-fast, shared rows": 0.0, "dapo-fast, epilogue": 0.0}
    asked = []

    def run_shape(*_, peers, **__):
        asked.append([*peers])
        return [{"peer": name, "case": "N", "difference_from_ours": differences[name]} for name in peers]

    monkeypatch.setattr(losses, "run_shape", run_shape)
    rows = losses.rows(Setup(True, time.time() + 1000))
    for name in differences:  # each row before the next is measured
        assert next(rows)["peer"] == name == asked[-1][-1]
    assert asked == [["dapo-fast"], *(["dapo-fast", name] for name in list(differences)[1:])]
    with pytest.raises(AssertionError, match=r"^differs from the default: dapo-fast, chunks of 8 at N$"):
        next(rows)


def test_a_peer_that_is_not_there_costs_no_time(monkeypatch):
    from benchmarks.gpu import losses
    from benchmarks.gpu.sections import Setup

    measured = []

    def run_shape(*_, peers, **__):
        measured.append(list(peers)[-1])
        return [{"peer": measured[-1], "case": "N"}]

    monkeypatch.setattr(losses, "run_shape", run_shape)
    monkeypatch.setattr(losses, "why_not", lambda peer, _: "not installed" if peer.package == "torch" else None)
    rows = {row["peer"]: row for row in losses.rows(Setup(True, time.time() + 1000))}
    assert rows["naive"]["unavailable"] == "not installed" and rows["naive"]["case"] == "N=64 H=16 V=53 float32"
    assert measured == [name for name in rows if name != "naive"] and "dapo-fast, shared rows" in measured


def test_trees_that_disagree_are_timed_all_the_same(monkeypatch):
    from benchmarks.gpu import attention
    from benchmarks.gpu.sections import Setup

    answers = iter([{(1,): -2.0}, {(1,): -1.0}, {(1,): -2.0}])  # exact, trees, flat packs
    monkeypatch.setattr(attention, "_scored", lambda *_: next(answers))
    loss = types.SimpleNamespace(backward=lambda: None)
    monkeypatch.setattr(attention, "PolicyReader", lambda _: lambda *_: types.SimpleNamespace(loss=loss))
    monkeypatch.setattr(attention, "_times", lambda *_: (1.0, 2.0))
    monkeypatch.setattr(attention, "time_shares", lambda *_: {"loss": 0.5})
    rows = attention.rows(Setup(True, 0.0))
    found = [next(rows) for _ in range(6)]
    assert [row for row in found if "backward_s" in row] and found[-1]["loss"] == 0.5
    with pytest.raises(AssertionError, match="trees are 1 nats from fp32"):
        next(rows)


def test_peers_with_other_losses_are_kept_and_named(monkeypatch):
    from benchmarks.gpu import actor
    from benchmarks.gpu.sections import Setup

    losses = {"flat": 1.0, "tree": 1.001}
    compared = [{"case": "tiny", "peer": peer, "loss": loss, "threads": 2} for peer, loss in losses.items()]
    monkeypatch.setattr(actor, "compare", lambda *_, **__: compared)
    rows = actor.rows(Setup(True, time.time() + 1000))
    assert [next(rows)["peer"] for _ in losses] == ["flat", "tree"]
    with pytest.raises(AssertionError, match=r"^tiny: tree computed a loss of 1.001, flat 1.0$"):
        next(rows)
    assert not actor.disagreements([row | {"threads": None} for row in compared])  # bf16
    assert not actor.disagreements([compared[0], compared[1] | {"case": "other"}])


def test_every_kernel_of_the_losses_counts_as_loss():
    from benchmarks.step_tree import kind_of

    sources = (ROOT / "kernels" / "dapo_kernels" / "ops").glob("*.py")
    names = [name for path in sources for name in re.findall(r"^def (\w+_kernel)\(", path.read_text(), re.MULTILINE)]
    assert len(names) >= 7 and {kind_of(name) for name in names} == {"loss"}, names
    assert kind_of("nvjet_tst_128x256") == "gemm" and kind_of("vectorized_elementwise_kernel") == "other"


def test_a_profiler_that_sees_nothing_is_no_idle_gpu(monkeypatch):
    import torch

    from benchmarks.step_tree import time_shares

    monkeypatch.setattr(torch.profiler.profile, "key_averages", lambda *_: [])
    assert time_shares(lambda: 0.0, torch.device("cpu")).keys() == {"unavailable"}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_run_leaves_no_process(number, tmp_path):
    """Whatever held the GPU would hold it against the next run."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry-run", "--section", "errors", "--out", str(tmp_path)]
    run = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    child = None
    while child is None:
        assert run.poll() is None
        child = next((pid for pid in children(run.pid) if "--child" in words_of(pid)), None)
        time.sleep(0.01)
    run.send_signal(number)
    assert run.wait() in (143, -signal.SIGKILL)
    for _ in range(1000):
        if "--child" not in words_of(child):
            return
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    pytest.fail("the child lives on")


def children(pid):
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def words_of(pid):
    """A process's command line; nothing of one that has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return []


def test_both_samplers_are_warm_before_they_are_timed():
    from benchmarks.rollout import _interleaved

    calls = []
    _interleaved(lambda: calls.append("ours"), lambda: calls.append("theirs"), 2)
    assert calls == ["ours", "theirs"] * 3


def test_without_a_gpu_it_says_so():
    done = gpu()
    assert done.returncode == 2 and "no GPU" in done.stderr and not done.stdout


CHILD = """
import json, sys, time
mark = "@benchmarks.gpu "
names = sys.argv[sys.argv.index("--child") + 1].split(",")
for name in names:
    print(mark + json.dumps({"row": {"suite": "s", "case": name, "peer": "p"}}), flush=True)
    if name == "errors":
        print(mark + json.dumps({"failed": "ValueError: wrong"}), flush=True)
        sys.exit(1)
    if name == "tests":
        sys.exit(7)
    if name == "attention":
        time.sleep(1000)
    if name == "actor":
        print("other people's words")
        print(mark + json.dumps({"done": "left out: liger not installed"}), flush=True)
        continue
    print(mark + json.dumps({"done": "done"}), flush=True)
"""


@pytest.fixture
def runner(tmp_path, monkeypatch):
    """A runner over six sections whose processes do what CHILD says."""
    from benchmarks.gpu import runner as module
    from benchmarks.gpu.sections import SECTIONS

    script = tmp_path / "child.py"
    script.write_text(CHILD)
    made = module.Runner(list(SECTIONS), 1000.0, tmp_path, True)
    made._deadlines["attention"], made._grace = time.time(), 0.0
    popen = subprocess.Popen

    def start(command, **options):
        return popen([command[0], str(script), *command[3:]], **options)

    monkeypatch.setattr(module.subprocess, "Popen", start)
    return made


def test_what_fails_dies_or_hangs_ends_alone(runner):
    runner.run()
    states = {row["case"]: row["state"] for row in runner.rows if row["suite"] == "gpu"}
    assert states["errors"] == "ValueError: wrong" and states["tests"] == "its process ended with exit code 7"
    assert states["attention"].startswith("stopped after") and states["actor"] == "left out: liger not installed"
    assert states["fused_loss"] == states["sampling"] == "done"
    assert [failure.split()[0] for failure in runner.failures] == ["errors", "tests", "attention"]
    written = json.loads(runner.path.read_text())["suites"]
    assert len(written["gpu"]["rows"]) == 6 and {row["case"] for row in written["s"]["rows"]} >= {"errors", "tests"}
