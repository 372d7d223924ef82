"""kill -9 at random moments, then the same call again: as if nothing had happened."""

import multiprocessing
import os
import random
import signal
import time

import pytest
import train_cases as cases
from safetensors.torch import load_file

from dapo_fast.rundir import read_metrics

TIMED = ("seconds", "tokens_per_s", "items_per_s", "memory_gib", "mfu")
KILLS = int(os.environ.get("DAPO_FAST_TEST_KILLS", "4"))
LONG = {"sft": {"steps": 25}, "critic": {"epochs": 12}, "actor": {"steps": 25}}


def curve(directory):
    lines = read_metrics(directory / "metrics.jsonl")
    return [{key: value for key, value in line.items() if key not in TIMED} for line in lines]


def child(stage, base, out):
    cases.run(stage, base, out, {}, save_every=3, **LONG[stage])


def started(stage, base, out):
    process = multiprocessing.get_context("fork").Process(target=child, args=(stage, base, out))
    process.start()
    return process


def steps(out):
    return (out / "metrics.jsonl").read_text().count("\n") if (out / "metrics.jsonl").exists() else 0


def finishes(process):
    process.join()
    return process.exitcode == 0


@pytest.mark.parametrize("stage", ["actor", "sft", "critic"])
def test_killed_and_resumed_is_the_same_to_the_last_bit(base, tmp_path, stage):
    """Curve, weights and summary of a run killed at random moments equal those of a run left alone."""
    assert finishes(started(stage, base, tmp_path / "straight"))
    rng = random.Random(stage)
    killed = 0
    for _ in range(KILLS if stage == "actor" else max(2, KILLS // 2)):
        process = started(stage, base, tmp_path / "killed")
        last = rng.uniform(0, 0.8) * steps(tmp_path / "straight")  # at once, where a run before this came as far
        while process.is_alive() and steps(tmp_path / "killed") < last:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.02))  # and anywhere in a step
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
    assert killed
    assert finishes(started(stage, base, tmp_path / "killed"))
    assert curve(tmp_path / "killed") == curve(tmp_path / "straight")
    assert [line["step"] for line in curve(tmp_path / "killed")] == list(
        range(1, len(curve(tmp_path / "straight")) + 1)
    )
    model = "model/model.safetensors"
    ours, theirs = load_file(tmp_path / "killed" / model), load_file(tmp_path / "straight" / model)
    assert ours.keys() == theirs.keys()
    assert all((ours[name] == theirs[name]).all() for name in ours)
    for name in ("scores.parquet", "heldout.json"):
        if (tmp_path / "straight" / name).exists():
            assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()
    assert not (tmp_path / "killed" / "checkpoints").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_polite_signal_saves_the_step_and_says_so_by_its_exit_code(base, tmp_path, number):
    out = tmp_path / "a"
    process = multiprocessing.get_context("fork").Process(
        target=cases.run, args=("actor", base, out, {}), kwargs={"steps": 2000, "save_every": 10_000}
    )
    process.start()
    deadline = time.monotonic() + 600
    while not (out / "metrics.jsonl").exists() or len((out / "metrics.jsonl").read_text().splitlines()) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, number)
    process.join(600)
    assert process.exitcode == 128 + number
    (saved,) = (out / "checkpoints").iterdir()
    assert int(saved.name.removeprefix("step-")) == len((out / "metrics.jsonl").read_text().splitlines())
