"""Accuracy while the actor is trained, and the best policy kept: of one process, killed, of several, with adapters."""

import json
import multiprocessing
import os
import signal

import pytest
import train_cases as cases

from dapo_fast import DAPO, Config
from dapo_fast.errors import InputError
from dapo_fast.rundir import read_metrics
from dapo_fast.tasks import get_task

EVERY_TWO = {"steps": 9, "eval_every": 2, "save_every": 3}


def alike(policy, share):
    """A measure that finds all policies as good."""
    return [{"responses": [{"correct": True, "finished": True, "tokens": 1}]}] * len(range(3)[share])


def weights(out):
    return (out / "model" / "model.safetensors").read_bytes()


def measurements(out):
    """Step → accuracy and interval, where there are any."""
    rows = [row for row in read_metrics(out / "metrics.jsonl") if "validation_low" in row]
    return {row["step"]: [row[f"validation_{name}"] for name in ("accuracy", "low", "high")] for row in rows}


@pytest.fixture(scope="module")
def peak(base, tmp_path_factory):
    """How far the policy is from its start after four of nine steps; it goes on from there."""
    found = {}

    def measured(policy, share):
        found[len(found) + 1] = cases.distance(base, policy)
        return alike(policy, share)

    out = tmp_path_factory.mktemp("every") / "a"
    done = cases.run("actor", base, out, {}, measured=measured, **EVERY_TWO | {"eval_every": 1})
    assert done["best"]["step"] == 9  # of equals the latest
    assert list(found.values()) == sorted(found.values())
    return found[4]


@pytest.fixture(scope="module")
def straight(base, peak, tmp_path_factory):
    out = tmp_path_factory.mktemp("straight") / "a"
    cases.run("actor", base, out, {}, measured=cases.peaked(base, peak), **EVERY_TWO)
    return out


def test_the_best_policy_is_exported_and_every_measurement_recorded(base, straight, peak, tmp_path):
    cases.run("actor", base, tmp_path / "four", {}, steps=4)
    assert weights(straight) == weights(tmp_path / "four")
    found = measurements(straight)
    assert list(found) == [2, 4, 6, 8, 9] and len(cases.curve(straight)) == 9
    assert found[4][0] == max(accuracy for accuracy, _, _ in found.values()) == 1
    assert all(low < accuracy <= high for accuracy, low, high in found.values())
    best = json.loads((straight / "done.json").read_text())["best"]
    assert (best["step"], best["accuracy"]) == (4, 1)
    assert not (straight / "checkpoints").exists()
    # What the report says of the steps before and after is of the policy that is kept.
    scores = "scores.parquet"
    assert (straight / scores).read_bytes() == (tmp_path / "four" / scores).read_bytes()


def killed_at(call, measured):
    """``measured``, but for kill -9 when it is asked for the ``call``-th time."""
    calls = []

    def deadly(policy, share):
        calls.append(policy)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return measured(policy, share)

    return deadly


def test_killed_at_any_measurement_the_same_policy_is_kept(base, straight, peak, tmp_path):
    out, measured = tmp_path / "killed", cases.peaked(base, peak)
    fork = multiprocessing.get_context("fork")
    # Before a checkpoint; before one that the best is later than; after that; and at the last step.
    for call in (1, 3, 3, 2):
        options = {"measured": killed_at(call, measured), **EVERY_TWO}
        process = fork.Process(target=cases.run, args=("actor", base, out, {}), kwargs=options)
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    cases.run("actor", base, out, {}, measured=measured, **EVERY_TWO)
    assert weights(out) == weights(straight)
    assert measurements(out) == measurements(straight) and cases.curve(out) == cases.curve(straight)


def test_what_is_kept_is_what_a_checkpoint_goes_back_to_and_no_more(base, tmp_path, monkeypatch):
    """All policies are as good, so that each measured is the best: of the older only those of checkpoints stay."""

    def stop(self):
        raise KeyboardInterrupt

    monkeypatch.setattr("dapo_fast.train.best.BestStep.restore", stop)
    with pytest.raises(KeyboardInterrupt):
        cases.run("actor", base, tmp_path / "a", {}, measured=alike, **EVERY_TWO | {"eval_every": 1, "steps": 8})
    names = sorted(path.name for path in (tmp_path / "a" / "checkpoints" / "best").iterdir())
    assert names == [f"step-{step:08d}" for step in (3, 6, 8)]


def test_a_budget_that_ends_training_measures_the_step_that_it_ends_with(base, tmp_path):
    own = {"steps": 40, "lr": 3e-3, "kl_budget": 0.05, "eval_every": 100}
    done = cases.run("actor", base, tmp_path / "a", {}, measured=alike, **own)
    assert done["best"]["step"] == len(cases.curve(tmp_path / "a")) < 40


def test_two_processes_and_adapters_keep_the_same(base, straight, peak):
    changes = {"changes": EVERY_TWO, "stage": "actor"}
    adapted = {"changes": EVERY_TWO | {"lora_rank": 2, "lr": 1e-2}, "stage": "actor", "peak": 1e-3}
    cases.run_jobs(base, [adapted | {"out": "adapted-1"}])
    cases.launch(2, base, [changes | {"out": "two", "peak": peak}, adapted | {"out": "adapted-2"}])
    cases.assert_same(base / "two", straight)
    cases.assert_same(base / "adapted-2", base / "adapted-1")
    for name, step in (("two", 4), ("adapted-1", 2), ("adapted-2", 2)):
        assert json.loads((base / name / "done.json").read_text())["best"]["step"] == step
    assert (base / "adapted-2" / "model" / "adapter" / "adapter_model.safetensors").exists()


def test_a_measure_without_steps_or_steps_without_a_measure_is_refused(base, tmp_path):
    for options in ({"measured": alike}, {"eval_every": 2}):
        with pytest.raises(InputError, match=r"actor\.eval_every"):
            cases.run("actor", base, tmp_path / "a", {}, **options)


SMALL = {
    "sft": {"steps": 40, "batch_sequences": 16, "lr": 3e-3},
    "data": {"task": "arithmetic", "template": "none", "limit": 12, "heldout_limit": 10, "validation_limit": 6},
    "collect": {"samples": 4, "kept": 2, "completions": 2, "max_tokens": 40},
    "critic": {"steps": 2, "batch_states": 64},
    "advantages": {"gap": 0, "keep_all_wrong": True},
    "actor": {"steps": 6, "eval_every": 2, "lr": 1e-4},
    "evaluate": {"max_tokens": 40, "samples": 2},
}


def test_a_run_measures_by_its_sampler_and_reward_and_exports_the_peak(tmp_path):
    """The reward is right of no response but after step 3, when step 4 is measured."""
    heard = []

    def forced(problem, response):
        steps = [event.step for event in heard if event.stage == "actor"]
        return float(steps[-1] == 3) if steps and steps[-1] else get_task("arithmetic").verify(problem, response)

    run = DAPO(Config(**SMALL), tmp_path / "run", reward=forced, callbacks=[heard.append])
    run.collect(), run.critic(), run.advantages()
    assert run.actor()["best"]["step"] == 4
    told = {e.step: e.values["validation_accuracy"] for e in heard if "validation_accuracy" in e.values}
    assert told[4] > told[2] == told[6] == 0  # what did not finish is wrong, unseen
    # An iteration's own problems, those that are reported and those that are chosen by are three sets.
    parts = run._pipeline.parts
    sets = [{p.prompt for p in problems} for problems in (parts.problems(1), parts.heldout(), parts.validation())]
    assert [len(one) for one in sets] == [12, 10, 6] and len(set.union(*sets)) == 28


def test_problems_that_are_reported_or_trained_on_choose_nothing(base, tmp_path):
    rows = [{"prompt": f"={i}", "answer": str(i)} for i in range(6)]
    settings = {"model": {"path": base / "policy"}, "actor": {"eval_every": 2}, "data": {"template": "none"}}
    given = {"problems": rows[:2], "heldout": rows[2:4]}
    with pytest.raises(InputError, match=r"actor\.eval_every: needs data\.validation"):
        DAPO(Config(**settings), tmp_path / "a", **given)
    for validation, words in ((rows[3:], r"problem '1' is in data\.heldout"), (rows[1:2], r"is in data\.problems")):
        with pytest.raises(InputError, match=words):
            DAPO(Config(**settings), tmp_path / "a", **given, validation=validation).run()
    ranks = Config(**settings, parallel={"processes": 2})
    with pytest.raises(InputError, match=r"ranks of .* cannot import it"):
        DAPO(ranks, tmp_path / "a", **given, validation=rows[4:]).run()


def test_it_decides_nothing_where_it_is_off():
    before, off = Config(data={"task": "arithmetic"}), Config(data={"task": "arithmetic"}, actor={"eval_every": 0})
    assert "eval_every" not in off.model_dump()["actor"] and off.digest() == before.digest()
