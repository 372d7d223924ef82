"""A collection that is killed again and again ends with the store of one that was left alone."""

import multiprocessing
import os
import random
import signal
import time

from dapo_fast.config import CollectSettings, ModelSettings
from dapo_fast.data.store import read_shard
from dapo_fast.rollout.collect import collect
from dapo_fast.rollout.in_process import InProcessEngine
from dapo_fast.rundir import read_state
from dapo_fast.tasks import get_task

KILLS = int(os.environ.get("DAPO_FAST_TEST_KILLS", "3"))
PROBLEMS, SHARD = 24, 2
SETTINGS = CollectSettings(samples=4, kept=2, completions=4, max_tokens=24, shard_problems=SHARD)


def run(policy, out):
    task = get_task("arithmetic")
    engine = InProcessEngine.load(policy, ModelSettings(device="cpu"), 64)
    collect(
        task.problems(PROBLEMS, seed=0),
        engine,
        SETTINGS,
        out,
        encode=lambda p: engine.tokenizer(p.prompt, add_special_tokens=False)["input_ids"],
        verify=task.verify,
        seed=5,
        digest="test",
    )


def shards(out):
    return {path.name: path.read_bytes() for path in out.glob("shard-*.parquet")}


def test_killed_again_and_again_it_ends_with_the_same_store(untrained_policy, tmp_path):
    rng, killed = random.Random(0), 0
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(untrained_policy, whole)
    for _ in range(KILLS):
        process = multiprocessing.get_context("fork").Process(target=run, args=(untrained_policy, cut))
        process.start()
        last = rng.uniform(0, 0.8) * PROBLEMS / SHARD  # at once, where a collection before this came as far
        while process.is_alive() and len([*cut.glob("shard-*.parquet")]) < last:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.1))  # and anywhere in a shard
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
    assert killed
    run(untrained_policy, cut)
    assert sorted(path.name for path in cut.iterdir()) == sorted(path.name for path in whole.iterdir())
    assert shards(cut) == shards(whole) and len(shards(cut)) == PROBLEMS / SHARD
    assert all(read_shard(cut / name) for name in shards(cut))
    first, second = (read_state(directory / "done.json") | {"seconds": 0} for directory in (whole, cut))
    assert first == second
