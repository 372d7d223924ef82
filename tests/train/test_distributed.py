"""Training on several ranks with gloo: other numbers of them, the same mathematics; and what a lost one does."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import train_cases as cases
from train_cases import assert_same, assert_same_advantages, curve, launch

from dapo_fast.cli import main
from dapo_fast.config import load_config
from dapo_fast.data.store import seal
from dapo_fast.names import import_path
from dapo_fast.pipeline import Pipeline
from dapo_fast.rundir import RunDirectory
from dapo_fast.train import heartbeat


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    directory = tmp_path_factory.mktemp("base")
    cases.write_model(directory / "policy", tied=True)
    cases.write_trees(directory / "trees")
    return directory


def test_every_world_size_gives_what_one_process_gives(base):
    """All stages at world size 2, the actor at 4 and at 2 × 2 hybrid, with other packs and other accumulation."""
    for stage in ("sft", "critic", "actor", "advantages"):
        cases.run(stage, base, base / f"{stage}-1", {})
    cases.run("actor", base, base / "lora-1", {}, lora_rank=2)
    small = {"pack_tokens": 100}
    full = {"activation_checkpointing": "full"}
    launch(
        2,
        base,
        [
            {"stage": "sft", "out": "sft-2", "changes": small},
            {"stage": "critic", "out": "critic-2", "changes": small},
            {"stage": "advantages", "out": "advantages-2"},
            {"stage": "actor", "out": "actor-2", "parallel": full},
            {"stage": "actor", "out": "lora-2", "changes": {"lora_rank": 2}},
        ],
    )
    launch(
        4,
        base,
        [
            {"stage": "actor", "out": "actor-4", "changes": small},
            {"stage": "actor", "out": "actor-2x2", "changes": {"pack_tokens": 64}, "parallel": {"replicas": 2}},
        ],
    )
    for stage in ("sft", "critic", "actor"):
        assert_same(base / f"{stage}-2", base / f"{stage}-1")
    assert_same(base / "lora-2", base / "lora-1")
    for name in ("actor-4", "actor-2x2"):
        assert_same(base / name, base / "actor-1")
    # A batch that one pack would hold is cut in two for two ranks.
    assert sum(curve(base / "actor-2", "packs")) > sum(curve(base / "actor-1", "packs"))
    heldout = [json.loads((base / f"critic-{n}" / "heldout.json").read_text())["critic"]["bce"] for n in (1, 2)]
    assert heldout[0] == pytest.approx(heldout[1], abs=1e-5)
    assert_same_advantages(base / "advantages-2", base / "advantages-1")


EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 16}


def test_two_processes_balance_experts_as_one_does(tmp_path):
    """Training, with packs of other sizes and blocks that are computed again."""
    cases.write_model(tmp_path / "policy", family="qwen3_moe", **EXPERTS)
    cases.write_trees(tmp_path / "trees")
    changes = {"router_aux": 0.5, "steps": 4}
    for stage in ("critic", "actor"):
        cases.run(stage, tmp_path, tmp_path / f"{stage}-1", {}, **changes)
    full = {"activation_checkpointing": "full"}
    jobs = [{"stage": s, "out": f"{s}-2", "changes": changes | {"pack_tokens": 64}} for s in ("critic", "actor")]
    launch(2, tmp_path, [job | {"parallel": full} for job in jobs])
    for stage in ("critic", "actor"):
        assert_same(tmp_path / f"{stage}-2", tmp_path / f"{stage}-1")
        values = curve(tmp_path / f"{stage}-1", "router_loss")
        assert values == pytest.approx(curve(tmp_path / f"{stage}-2", "router_loss"), rel=1e-5)
    cases.run("actor", tmp_path, tmp_path / "off", {}, steps=4)
    assert "router_loss" not in (tmp_path / "off" / "metrics.jsonl").read_text()
    assert curve(tmp_path / "actor-1", "router_loss")[-1] < values[0]


def test_ranks_told_to_stop_save_one_step_and_one_process_goes_on(base):
    changes = {"steps": 40, "save_every": 1000}
    ranks = cases.jobs_forked(2, base, [{"stage": "actor", "out": "term", "changes": changes}], base / "log-term")
    metrics = base / "term" / "metrics.jsonl"
    deadline = time.monotonic() + 600
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 3:
        assert time.monotonic() < deadline and all(rank.is_alive() for rank in ranks)
        time.sleep(0.02)
    for rank in ranks:
        os.kill(rank.pid, signal.SIGTERM)
    for rank in ranks:
        rank.join(600)
    assert [rank.exitcode for rank in ranks] == [128 + signal.SIGTERM] * 2
    assert "SIGTERM; saved step" in (base / "log-term").read_text()
    assert len(list((base / "term" / "checkpoints").glob("step-*"))) == 1
    cases.run("actor", base, base / "term", {}, **changes)
    cases.run("actor", base, base / "straight", {}, **changes)
    assert curve(base / "term", "step") == list(range(1, 41))
    assert_same(base / "term", base / "straight", 1e-4)


def test_a_rank_that_dies_stops_the_others_with_one_message(base):
    """Rank 1 is killed in the middle of a step: rank 0, in a collective with it, ends too."""
    processes = cases.jobs_forked(
        2, base, [{"stage": "actor", "out": "dies", "dies": {"rank": 1, "call": 4}}], base / "log-dies"
    )
    for process in processes:
        process.join(600)
    assert [process.exitcode for process in processes] == [1, -signal.SIGKILL]
    text = (base / "log-dies").read_text()
    assert text.count("another process of this training died or hangs") == 1
    assert "Traceback" not in text


def test_a_rank_that_hangs_stops_the_others(base, monkeypatch):
    """Rank 1 is stopped, not killed: no connection breaks, only its heart is silent."""
    monkeypatch.setattr(heartbeat, "LOST_AFTER_S", 2.0)
    monkeypatch.setattr(heartbeat, "HEARTBEAT_S", 0.2)
    job = {"stage": "actor", "out": "hangs", "dies": {"rank": 1, "call": 4, "by": int(signal.SIGSTOP)}}
    processes = cases.jobs_forked(2, base, [job], base / "log-hangs")
    processes[0].join(600)
    assert processes[0].exitcode == 1
    processes[1].kill()
    processes[1].join()
    assert "no sign of life from rank 1" in (base / "log-hangs").read_text()


def through_forks(words, log):
    """``dapo-fast WORDS`` on two ranks that a launcher with no command of its own started. Returns what they print."""
    ranks = cases.forked(2, lambda: sys.exit(main(words)), log)
    for rank in ranks:
        rank.join(600)
    assert [rank.exitcode for rank in ranks] == [0, 0], log.read_text()
    return log.read_text()


def through_torchrun(words, log):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"PYTHONPATH": import_path()}
    command = [sys.executable, *launcher, "-m", "dapo_fast", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_command_line_on_several_ranks(base):
    """``dapo-fast critic RUN``, ``advantages`` and, under torchrun, ``actor`` give what they give in one process."""
    overrides = ["sft.steps=4", "critic.batch_states=24", "actor.batch_pairs=32", "actor.steps=5", "advantages.gap=0"]
    runs = base / "run-1", base / "run-2"
    for run in runs:
        pipeline = Pipeline(RunDirectory(run, load_config(preset="arithmetic", overrides=overrides)))
        pipeline.layout.claim("sft", 0)
        shutil.copytree(base / "policy", run / "sft" / "model")
        collected, digest = pipeline.layout.claim("collect", 1)
        cases.write_trees(collected)
        seal(collected, {"digest": digest})
    for stage, launched in (("critic", through_forks), ("advantages", through_forks), ("actor", through_torchrun)):
        lines = [[stage, str(run), "--preset", "arithmetic", *overrides] for run in runs]
        assert main(lines[0]) == 0
        assert launched(lines[1], base / f"log-{stage}").count(f"{stage}: digest=") == 1
        one, two = (run / "iter1" / stage for run in runs)
        (assert_same_advantages if stage == "advantages" else assert_same)(two, one)
        # The next stage is to start from the same bits.
        shutil.rmtree(two)
        shutil.copytree(one, two)
    # A finished stage of another config is refused by every rank, with one message and the exit code of bad input.
    assert main(["actor", str(runs[1]), "actor.beta=0.5"]) == 2
