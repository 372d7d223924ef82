"""A collection over a server that fails in every way it can: the same store as without faults, or one clear error."""

import os
import random

import httpx
import pytest
from openai_server import FAULTS, WRONG

from dapo_fast.config import CollectSettings, EngineSettings
from dapo_fast.errors import InputError
from dapo_fast.rollout.collect import collect
from dapo_fast.rollout.http import HttpEngine
from dapo_fast.tasks import get_task

pytestmark = pytest.mark.usefixtures("quick_retries")
TASK = get_task("arithmetic")
SETTINGS = CollectSettings(samples=3, kept=2, completions=2, max_tokens=12, shard_problems=2)
RUNS = int(os.environ.get("DAPO_FAST_TEST_FAULTS", "8"))  # 50 of them take a minute


@pytest.fixture(scope="module")
def directory(untrained_policy):
    return untrained_policy


def gather(engine, out):
    return collect(
        TASK.problems(4, seed=0),
        engine,
        SETTINGS,
        out,
        encode=lambda p: engine.tokenizer(p.prompt, add_special_tokens=False)["input_ids"],
        verify=lambda problem, text: sum(map(ord, text)) % 2 == 0,
        seed=5,
        digest="test",
    )


def shards(out):
    return {path.name: path.read_bytes() for path in sorted(out.glob("shard-*.parquet"))}


def test_the_store_is_the_same_whatever_fails(directory, serve, tmp_path):
    rng = random.Random(0)
    fatal = (400, *WRONG)
    stopped = 0
    with serve(hang=0.05) as (url, _):
        # Enough retries that a request never runs out of them by chance; a pause (hang) is shorter than the timeout.
        engine = HttpEngine(EngineSettings(kind="http", urls=[url], retries=12, timeout_s=60, concurrency=4), directory)
        gather(engine, tmp_path / "whole")
        expected = shards(tmp_path / "whole")
        assert len(expected) == 2
        for number in range(RUNS):
            out = tmp_path / str(number)
            faults = [rng.choice([None, *FAULTS[:5], *FAULTS[6:]]) for _ in range(rng.randrange(1, 12))]
            if number % 5 == 0:
                faults.insert(rng.randrange(len(faults)), rng.choice(fatal))
            httpx.post(f"{url}/faults", json=faults).raise_for_status()
            try:
                gather(engine, out)
            except InputError as error:
                assert "\n" not in str(error) and not set(faults).isdisjoint(fatal)
                stopped += 1
                done = shards(out)
                assert done.items() <= expected.items()  # what was whole stays
                httpx.post(f"{url}/faults", json=[]).raise_for_status()
                gather(engine, out)
            assert shards(out) == expected, faults
    assert 0 < stopped <= RUNS / 5 + 1
