"""Evaluation: its statistics, its files, and that a kill costs time and nothing else."""

import json
import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dapo_fast.config import EvaluateSettings
from dapo_fast.data.problems import Problem
from dapo_fast.errors import InputError
from dapo_fast.evaluate import evaluate
from dapo_fast.rollout.engine import Sample
from dapo_fast.rundir import read_state
from dapo_fast.statistics import pass_at_k, summarise, wilson_interval


@dataclass
class FakeEngine:
    """Answers every problem with its parity or, sampled, by a coin that the seed throws; problem 3 never ends."""

    calls: int = 0
    dies_at: int = -1
    tokenizer: object = None
    context: int = 512

    def generate(self, prompts, params, progress=None):
        assert all(len(prompt) < self.context for prompt in prompts)
        if self.calls == self.dies_at:
            raise KeyboardInterrupt
        self.calls += 1
        progress(params.n * len(prompts))
        return [[self.sample(prompt[0], params, i) for i in range(params.n)] for prompt in prompts]

    @staticmethod
    def sample(number, params, index):
        coin = number if params.temperature == 0 else hash((number, params.seed, index)) >> 3
        return Sample([1, 2, 3], "right \ud800" if coin % 2 else "wrong", number != 3)


PROBLEMS = [Problem(str(i), f"{i}?", str(i)) for i in range(10)]
SETTINGS = EvaluateSettings(samples=4, batch_problems=3, max_tokens=8)


def run(out, engine=None, problems=PROBLEMS, settings=SETTINGS, **arguments):
    return evaluate(
        problems,
        engine or FakeEngine(),
        settings,
        out,
        encode=lambda problem: [int(problem.id)] * len(problem.prompt),
        verify=lambda problem, response: response.startswith("right"),
        **arguments,
    )


def test_fractions_are_averaged_and_written_out(tmp_path):
    third = lambda problem, response: 1 / 3 if response.startswith("right") else 1.0  # noqa: E731
    arguments = {"encode": lambda problem: [int(problem.id)], "verify": third}
    summary = evaluate(PROBLEMS, FakeEngine(), SETTINGS, tmp_path, **arguments)
    # Of ten greedy responses five are even and worth 1, four are odd and worth a third, and one never ends.
    assert summary["greedy"]["accuracy"] == pytest.approx((5 + 4 / 3) / 10)
    assert summary["greedy"]["low"] < summary["greedy"]["accuracy"] < summary["greedy"]["high"]
    assert not any(key.startswith("pass@") for key in summary["sampled"])
    rows = [json.loads(line)["responses"][0] for line in (tmp_path / "greedy.jsonl").read_text().splitlines()]
    assert [row.get("reward") for row in rows[:4]] == [None, pytest.approx(1 / 3), None, None]
    assert [row["correct"] for row in rows[:4]] == [True, False, True, False]
    assert evaluate(PROBLEMS, FakeEngine(dies_at=0), SETTINGS, tmp_path, **arguments) == summary


def contents(out):
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name != "timing.json"}


def test_results(tmp_path):
    summary = run(tmp_path)
    greedy = summary["greedy"]
    assert greedy["accuracy"] == 0.4  # 1, 5, 7, 9; 3 is right but does not end
    assert greedy["n"] == 10 and greedy["truncated"] == 0.1 and greedy["tokens"] == 3
    assert (greedy["low"], greedy["high"]) == wilson_interval(4, 10)
    sampled = summary["sampled"]
    assert sampled["samples"] == 4 and sampled["pass@1"] == pytest.approx(sampled["accuracy"])
    assert sampled["pass@1"] <= sampled["pass@2"] <= sampled["pass@4"]
    assert sampled["low"] < sampled["accuracy"] < sampled["high"]
    assert read_state(tmp_path / "summary.json") == summary
    rows = [json.loads(line) for line in (tmp_path / "greedy.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [problem.id for problem in PROBLEMS]
    assert rows[1]["responses"] == [{"text": "right \ud800", "correct": True, "finished": True, "tokens": 3}]
    assert rows[3]["responses"][0]["correct"] is False


def test_a_prompt_that_fills_the_context_is_wrong_unseen_and_named(tmp_path, caplog):
    problems = [*PROBLEMS[:4], Problem("41", "far too long", "41"), *PROBLEMS[5:]]
    summary = run(tmp_path, FakeEngine(context=10), problems)
    assert "1 of 10 prompts" in caplog.text and "41 (12)" in caplog.text
    assert summary["greedy"]["n"] == 10 and summary["greedy"]["too_long"] == summary["sampled"]["too_long"] == 1
    assert summary["greedy"]["accuracy"] == 0.4  # of 1, 3, 5, 7, 9 the third never ends
    rows = [json.loads(line) for line in (tmp_path / "sampled.jsonl").read_text().splitlines()]
    assert [r["correct"] for r in rows[4]["responses"]] == [False] * 4
    for kept in ([PROBLEMS[5]], [Problem("41", "far too long", "41")]):
        run(tmp_path / str(len(kept[0].prompt)), FakeEngine(context=10), kept)


def test_many_cut_responses_are_a_warning_with_the_remedy(tmp_path, caplog):
    run(tmp_path / "few")
    assert "evaluate.max_tokens" not in caplog.text
    run(tmp_path / "many", problems=PROBLEMS[2:6])
    assert "25% of responses did not finish" in caplog.text and "raise evaluate.max_tokens" in caplog.text


def test_an_id_that_occurs_twice_is_refused(tmp_path):
    with pytest.raises(InputError, match="more than once"):
        run(tmp_path, problems=[PROBLEMS[0], PROBLEMS[0]])


def test_greedy_alone(tmp_path):
    assert set(run(tmp_path, settings=EvaluateSettings())) == {"greedy"}
    assert not (tmp_path / "sampled.jsonl").exists()


@pytest.mark.parametrize("dies_at", range(8))
def test_killed_run_ends_as_the_uninterrupted_one(dies_at, tmp_path):
    run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", FakeEngine(dies_at=dies_at))
    # A kill within a write leaves part of a batch, and part of a line.
    if (tmp_path / "killed" / "greedy.jsonl").exists():
        with open(tmp_path / "killed" / "greedy.jsonl", "ab") as file:
            file.write((tmp_path / "whole" / "greedy.jsonl").read_bytes()[file.tell() :][:100])
    engine = FakeEngine()
    run(tmp_path / "killed", engine)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert engine.calls == 8 - dies_at


def test_finished_run_samples_nothing(tmp_path):
    first = run(tmp_path)
    engine = FakeEngine()
    assert run(tmp_path, engine) == first and engine.calls == 0


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"digest": "other model"},
        {"problems": PROBLEMS[:5]},
        {"problems": [*PROBLEMS[:-1], Problem("9", "9?", "10")]},
        {"settings": SETTINGS.model_copy(update={"temperature": 0.5})},
    ],
)
def test_never_mixes(change, tmp_path):
    run(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(InputError, match="other settings, problems or model"):
        run(tmp_path, **change)
    assert contents(tmp_path) == before


def test_unclaimed_results_and_no_problems(tmp_path):
    with pytest.raises(InputError, match="no problems"):
        run(tmp_path, problems=[])
    (tmp_path / "greedy.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match=r"greedy\.jsonl: already there"):
        run(tmp_path)


@given(st.integers(1, 12), st.data())
def test_pass_at_k_is_the_mean_over_all_subsets(n, data):
    from itertools import combinations

    correct, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, min(n, 4)))
    outcomes = [i < correct for i in range(n)]
    subsets = [any(subset) for subset in combinations(outcomes, k)]
    assert pass_at_k(n, correct, k) == pytest.approx(sum(subsets) / len(subsets))


def test_wilson_against_published_values():
    # Newcombe 1998 (Statistics in Medicine 17, table I), method 3.
    for successes, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert wilson_interval(20, 20)[1] == 1.0


def test_interval_of_samples_counts_what_is_independent():
    def rows(counts, samples):
        made = lambda c: [{"correct": i < c, "finished": True, "tokens": 1} for i in range(samples)]  # noqa: E731
        return [{"responses": made(count)} for count in counts]

    alike = summarise(rows([8, 0] * 20, 8))  # all samples of a problem agree: 40 observations
    mixed = summarise(rows([4] * 40, 8))  # no problem differs from another: 320
    assert (alike["low"], alike["high"]) == pytest.approx(wilson_interval(20, 40), abs=0.01)
    assert (mixed["low"], mixed["high"]) == pytest.approx(wilson_interval(160, 320))
    assert math.isclose(alike["pass@8"], 0.5) and mixed["pass@8"] == 1.0
