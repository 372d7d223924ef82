"""Step-level beam search: which steps are kept, when a response has ended, and what comes of a whole run."""

import pytest

from dapo_fast.beam import BeamSearch
from dapo_fast.config import Config
from dapo_fast.data.problems import Problem
from dapo_fast.rollout.engine import Sample
from dapo_fast.tasks import get_task

TOKENIZER = get_task("arithmetic").tokenizer()
END = TOKENIZER.eos_token_id


def tokens(text):
    return list(TOKENIZER(text, add_special_tokens=False)["input_ids"])


class Proposes:
    """An engine that goes on from each text as a table says; ``.`` ends a response."""

    tokenizer, context = TOKENIZER, 40

    def __init__(self, table):
        self.table, self.asked = table, []

    def generate(self, prompts, params, progress=None):
        found = []
        for prompt, room in zip(prompts, params.max_tokens, strict=True):
            text = TOKENIZER.decode(prompt)
            self.asked.append((text, params.n, room))
            steps = self.table.get(text, ["1\n"])[: params.n]
            ids = [(tokens(step.rstrip(".")) + [END] * step.endswith("."))[:room] for step in steps]
            found.append([Sample(i, TOKENIZER.decode(i, skip_special_tokens=True), i[-1] == END) for i in ids])
        return found


class Values:
    """A critic that values what has been said as a table says."""

    def __init__(self, table):
        self.table, self.encoded, self.valued = table, [], []

    def prompt(self, problem):
        self.encoded.append(problem.id)
        return tokens(problem.prompt)

    def last(self, trunks, prompts):
        assert [tokens(problem.prompt) for problem, _ in trunks] == prompts
        self.valued.append([problem.id for problem, _ in trunks])
        said = [[TOKENIZER.decode(trunk.ids, skip_special_tokens=True) for trunk in given] for _, given in trunks]
        return [[self.table.get(text, 0.5) for text in texts] for texts in said]


def search(table, values=(), samples=4, **evaluate):
    config = Config(data={"template": "none"}, evaluate={"samples": samples, "max_tokens": 12, **evaluate})
    engine = Proposes(table)
    return BeamSearch(engine, Values(dict(values)), config), engine


def test_the_steps_that_lead_to_the_best_states_are_gone_on_from():
    steps = {"=": ["3\n", "5\n"], "=3\n": ["1\n", "1\n"], "=5\n": ["4.", "2\n"], "=5\n2\n": ["6.", "0\n"]}
    values = {"3\n": 0.5, "5\n": 0.9, "3\n1\n": 0.1, "5\n4": 0.8, "5\n2\n": 0.7, "5\n2\n6": 0.3, "5\n2\n0\n": 0.2}
    found, engine = search(steps, values)
    assert found.responses([Problem("0", "=", "4")], [tokens("=")]) == ["5\n4"]
    # Two steps of each of two beams, of which a response that has ended takes one for good.
    assert [text for text, _, _ in engine.asked] == ["=", "=5\n", "=3\n", "=5\n2\n"]
    assert {n for _, n, _ in engine.asked} == {2} and found.width == 2
    values["5\n2\n6"] = 0.85
    assert search(steps, values)[0].responses([Problem("0", "=", "4")], [tokens("=")]) == ["5\n2\n6"]


def test_a_prompt_is_encoded_once_and_a_search_that_is_over_is_not_valued_again():
    critic = Values({})
    config = Config(data={"template": "none"}, evaluate={"samples": 1, "max_tokens": 12})
    beams = BeamSearch(Proposes({"=": ["4."], "1+1=": ["2\n"], "1+1=2\n": ["3."]}), critic, config)
    problems = [Problem("0", "=", "4"), Problem("1", "1+1=", "2")]
    assert beams.responses(problems, [tokens(problem.prompt) for problem in problems]) == ["4", "2\n3"]
    assert critic.encoded == ["0", "1"] and critic.valued == [["0", "1"], ["1"]]


def test_a_response_that_never_ends_is_none_and_wrong():
    found, engine = search({}, max_tokens=6)
    right = Problem("1", "=", "4")
    assert found.responses([right], [tokens("=")]) == [None]
    assert [room for _, _, room in engine.asked] == [6, 4, 2]
    assert found.accuracy([right], lambda *_: 1.0)["accuracy"] == 0


def test_problems_are_searched_together_and_judged_by_the_reward():
    found, _ = search({"=": ["4."], "1+1=": ["2."]}, samples=1)
    problems = [Problem("0", "=", "3"), Problem("1", "1+1=", "2"), Problem("2", "1" * 40 + "=", "1")]
    said = found.accuracy(problems, lambda problem, response: response == problem.answer)
    assert said["accuracy"] == pytest.approx(1 / 3) and (said["n"], said["beams"]) == (3, 1)
    assert said["low"] < 1 / 3 < said["high"]
