"""Collection: what a tree holds, and what the options do."""

import random
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from dapo_fast.config import CollectSettings
from dapo_fast.data.store import read_trees
from dapo_fast.data.tree import Trunk
from dapo_fast.errors import InputError
from dapo_fast.rollout.collect import collect
from dapo_fast.rollout.engine import Sample, Undecoded
from dapo_fast.rollout.grow import Sampled, candidates_of, choose_trunks, decision_point, states_of
from dapo_fast.rollout.in_process import InProcessEngine
from dapo_fast.rollout.steps import Splitter, split_steps
from dapo_fast.rundir import read_state
from dapo_fast.tasks import get_task

TASK = get_task("arithmetic")
TOKENIZER = TASK.tokenizer()
EOS = TOKENIZER.eos_token_id


def ids(text, end=False):
    return TOKENIZER(text, add_special_tokens=False)["input_ids"] + [EOS] * end


def encode(problem):
    return ids(problem.prompt)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(TASK.model_config()).eval()
    with torch.no_grad():  # steps and ends likely enough for short tests
        model.lm_head.weight.mul_(0.5)
    return model


@pytest.fixture(scope="module")
def policy(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("policy")
    model.save_pretrained(path)
    TOKENIZER.save_pretrained(path)
    return path


@pytest.fixture
def engine(policy):
    return InProcessEngine(AutoModelForCausalLM.from_pretrained(policy), TOKENIZER, 128)


def lenient(problem, text):
    """A verdict that random responses meet about half of the time."""
    return sum(map(ord, text)) % 2 == 0


def gather(engine, out, verify=lenient, problems=6, seed=1, digest="d", encode=encode, **settings):
    settings = {
        **{"samples": 6, "kept": 4, "completions": 4, "max_tokens": 20, "shard_problems": 4, "reuse_samples": False},
        **settings,
    }
    summary = collect(
        problems if isinstance(problems, list) else TASK.problems(problems, seed=0),
        engine,
        CollectSettings(**settings),
        out,
        encode=encode,
        verify=verify,
        seed=seed,
        digest=digest,
    )
    return summary, list(read_trees(out))


def test_trees_are_whole(engine, tmp_path):
    summary, trees = gather(engine, tmp_path)
    assert [t.problem_id for t in trees] == [p.id for p in TASK.problems(6, seed=0)]
    done = read_state(tmp_path / "done.json")
    assert {name: shard["trees"] for name, shard in done.pop("shards").items()} == {
        "shard-00000.parquet": 4,
        "shard-00001.parquet": 2,
    }
    assert done == summary
    for tree, problem in zip(trees, TASK.problems(6, seed=0), strict=True):
        assert (tree.prompt, tree.answer, tree.prompt_ids) == (problem.prompt, problem.answer, encode(problem))
        assert tree.sampled == 6 and 0 < len(tree.trunks) <= 4
        for trunk in tree.trunks:
            assert trunk.step_ends == split_steps(trunk.ids, TOKENIZER)
            assert trunk.finished == (trunk.ids[-1] == EOS)
            text = TOKENIZER.decode(trunk.ids, skip_special_tokens=True)
            assert trunk.reward == float(trunk.finished and lenient(problem, text))
        prefixes = [tuple(tree.response_prefix(s)) for s in tree.states]
        wanted = {tuple(t.ids[:end]) for t in tree.trunks for end in [0, *t.step_ends[:-1]]}
        assert len(set(prefixes)) == len(prefixes) and set(prefixes) == wanted
        for state in tree.states:
            assert len(state.rewards) == sum(c.count for c in state.candidates) == 4
            assert len({tuple(c.ids) for c in state.candidates}) == len(state.candidates)
            budget = 20 - len(tree.response_prefix(state))
            for c in state.candidates:
                assert split_steps(c.ids, TOKENIZER) == [len(c.ids)]
                assert c.terminal == (c.ids[-1] == EOS or len(c.ids) == budget)
                assert c.reward == 0 or (c.terminal and c.ids[-1] == EOS)
    states = [s for t in trees for s in t.states]
    assert summary["states"] == len(states) and summary["completions"] == 4 * len(states)
    assert summary["all_wrong"] == sum(s.mc == 0 for s in states)
    assert summary["pairs"] == sum(len(s.candidates) for s in states)
    assert summary["correct"] == sum(t.correct for t in trees) > 0
    assert summary["generated_tokens"] == engine.generated_tokens


def test_the_seed_decides_and_nothing_else(engine, tmp_path):
    _, first = gather(engine, tmp_path / "a")
    _, again = gather(engine, tmp_path / "b")
    _, other = gather(engine, tmp_path / "c", seed=2)
    assert first == again != other
    assert gather(engine, tmp_path / "a")[1] == first  # finished: read, not made


def test_all_wrong_and_truncated_responses(engine, tmp_path, caplog):
    engine.end_ids = []
    summary, trees = gather(engine, tmp_path, verify=lambda p, t: False, splitter="regex:never", problems=2)
    assert summary["correct"] == 0 and summary["all_wrong"] == summary["states"] == 2
    assert summary["truncated_trunks"] == summary["trunks"]
    assert summary["truncated_responses"] == summary["responses"] == 12
    assert "100% of responses did not finish" in caplog.text and "collect.max_tokens" in caplog.text
    for tree in trees:
        [state] = tree.states
        assert state.mc == 0 and all(c.terminal and c.reward == 0 and len(c.ids) == 20 for c in state.candidates)
        assert all(c.right == 0 and c.n >= 1 for c in state.candidates)


def test_unfinished_responses_are_never_verified(engine, tmp_path):
    asked = []
    gather(engine, tmp_path, verify=lambda p, t: asked.append((p.id, t)) or True, max_tokens=6)
    assert len(set(asked)) == len(asked)  # within a shard phase, equal texts are judged once
    for tree in read_trees(tmp_path):
        assert all(t.reward == float(t.finished) for t in tree.trunks)


def test_other_settings_are_refused(engine, tmp_path):
    gather(engine, tmp_path)
    for change in ({"seed": 2}, {"digest": "e"}, {"completions": 3}, {"problems": 5}):
        with pytest.raises(InputError, match=r"shard-0000\d"):
            gather(engine, tmp_path, **change)


def test_an_edited_problem_is_not_mixed_in(engine, tmp_path):
    problems = TASK.problems(6, seed=0)
    gather(engine, tmp_path, problems=problems)
    edited = [*problems[:5], replace(problems[5], answer="another")]
    with pytest.raises(InputError, match=r"shard-00001\.parquet: made with other settings, .* or other problems"):
        gather(engine, tmp_path, problems=edited)


def test_a_prompt_that_fills_the_context_is_left_out_and_named(engine, tmp_path, caplog):
    problems = TASK.problems(6, seed=0)
    long = problems[4].id

    def repeating(problem):
        return encode(problem) * (10 if problem.id == long else 1)

    engine.context = 60
    summary, trees = gather(engine, tmp_path, encode=repeating)
    assert [t.problem_id for t in trees] == [p.id for p in problems if p.id != long]
    assert summary["too_long"] == 1 and summary["problems"] == 5
    assert f"1 of 6 prompts fill the context of 60 tokens and are left out: {long} (70)" in caplog.text
    engine.context = 1
    with pytest.raises(InputError, match="not one of 6 prompts fits in a context of 1 tokens"):
        gather(engine, tmp_path / "none")


def test_bad_input_is_refused_before_anything_is_sampled(tmp_path):
    class Silent:
        tokenizer = TOKENIZER

    with pytest.raises(ValueError, match="splitter 'words': unknown"):
        gather(Silent(), tmp_path, splitter="words")
    with pytest.raises(InputError, match="no problems"):
        collect([], Silent(), CollectSettings(), tmp_path, encode=encode, verify=lenient, seed=0, digest="")
    with pytest.raises(InputError, match="more than once"):
        problems = TASK.problems(1, seed=0) * 2
        collect(problems, Silent(), CollectSettings(), tmp_path, encode=encode, verify=lenient, seed=0, digest="")


# ------------------------------------------------------------------------------------------------ the rules


def test_trunks_are_balanced_and_distinct():
    responses = [(i,) for i in range(8)]
    assert choose_trunks(responses, [1, 1, 1, 1, 0, 0, 0, 0], 4) == [0, 1, 4, 5]
    assert choose_trunks(responses, [1, 0, 0, 0, 0, 0, 0, 0], 4) == [0, 1, 2, 3]
    assert choose_trunks(responses, [1, 1, 1, 1, 1, 1, 1, 0], 4) == [0, 1, 2, 7]
    assert choose_trunks(responses, [1] * 8, 3) == [0, 1, 2]
    assert choose_trunks([(1,), (1,), (2,), (2,)], [0, 0, 0, 0], 3) == [0, 2]


def test_states_are_unique_prefixes():
    trunks = [Trunk([1, 2, 3], [1, 2, 3], 0.0, True), Trunk([1, 2, 4], [1, 2, 3], 1.0, True)]
    assert [(s.trunk, s.step) for s in states_of(trunks)] == [(0, 0), (0, 1), (0, 2)]
    assert [(s.trunk, s.step) for s in states_of(trunks, every=2)] == [(0, 0), (0, 2)]


def test_candidates_are_unique_first_steps():
    completions = Sampled(budget=30)
    completions.add(ids("1+2=3\n3=3", end=True), True, 1.0)
    completions.add(ids("1+2=3\n0=0", end=True), True, 0.0)
    completions.add(ids("1=1", end=True), True, 1.0)
    completions.add(ids("1=1"), False, 0.0)
    found = candidates_of(completions, Splitter(TOKENIZER))
    assert [(c.ids, c.count, c.terminal, c.reward) for c in found] == [
        (ids("1+2=3\n"), 2, False, 0.0),
        (ids("1=1", end=True), 1, True, 1.0),
        (ids("1=1"), 1, True, 0.0),
    ]


def test_decision_point_keeps_its_error():
    for m in (2, 4, 8, 16, 32):
        for error in (0.002, 0.01, 0.05):
            k = decision_point(m, error)
            assert 1 <= k <= m
            rng = random.Random(0)
            # A uniform success rate, seen after k agreeing verdicts: Beta(1, k + 1).
            squares = [
                (sum(rng.random() < p for _ in range(m - k)) / m) ** 2
                for p in (rng.betavariate(1, k + 1) for _ in range(4000))
            ]
            assert sum(squares) / len(squares) <= error * 1.15
    assert decision_point(16, 0.01) == 8


# ------------------------------------------------------------------------------------------------ the options


def test_every_kth_state(engine, tmp_path):
    _, trees = gather(engine, tmp_path, every_state=2)
    assert {s.step % 2 for t in trees for s in t.states} == {0}


def test_reused_samples_are_the_prompts_completions(engine, tmp_path):
    summary, trees = gather(engine, tmp_path / "a", reuse_samples=True)
    plain, _ = gather(engine, tmp_path / "b", reuse_samples=False)
    assert summary["completion_tokens"] < plain["completion_tokens"]
    for tree in trees:
        assert len(tree.states[0].rewards) == 6 and sum(tree.states[0].rewards) == tree.correct
        assert all(len(s.rewards) == 4 for s in tree.states[1:])


def through(prefix, continuations):
    """Outcomes by looking at every continuation: (ids, tokens given, reward)."""
    found = [r for whole, start, r in continuations if start <= len(prefix) and whole[: len(prefix)] == prefix]
    return sum(r > 0 for r in found), len(found)


def test_every_trunk_step_is_a_candidate_with_its_evidence(engine, tmp_path):
    _, trees = gather(engine, tmp_path, samples=4, kept=4, completions=3)
    alone = 0
    for tree in trees:
        known = [(t.ids, 0, t.reward) for t in tree.trunks]
        if len(tree.trunks) < tree.sampled:  # a response that repeats another is not in the tree
            continue
        taken = {}
        for state in tree.states:
            prefix = tree.response_prefix(state)
            assert sum(c.count for c in state.candidates) == len(state.rewards) == 3
            steps = {tuple(c.ids): c for c in state.candidates}
            for trunk in tree.trunks:
                ends = [0, *trunk.step_ends]
                if trunk.ids[: len(prefix)] == prefix and len(prefix) in ends[:-1]:
                    step = tuple(trunk.ids[len(prefix) : ends[ends.index(len(prefix)) + 1]])
                    assert steps[step].n >= 1
                    alone += steps[step].count == 0
                    taken.setdefault(tuple(prefix), set()).add(step)
        # Completions are not in the store; what it says of the responses and of the next states bounds n from below.
        rewards = {tuple(tree.response_prefix(s)): s.rewards for s in tree.states}
        for state in tree.states:
            prefix = tree.response_prefix(state)
            for candidate in state.candidates:
                after = prefix + candidate.ids
                right, n = through(after, known)
                further = rewards.get(tuple(after), [])
                assert candidate.n >= n + len(further) + candidate.count
                assert candidate.right >= right + sum(further)
    assert alone > 0


def test_without_completions_responses_are_the_evidence(engine, tmp_path):
    summary, trees = gather(engine, tmp_path, completions=0, samples=6, kept=2)
    assert summary["completions"] == summary["completion_tokens"] == 0
    for tree in trees:
        assert len(tree.states[0].rewards) == 6 and sum(tree.states[0].rewards) == tree.correct
        for state in tree.states:
            prefix = tree.response_prefix(state)
            trunks = [t for t in tree.trunks if t.ids[: len(prefix)] == prefix and len(t.ids) > len(prefix)]
            assert len(state.rewards) == sum(c.count for c in state.candidates) >= len(trunks) > 0
            assert all(c.n == c.count for c in state.candidates)
        assert sum(c.count for c in tree.states[0].candidates) == tree.sampled


def test_first_steps_alone(engine, tmp_path):
    summary, trees = gather(engine, tmp_path / "a", completions=0, first_steps=5)
    whole, _ = gather(engine, tmp_path / "b", completions=5, kept=6)
    assert summary["states"] == whole["states"]
    assert 0 < summary["completion_tokens"] < whole["completion_tokens"]
    for tree in trees:
        for state in tree.states:
            assert sum(c.count for c in state.candidates) == len(state.rewards) + 5
            for c in state.candidates:
                assert split_steps(c.ids, TOKENIZER) == [len(c.ids)]
                assert c.reward == 0 or (c.terminal and c.ids[-1] == EOS)
                assert c.terminal == (c.ids[-1] == EOS or len(c.ids) + len(tree.response_prefix(state)) == 20)


def test_decided_states_are_skipped(engine, tmp_path):
    point = decision_point(8, 0.05)
    assert point < 8
    summary, trees = gather(engine, tmp_path, completions=8, skip_decided=True, decided_error=0.05)
    states = [s for t in trees for s in t.states]
    assert {len(s.rewards) for s in states} == {point, 8}
    for state in states:
        assert (len(state.rewards) == point) == (len(set(state.rewards[:point])) == 1)
    skipped = sum(8 - len(s.rewards) for s in states)
    assert summary["skipped_completions"] == skipped > 0


def test_states_of_solved_problems_are_not_completed(engine, tmp_path):
    solved = {p.answer for p in TASK.problems(6, seed=0)[:3]}
    assert 0 < sum(p.answer in solved for p in TASK.problems(6, seed=0)) < 6

    def verify(problem, text):
        return problem.answer in solved

    whole, _ = gather(engine, tmp_path / "whole", verify, max_tokens=200)
    summary, trees = gather(engine, tmp_path / "skipped", verify, max_tokens=200, skip_solved=True)
    right = [tree for tree in trees if tree.correct == tree.sampled]
    assert summary["solved"] == len(right) == whole["solved"] > 0
    assert summary["completion_tokens"] < whole["completion_tokens"]
    for tree in trees:
        responses = [trunk.ids for trunk in tree.trunks]
        for state in tree.states:
            prefix = tree.response_prefix(state)
            if tree in right:  # what passes through it is all that is known of it: at least the trunk
                passing = sum(ids[: len(prefix)] == prefix for ids in responses)
                assert set(state.rewards) == {1.0} and passing <= len(state.rewards) <= tree.sampled
            else:
                assert len(state.rewards) == 4


def test_the_text_of_a_sample_is_not_made_for_a_collection(engine, tmp_path, monkeypatch):
    def text(sample):
        raise AssertionError("a sample was decoded, whose whole response is judged")

    monkeypatch.setattr(Undecoded, "text", property(text))
    _, trees = gather(engine, tmp_path, problems=2, first_steps=2)
    assert any(trunk.reward for tree in trees for trunk in tree.trunks)


class Scripted:
    """An engine that says what it is told."""

    tokenizer = TOKENIZER
    context = 512

    def __init__(self, texts):
        self.texts = texts

    def generate(self, prompts, params, progress=None):
        def sample(i):
            text = self.texts[i % len(self.texts)]
            return Sample(ids(text, end=True), text, True)

        return [[sample(i) for i in range(params.n)] for _ in prompts]


def test_right_and_wrong_by_the_tasks_verifier(tmp_path):
    [problem] = TASK.problems(1, seed=0)
    wrong = str((int(problem.answer) + 1) % 7)
    engine = Scripted([f"1=1\n0={problem.answer}", f"1=1\n0={wrong}", f"0={problem.answer}", f"0={wrong}"])
    settings = CollectSettings(samples=4, kept=2, completions=4, max_tokens=40, reuse_samples=False)
    summary = collect([problem], engine, settings, tmp_path, encode=encode, verify=TASK.verify, seed=0, digest="")
    [tree] = read_trees(tmp_path)
    assert [t.reward for t in tree.trunks] == [1.0, 0.0] and summary["accuracy"] == 0.5
    assert [(s.trunk, s.step, s.mc) for s in tree.states] == [(0, 0, 0.5), (0, 1, 0.5)]


class Lost(Scripted):
    """An engine that goes wrong, unless a first line is given to it."""

    def generate(self, prompts, params, progress=None):
        given = [len(prompt) > len(encode(self.problem)) for prompt in prompts]
        answer = int(self.problem.answer)
        texts = [f"0={answer if right else (answer + 1) % 7}" for right in given]
        return [[Sample(ids(text, end=True), text, True)] * params.n for text in texts]

    def __init__(self, problem):
        self.problem = problem


def start_within(problem, out, **settings):
    settings = {"samples": 2, "kept": 2, "completions": 2, "max_tokens": 40, "gold_starts": True} | settings
    collect([problem], Lost(problem), CollectSettings(**settings), out,
            encode=encode, verify=TASK.verify, seed=0, digest="")  # fmt: skip
    return next(iter(read_trees(out)))


def test_completions_start_within_a_gold_solution_where_nothing_was_right(tmp_path):
    [problem] = TASK.problems(1, seed=0)
    answer = int(problem.answer)
    solved = replace(problem, extra={"solution": f"1=1\n0={answer}"})
    tree = start_within(solved, tmp_path / "a")
    assert [(TOKENIZER.decode(t.ids[:-1]), t.reward) for t in tree.trunks] == [
        (f"0={(answer + 1) % 7}", 0.0),
        (f"1=1\n0={answer}", 1.0),
    ]
    assert (tree.sampled, tree.correct) == (2, 0)
    prompt, within = tree.states
    assert (within.trunk, within.step, within.rewards) == (1, 1, [1.0, 1.0])
    # Its first step was not sampled, and is backed by the completions that follow it.
    step = next(c for c in prompt.candidates if c.ids == ids("1=1\n"))
    assert (step.count, step.right, step.n) == (0, 2, 2) and prompt.rewards == [0.0, 0.0]

    for name, extra, settings in (
        ("no solution", None, {}),
        ("judged wrong", {"solution": f"0={(answer + 2) % 7}"}, {}),
        ("too long", {"solution": f"1=1\n0={answer}"}, {"max_tokens": 5}),
        ("off", {"solution": f"1=1\n0={answer}"}, {"gold_starts": False}),
    ):
        tree = start_within(replace(problem, extra=extra), tmp_path / name, **settings)
        assert [t.reward for t in tree.trunks] == [0.0], name
