"""``run`` with several processes: the lock, the signals and the exit code reach across torchrun."""

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from dapo_fast.cli import main
from dapo_fast.train.torchrun import _most_telling

SETTINGS = ["--preset", "arithmetic", "parallel.processes=2", "sft.steps=4000", "data.heldout_limit=4"]


def words(run, *more):
    return ["run", str(run), *SETTINGS, *more]


def start(run, log, *more):
    """The command in a fork of this process, which spares its imports; torchrun and its ranks have their own."""

    def work():
        # Under nohup, which these tests may run under, they are ignored, and by all that is started.
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        sys.stdout = sys.stderr = open(log, "a", buffering=1)  # noqa: SIM115 - as long as this process
        os.dup2(sys.stderr.fileno(), 1)
        os.dup2(sys.stderr.fileno(), 2)
        sys.exit(main(words(run, *more)))

    process = multiprocessing.get_context("fork").Process(target=work, daemon=True)
    process.start()
    return process


def ended(process):
    """Its exit code."""
    process.join(600)
    return process.exitcode


def until(condition, process):
    deadline = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < deadline and process.is_alive()
        time.sleep(0.02)


def processes_of(run):
    """torchrun and its ranks; ``run`` itself is a fork of this process, and called as that is."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and str(run).encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


@pytest.fixture
def run(tmp_path):
    directory = tmp_path / "run"
    yield directory
    for pid in processes_of(directory):
        os.kill(pid, signal.SIGKILL)


def test_a_polite_stop_saves_the_step(run, tmp_path):
    process = start(run, tmp_path / "log")
    metrics = run / "sft" / "metrics.jsonl"
    until(lambda: metrics.exists() and len(metrics.read_text().splitlines()) >= 3, process)
    os.kill(process.pid, signal.SIGTERM)
    assert ended(process) == 128 + signal.SIGTERM
    assert "SIGTERM; saved step" in (tmp_path / "log").read_text()
    assert len(list((run / "sft" / "checkpoints").glob("step-*"))) == 1
    assert not processes_of(run)


def test_a_killed_parent_keeps_its_lock(run, tmp_path, capsys):
    process = start(run, tmp_path / "log")
    until(lambda: len(processes_of(run)) >= 3, process)  # torchrun and its two ranks
    process.kill()
    process.join()
    assert main(words(run)) == 2
    assert "another process is working in this run directory" in capsys.readouterr().err
    assert len(processes_of(run)) >= 3  # undisturbed


def test_a_closed_terminal_before_the_ranks_are_there_ends_all_of_them(run, tmp_path):
    process = start(run, tmp_path / "log")
    until(lambda: processes_of(run), process)
    os.kill(process.pid, signal.SIGHUP)
    assert ended(process) == 128 + signal.SIGHUP
    assert not processes_of(run)


def test_the_exit_code_is_the_reason_and_not_what_it_led_to():
    assert _most_telling([1, 2, 143]) == 2
    assert _most_telling([1, 143]) == 1
    assert _most_telling([-9, 0, 0]) == 137


def test_bad_input_of_a_rank_is_bad_input_of_the_run(run, tmp_path):
    (run / "sft" / "metrics.jsonl").mkdir(parents=True)  # which `run` itself does not open
    assert ended(start(run, tmp_path / "log")) == 2
    assert "(rank 0): " in (tmp_path / "log").read_text()
