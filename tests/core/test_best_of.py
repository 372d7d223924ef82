"""Choosing among responses by a critic: what is chosen, and the values that it is chosen by."""

import importlib
import json

import pytest
import torch

from dapo_fast.best_of import choose_by_critic, given_answer
from dapo_fast.cli import main
from dapo_fast.data.problems import Problem
from dapo_fast.errors import InputError
from dapo_fast.models.loading import load_value_model
from dapo_fast.models.value import ValueModel
from dapo_fast.rundir import read_state
from dapo_fast.step_values import StepValues, ValuedStep
from dapo_fast.tasks import TASKS

TASK = TASKS["arithmetic"]
RESPONSE = "6*3=4-6-3\n4-6=5-3\n5-3=2"


@pytest.fixture(scope="module")
def critic(tmp_path_factory):
    path = tmp_path_factory.mktemp("critic")
    model = ValueModel.from_config(TASK.model_config(), seed=1)
    with torch.no_grad():
        model.value_head.weight.copy_(torch.linspace(-1, 1, 96)[None])
    model.save_pretrained(path)
    TASK.tokenizer().save_pretrained(path)
    return path


def test_a_step_is_worth_what_the_critic_says_before_and_after_it(critic):
    steps = StepValues(critic, "none")("=6*3-6-3", RESPONSE)
    assert [step.text for step in steps] == ["6*3=4-6-3\n", "4-6=5-3\n", "5-3=2"]
    model, tokenizer = load_value_model(critic), TASK.tokenizer()
    prefix = "=6*3-6-3"
    for step in steps:
        ids = torch.tensor([tokenizer(prefix, add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            expected = model.model(input_ids=ids).logits[0, -1, 0].sigmoid().item()
        assert step.before == pytest.approx(expected, abs=1e-5)
        prefix += step.text
    assert [step.after for step in steps] == [steps[1].before, steps[2].before, None]
    assert len({round(step.before, 4) for step in steps}) == 3


def test_an_open_response_has_a_value_at_its_end(critic):
    steps = StepValues(critic, "none")("=6*3-6-3", "6*3=4-6-3\n", finished=False)
    assert len(steps) == 1
    assert steps[0].after == pytest.approx(StepValues(critic, "none")("=6*3-6-3", RESPONSE)[1].before, abs=1e-5)


class Says:
    """A critic that values a response by the number after its text."""

    def scores(self, responses):
        return [[float(text.split("|")[1]) for text in texts] for _, texts in responses]

    def __call__(self, problem, response):
        return [ValuedStep(response, float(response.split("|")[1]), None)]


def rows(*problems):
    made = []
    for name, responses in enumerate(problems):
        found = [{"text": t, "correct": c, "finished": f, "tokens": 1} for t, c, f in responses]
        made.append(json.dumps({"id": str(name), "answer": "4", "responses": found}) + "\n")
    return "".join(made)


def test_what_each_rule_chooses(tmp_path):
    right, wrong = r"\boxed{{4}} |{}", r"\boxed{{5}} |{}"
    (tmp_path / "sampled.jsonl").write_text(
        rows(
            # The critic prefers the one right response, weighted votes do too, most say 5.
            [(right.format(0.9), True, True), (wrong.format(0.2), False, True), (wrong.format(0.3), False, True)],
            # An unfinished response neither votes nor is chosen, however valued.
            [(right.format(0.1), True, True), (wrong.format(0.9), False, False), (wrong.format(0.8), False, False)],
            # Two answers with one vote each share it; the critic errs.
            [(right.format(0.4), True, True), (wrong.format(0.6), False, True), ("|0.1", False, False)],
            [(right.format(0.4), True, False)] * 3,
        )
    )
    problems = [Problem(str(i), "2+2?", "4") for i in range(4)]
    found = choose_by_critic(problems, tmp_path, Says(), "a critic", {"accuracy": 0.25})
    assert found["beam"] == {"accuracy": 0.25}
    assert found["best_of"]["accuracy"] == 2 / 4
    assert found["majority"]["accuracy"] == (0 + 1 + 0.5 + 0) / 4
    assert found["weighted"]["accuracy"] == 2 / 4
    assert found["samples"] == 3 and found["best_of"]["low"] < 0.5 < found["best_of"]["high"]
    assert read_state(tmp_path / "critic.json") == found
    shown = read_state(tmp_path / "steps.json")
    assert [(row["id"], row["reward"], row["steps"][0]["before"]) for row in shown["responses"]] == [
        ("0", 1, 0.9), ("1", 1, 0.1), ("2", 1, 0.4), ("0", 0, 0.2), ("2", 0, 0.6),
    ]  # fmt: skip
    code = [Problem(str(i), "2+2?", kind="code") for i in range(4)]
    chosen = choose_by_critic(code, tmp_path, Says(), "a critic", {})
    assert set(chosen) == {"critic", "samples", "best_of", "beam"}


def test_answers_in_one_spelling():
    assert given_answer("math", r"so \boxed{\frac{1}{2}}") == given_answer("math", "The answer is 0.5.") == "1/2"
    assert given_answer("math", "no idea") is None
    assert given_answer("arithmetic", RESPONSE) == "2" and given_answer("arithmetic", "5-3=") is None


def test_nothing_sampled(tmp_path):
    with pytest.raises(InputError, match=r"sampled\.jsonl: missing"):
        choose_by_critic([Problem("0", "?", "4")], tmp_path, Says(), "a critic", {})


@pytest.mark.parametrize("lines", [1, 3])
def test_lines_of_other_problems(lines, tmp_path):
    (tmp_path / "sampled.jsonl").write_text(rows(*[[("4 |0.5", True, True)]] * lines))
    with pytest.raises(InputError, match=r"sampled\.jsonl: its lines are not those of the 2 problems"):
        choose_by_critic([Problem(str(i), "?", "4") for i in range(2)], tmp_path, Says(), "a critic", {})


CLOSING = """
from dapo_fast.config import ModelSettings
from dapo_fast.rollout.in_process import InProcessEngine

closed = []

class Closing:
    def __init__(self, policy):
        self.inner = InProcessEngine.load(policy, ModelSettings())
        self.tokenizer, self.context, self.generate = self.inner.tokenizer, self.inner.context, self.inner.generate

    def close(self):
        closed.append(self)
"""
COMMAND = ["--benchmark", "arithmetic", "--limit", "3", "data.template=none", "evaluate.max_tokens=12"]


def test_the_command_chooses_and_binds_results_to_the_engine(critic, untrained_policy, tmp_path, capsys, monkeypatch):
    command = ["evaluate", "--model", str(untrained_policy), "--out", str(tmp_path), "--critic", str(critic), *COMMAND]
    assert main(command) == 2 and "evaluate.samples 0: with --critic" in capsys.readouterr().err
    assert main([*command, "evaluate.samples=4"]) == 0
    assert "of 4, best by the critic" in capsys.readouterr().out
    (tmp_path / "own_closing.py").write_text(CLOSING)
    monkeypatch.syspath_prepend(tmp_path)
    own = ["engine.kind=own_closing:Closing", "evaluate.samples=4"]
    assert main([*command, *own]) == 2
    assert "engine (None, now 'own_closing:Closing')" in capsys.readouterr().err
    other = ["evaluate", "--model", str(untrained_policy), "--out", str(tmp_path / "other"), *COMMAND, *own]
    assert main(other) == 0 and len(importlib.import_module("own_closing").closed) == 1
    assert main([*other, "--critic", str(untrained_policy)]) == 2  # on results that are there
    assert "not a value model" in capsys.readouterr().err
