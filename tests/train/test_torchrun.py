"""``run`` with several processes: the lock, the signals and the exit code reach across torchrun."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import train_cases as cases

from dapo_fast.train.torchrun import _most_telling

REPOSITORY = Path(cases.__file__).resolve().parents[2]
SETTINGS = ["--preset", "arithmetic", "parallel.processes=2", "sft.steps=4000", "data.heldout_limit=4"]


def start(run, log, *more):
    path = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "kernels"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "dapo_fast", "run", str(run), *SETTINGS, *more]
    environment = os.environ | {"PYTHONPATH": path}
    return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, preexec_fn=hear_hangups)


def hear_hangups():
    # Under nohup, which these tests may run under, they are ignored, and by all that is started.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def until_it_trains(process, run):
    metrics = run / "sft" / "metrics.jsonl"
    deadline = time.monotonic() + 600
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 3:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)


def processes_of(run):
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


def test_a_polite_stop_saves_the_step_and_a_killed_parent_keeps_its_lock(run, tmp_path):
    with open(tmp_path / "log", "w+") as log:
        process = start(run, log)
        until_it_trains(process, run)
        process.send_signal(signal.SIGTERM)
        assert process.wait(600) == 128 + signal.SIGTERM
        assert "SIGTERM; saved step" in (tmp_path / "log").read_text()
        assert len(list((run / "sft" / "checkpoints").glob("step-*"))) == 1
        assert not processes_of(run)

        (run / "sft" / "metrics.jsonl").unlink()
        killed = start(run, log)
        until_it_trains(killed, run)
        killed.kill()
        killed.wait()
        second = start(run, log)
        assert second.wait(600) == 2
        assert "another process is working in this run directory" in (tmp_path / "log").read_text()
        assert len(processes_of(run)) >= 3  # torchrun and its two ranks, undisturbed


def test_a_closed_terminal_before_the_ranks_are_there_ends_all_of_them(run, tmp_path):
    with open(tmp_path / "log", "w+") as log:
        process = start(run, log)
        deadline = time.monotonic() + 600
        while len(processes_of(run)) < 2:  # `run` itself, and torchrun
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGHUP)
        assert process.wait(600) == 128 + signal.SIGHUP
    assert not processes_of(run)


def test_the_exit_code_is_the_reason_and_not_what_it_led_to():
    assert _most_telling([1, 2, 143]) == 2
    assert _most_telling([1, 143]) == 1
    assert _most_telling([-9, 0, 0]) == 137


def test_bad_input_of_a_rank_is_bad_input_of_the_run(run, tmp_path):
    with open(tmp_path / "log", "w+") as log:
        assert start(run, log, "sft.data=none.jsonl").wait(600) == 2
    assert "sft.data none.jsonl" in (tmp_path / "log").read_text()
