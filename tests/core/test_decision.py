"""A new policy is kept, unless it is worse than the one before by more than the intervals allow."""

import pytest

from dapo_fast.config import load_config
from dapo_fast.errors import InputError
from dapo_fast.pipeline import Pipeline
from dapo_fast.rundir import RunDirectory, read_rows, read_state, write_json


def measured(sampled, greedy=0.9):
    return {
        name: {"accuracy": value, "low": value - 0.02, "high": value + 0.02}
        for name, value in (("sampled", sampled), ("greedy", greedy))
    }


@pytest.fixture
def pipeline(tmp_path):
    config = load_config(preset="arithmetic", overrides=["iterations=3"])
    made = Pipeline(RunDirectory(tmp_path, config))
    for iteration, sampled in enumerate((0.4, 0.6, 0.5, 0.58)):
        write_json(tmp_path / f"iter{iteration}" / "evaluate" / "summary.json", measured(sampled))
    return made


def decide(pipeline, iteration):
    found = read_state(pipeline.directory.path / f"iter{iteration}" / "evaluate" / "summary.json")
    return pipeline._decide(iteration, found)


def test_worse_beyond_the_interval_is_refused_and_the_next_is_held_to_the_policy_that_stayed(pipeline):
    path = pipeline.directory.path
    assert decide(pipeline, 1)["accepted"]
    assert pipeline.layout.policy(1) == path / "iter1" / "actor" / "model"
    refused = decide(pipeline, 2)
    assert not refused["accepted"] and "50.0%" in refused["reason"] and "60.0%" in refused["reason"]
    assert pipeline.layout.policy(2) == pipeline.layout.policy(1)
    # 0.58 beats the refused 0.5, and is within the interval of the 0.6 that stayed.
    assert decide(pipeline, 3)["accepted"] and "60.0%" in decide(pipeline, 3)["reason"]
    assert pipeline.layout.policy(3) == path / "iter3" / "actor" / "model"


def test_keep_best_off_keeps_it_all_the_same(pipeline):
    pipeline.config.keep_best = False
    decide(pipeline, 1)
    assert decide(pipeline, 2)["accepted"]


def test_greedy_decides_where_nothing_was_sampled(pipeline):
    write_json(pipeline.directory.path / "iter0" / "evaluate" / "summary.json", {"greedy": measured(0, 0.9)["greedy"]})
    assert not pipeline._decide(1, {"greedy": measured(0, 0.8)["greedy"]})["accepted"]


def test_a_run_that_fails_on_the_way_keeps_the_rows_it_has_not_come_to(pipeline, monkeypatch):
    path = pipeline.directory.path / "results.json"
    rows = [{"iteration": i, "note": "before"} for i in range(4)]
    write_json(path, rows)
    monkeypatch.setattr(pipeline.layout, "has_sft", lambda: False)
    monkeypatch.setattr(pipeline, "perform", lambda name, iteration: {})
    monkeypatch.setattr(pipeline.layout, "check_settings", lambda: None)
    for check in ("check_inputs", "warn_of_memory"):
        monkeypatch.setattr(f"dapo_fast.pipeline.{check}", lambda *arguments: None)

    def iterate(iteration):
        if iteration == 2:
            raise InputError("iteration 2: a file is corrupt")
        return {"iteration": iteration}

    monkeypatch.setattr(pipeline, "iterate", iterate)
    with pytest.raises(InputError, match="corrupt"):
        pipeline.run()
    assert read_rows(path) == [{"iteration": 0, "accepted": True}, {"iteration": 1}, *rows[2:]]
    path.write_text("[3]")
    with pytest.raises(InputError, match=r"results\.json: not what a stage writes there"):
        pipeline.run()
    assert path.read_text() == "[3]"
