"""The whole of Algorithm 1 through the command line, small: it learns, resumes, and refuses what it must."""

import json
import multiprocessing
import shutil
import time

import pytest
import yaml

from dapo_fast.cli import main
from dapo_fast.config import load_config
from dapo_fast.stages import write_initial_model
from dapo_fast.tasks import get_task

SMALL = [
    "seed=0",
    "iterations=1",
    "data.limit=300",
    "data.heldout_limit=200",
    "sft.save_every=50",
    "collect.shard_problems=50",
    "actor.steps=150",
    "actor.save_every=30",
    "evaluate.samples=2",
]


SERVER = ["engine.kind=http", "engine.urls=[http://127.0.0.1:9]"]


def run(directory, *more):
    return main(["run", str(directory), "--preset", "arithmetic", *SMALL, *more])


def content(directory):
    """What a run leaves, bit for bit: models, trees and tables (metrics carry clocks)."""
    names = ["*.safetensors", "shard-*.parquet", "summary.json"]
    skip = ("checkpoints", "start")
    paths = sorted(p for n in names for p in directory.rglob(n) if not any(s in p.parts for s in skip))
    return {str(p.relative_to(directory)): p.read_bytes() for p in paths}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "whole"
    assert run(directory) == 0
    return directory


def test_it_learns(finished):
    before, after = json.loads((finished / "results.json").read_text())
    assert after["sampled"]["accuracy"] > before["sampled"]["high"]
    assert after["accepted"] and after["advantages"]["pairs"] > 0
    assert (finished / "report.html").stat().st_size > 1000


def test_a_finished_run_returns_at_once_and_keeps_its_table(finished, no_pictures):
    before = content(finished)
    assert run(finished) == 0
    assert content(finished) == before


def test_other_settings_are_refused(finished, capsys):
    assert run(finished, "actor.beta=0.3") == 2
    message = capsys.readouterr().err
    assert "actor.beta" in message and "0.3" in message


# Enough for every stage to have work, and a few checkpoints.
BRIEF = [
    *("sft.steps=150", "sft.batch_sequences=32", "data.limit=60", "data.heldout_limit=20", "collect.shard_problems=20"),
    *("critic.epochs=1", "actor.steps=20", "actor.save_every=5", "advantages.gap=0"),
]
# Each is there once a stage is well under way.
MOMENTS = ("sft/checkpoints/step-*[0-9]", "iter1/collect/shard-00001.parquet", "iter1/actor/metrics.jsonl")


def test_killed_in_three_stages_it_ends_with_the_same_bits(tmp_path, no_pictures):
    directory = tmp_path / "killed"
    assert run(tmp_path / "whole", *BRIEF) == 0
    fork = multiprocessing.get_context("fork")  # which spares the imports
    for moment in MOMENTS:
        process = fork.Process(target=run, args=(directory, *BRIEF))
        process.start()
        while not [*directory.glob(moment)]:
            assert process.is_alive()
            time.sleep(0.02)
        process.kill()
        process.join()
    assert run(directory, *BRIEF) == 0
    assert content(directory) == content(tmp_path / "whole")


def test_all_wrong_is_a_clear_message_and_not_a_trained_model(tmp_path, no_pictures, capsys):
    untrained = [
        "sft.steps=1",
        "data.limit=4",
        "data.heldout_limit=8",
        "collect.shard_problems=4",
        "collect.max_tokens=3",
    ]
    assert run(tmp_path / "run", *untrained) == 3
    rows = json.loads((tmp_path / "run" / "results.json").read_text())
    assert "no state passes the advantage gap" in rows[-1]["stopped"] and not rows[-1]["accepted"]
    assert not (tmp_path / "run" / "iter1" / "actor" / "model").exists()
    assert main(["actor", str(tmp_path / "run")]) == 2
    assert "no state passes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "RUN"], "no config.yaml"),
        (["run", "/dev/null/run", "--preset", "arithmetic"], "/dev/null/run: cannot be used as a run directory"),
        (["run", "RUN", "--preset", "arithmetic", "actor.bta=1"], "actor.bta"),
        (["run", "RUN", "--preset", "nothing"], "--preset nothing"),
        (["run", "RUN", "data.problems=none.jsonl", "model.path=none"], "none.jsonl"),
        (["actor", "RUN", "--preset", "arithmetic"], "dapo-fast advantages"),
        (["critic", "RUN", "--preset", "arithmetic", "--iteration", "9"], "iteration 9: the run has"),
        (["evaluate", "--model", "none"], "--benchmark"),
        (["report", "RUN"], "config.yaml"),
        (["run", "RUN", "--preset", "arithmetic", "critic.init=none"], "critic.init none"),
        (["run", "RUN", "--preset", "arithmetic", "critic.init=other"], "critic.init other: its tokenizer"),
        (["run", "RUN", "--preset", "arithmetic", "iterations=1", *SERVER], "engine.command: needed to measure"),
        (["sft", "RUN", "--preset", "arithmetic", "sft.data=number.jsonl"], 'number.jsonl:2: "response" is a text'),
        (["sft", "RUN", "--preset", "arithmetic", "sft.data=."], "sft.data .: not a readable text file"),
    ],
)
def test_bad_input_exits_with_2_and_one_line(arguments, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "number.jsonl").write_text(
        '{"prompt": "1=", "response": "\u2028"}\n{"prompt": "2+2=", "response": 4}\n'
    )
    write_initial_model(get_task("instruments"), tmp_path / "other", 0)
    assert main([str(tmp_path / "run") if a == "RUN" else a for a in arguments]) == 2
    message = capsys.readouterr().err.strip()
    assert words in message and "Traceback" not in message


def test_a_run_is_not_measured_on_something_else(finished, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", str(finished), "--benchmark", "math500"])
    assert stop.value.code == 2
    assert "--benchmark is for a model without a RUN" in capsys.readouterr().err


def test_a_run_directory_may_have_an_equals_sign(finished, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "lr=1")
    assert main(["evaluate", str(tmp_path / "lr=1"), "--iteration", "1"]) == 0
    assert "greedy" in capsys.readouterr().out


def test_config_of_a_run_is_saved_whole(finished):
    saved = load_config(finished / "config.yaml")
    assert saved == load_config(preset="arithmetic", overrides=SMALL)
    assert yaml.safe_load((finished / "config.yaml").read_text())["actor"]["beta"] == "auto"
