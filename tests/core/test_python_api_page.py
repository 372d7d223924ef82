"""The code on docs/python-api.md runs, top to bottom, and does what the page says."""

import importlib
import json
import re
from pathlib import Path

import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification

from dapo_fast import DAPO
from dapo_fast.cli import main
from dapo_fast.data.store import read_trees
from dapo_fast.errors import InputError
from dapo_fast.rundir import read_state

PAGE = Path(__file__).parents[2] / "docs" / "python-api.md"
SMALL = {
    "iterations": 1,
    "data": {"limit": 20, "heldout_limit": 20},
    "sft": {"steps": 150, "batch_sequences": 32, "schedule": "constant"},
    "critic": {"epochs": 1},
    "actor": {"steps": 2},
    "evaluate": {"samples": 0},
}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The names that the page's code leaves, and where it ran."""
    directory = tmp_path_factory.mktemp("page")
    (directory / "small.yaml").write_text(yaml.safe_dump(SMALL))
    names = {"__name__": "page"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S):
            exec(block, names)
        yield names


def test_stages_give_models_and_trees_that_load(page):
    run = page["run"]
    assert AutoModelForCausalLM.from_pretrained(run.policy).config.hidden_size == 96
    assert AutoModelForTokenClassification.from_pretrained(run.critic_model).num_labels == 1
    assert page["tree"].states[0].candidates[0].advantage is not None
    assert run.evaluate(0)["greedy"]["n"] == 20


def test_rows_of_a_dataset_and_a_reward_of_ones_own(page):
    mine, trees = page["mine"], list(page["mine"].trees)
    assert len(trees) == 20 and mine.policy == mine.directory / "iter1" / "actor" / "model"
    assert {trunk.reward for tree in trees for trunk in tree.trunks} == {0.0, 1.0}
    assert mine.config.data.problems.startswith("<20 problems ")


def test_the_best_step_is_chosen_by_other_rows(page):
    done = read_state(page["best"].policy.parent / "done.json")
    assert done["best"]["step"] in (2, 4) and page["best"].config.data.validation.startswith("<5 problems ")


def test_fractions_of_several_rewards(page):
    rewards = {t.reward for tree in read_trees("runs/both/iter1/collect") for t in tree.trunks}
    assert any(0 < reward < 0.2 for reward in rewards) and max(rewards) > 0.8
    assert all(c.right <= c.n for t in read_trees("runs/both/iter1/collect") for s in t.states for c in s.candidates)


def test_engine_objective_and_callbacks_were_used(page):
    assert page["Counting"].prompts >= 20
    stages = [event.stage for event in page["heard"] if event.step is None]
    assert stages == ["collect", "critic", "advantages", "actor"]
    steps = [event.step for event in page["heard"] if event.stage == "actor" and event.step]
    assert steps == list(range(1, len(steps) + 1)) and len(steps) > 0
    assert all("loss" in event.values for event in page["heard"] if event.step)


def test_the_critic_values_steps(page):
    steps = page["steps"]
    assert [step.text for step in steps][1:3] == ["4-6=5-3-0-2\n", "5-3=2-0-2\n"]
    assert all(0 < step.before < 1 for step in steps) and steps[-1].after is None


def test_a_task_as_an_object(page):
    easy = page["easy"]
    trees = list(easy.trees)
    assert easy.config.data.task.startswith("<page:Lenient ") and len(trees) == 20
    assert {trunk.reward for tree in trees for trunk in tree.trunks} <= {0.0, 0.5, 1.0}


def test_other_problems_or_another_reward_are_refused_as_other_settings_are(page):
    small, rows, right = page["small"], page["rows"], page["ends_well"]
    DAPO(small, "runs/mine", problems=rows, reward=right).collect()  # the same rows, in a list: done already
    with pytest.raises(InputError, match=r"holds results of other settings: data\.problems \('<20 problems "):
        DAPO(small, "runs/mine", problems=rows[1:], reward=right).collect()
    with pytest.raises(InputError, match=r"holds results of other settings: reward .*page:brief"):
        DAPO(small, "runs/mine", problems=rows, reward=page["brief"]).collect()
    with pytest.raises(InputError, match=r"reward <page:ends_well .*>: was given by a program"):
        DAPO(None, "runs/mine", problems=rows).iterate()


REWARD = """
def last_digit(problem, response):
    return response.endswith(problem.answer) / 2
"""


def test_the_command_line_names_a_reward_and_a_program_resumes_it(page, capsys):
    Path("own_rewards.py").write_text(REWARD)
    row = {"prompt": "=6*3-6-3-0-2", "answer": 1}
    Path("own.jsonl").write_text("".join(json.dumps(row | {"id": i}) + "\n" for i in range(3)))
    given = [f"model.path={page['run'].policy}", "data.problems=own.jsonl", "data.template=none", "collect.kept=2"]
    command = ["collect", "runs/cli", *given, "collect.samples=4", "collect.completions=2", "collect.max_tokens=48"]
    assert main([*command, "reward=own_rewards:first_digit"]) == 2
    assert "reward=own_rewards:first_digit: reward: own_rewards:first_digit: cannot be" in capsys.readouterr().err
    assert main([*command, "reward=own_rewards:last_digit"]) == 0
    resumed = DAPO(None, "runs/cli", reward=importlib.import_module("own_rewards").last_digit)
    assert resumed.config.reward == "own_rewards:last_digit"
    assert resumed.collect()["problems"] == 3
    assert {trunk.reward for tree in resumed.trees for trunk in tree.trunks} <= {0.0, 0.5}
