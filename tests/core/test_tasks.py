"""The built-in tasks: traces that are right, splits that do not leak, a verifier that demands the answer."""

import re

import pytest

from dapo_fast.config import load_config
from dapo_fast.data.problems import gold_solution
from dapo_fast.errors import InputError
from dapo_fast.parts import Parts
from dapo_fast.tasks import TASKS, get_task
from dapo_fast.tasks.instruments import RELIABLE, SUITED, UNRELIABLE, Instruments

LEFT_TO_RIGHT = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}


def value_of(expression):
    numbers = re.findall(r"[0-6]", expression)
    value = int(numbers[0])
    for operator, number in zip(re.findall(r"[+*-]", expression), numbers[1:], strict=True):
        value = LEFT_TO_RIGHT[operator](value, int(number)) % 7
    return value


@pytest.mark.parametrize("name", sorted(TASKS))
def test_tokens_round_trip_and_operators_carry_their_digit(name):
    task = get_task(name)
    tokenizer = task.tokenizer()
    for prompt, response in task.gold(20, seed=0, step=0):
        text = prompt + response
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert tokenizer.unk_token_id not in ids
    assert len(tokenizer("=6*3-6", add_special_tokens=False)["input_ids"]) == 4
    assert len(tokenizer) == task.model_config().vocab_size


def test_gold_traces_of_arithmetic_are_right_and_mix_step_sizes():
    task = get_task("arithmetic")
    sizes = []
    for prompt, response in task.gold(200, seed=3, step=7):
        remaining = prompt[1:]
        for line in response.split("\n"):
            consumed, after = line.split("=")
            assert remaining.startswith(consumed)
            assert int(after[0]) == value_of(consumed)
            sizes.append(len(re.findall(r"[+*-]", consumed)))
            remaining = after[0] + remaining[len(consumed) :]
            assert after == remaining
        assert len(remaining) == 1
    assert {1, 2, 3} == set(sizes)


def test_instruments_err_at_their_rate():
    task = Instruments()
    right = {True: [], False: []}
    for _, response in task.gold(600, seed=0, step=0):
        for line in response.split("\n"):
            consumed, mark, result = re.match(r"([0-6][+*-][0-6])([=:])([0-6])", line).groups()
            right[mark == SUITED[consumed[1]]].append(int(result) == value_of(consumed))
    assert sum(right[True]) / len(right[True]) == pytest.approx(RELIABLE, abs=0.02)
    assert sum(right[False]) / len(right[False]) == pytest.approx(UNRELIABLE, abs=0.05)


@pytest.mark.parametrize("name", sorted(TASKS))
def test_problems_are_distinct_repeatable_and_never_shared_between_splits(name):
    task = get_task(name)
    train, heldout = task.problems(300, 0), task.problems(300, 0, "heldout")
    assert train == task.problems(300, 0) and train != task.problems(300, 1)
    assert len({p.id for p in train}) == 300
    seen = {p.prompt for p in train} | {prompt for prompt, _ in task.gold(500, 0, 0)}
    assert not seen & {p.prompt for p in heldout}
    assert all(int(p.answer) == value_of(p.prompt[1:]) and p.kind == name for p in train)


@pytest.mark.parametrize("name", sorted(TASKS))
def test_solutions_are_traces_that_end_right(name):
    task = get_task(name)
    for problem in task.problems(30, 0):
        solution = task.solution(problem)
        assert solution == task.solution(problem) and task.verify(problem, solution)
        assert re.match(r"[0-6]([+*-][0-6])+", solution).group() in problem.prompt


def test_gold_starts_need_solutions(tmp_path):
    (tmp_path / "own.jsonl").write_text('{"prompt": "1+1", "answer": "2"}\n')
    own = ["model.path=m", f"data.problems={tmp_path / 'own.jsonl'}", "collect.gold_starts=true"]
    with pytest.raises(InputError, match=r"collect\.gold_starts: no problem has a 'solution'"):
        Parts(load_config(overrides=own)).problems(1)
    (tmp_path / "own.jsonl").write_text('{"prompt": "1+1", "answer": "2", "solution": "1+1=2"}\n')
    assert [gold_solution(p) for p in Parts(load_config(overrides=own)).problems(1)] == ["1+1=2"]
    tasks = Parts(load_config(preset="arithmetic", overrides=["collect.gold_starts=true"]))
    assert all(tasks.task.verify(p, gold_solution(p)) for p in tasks.problems(1))
    for without in ("collect.completions=0", "advantages.source=response"):
        with pytest.raises(InputError, match=r"collect\.gold_starts"):
            load_config(overrides=[*own, without])


def test_verifier_wants_the_answer_at_the_end():
    task = get_task("arithmetic")
    problem = task.problems(1, 0)[0]
    wrong = str((int(problem.answer) + 1) % 7)
    assert task.verify(problem, f"1*1=1+2\n1+2={problem.answer}")
    for text in (f"1*1={wrong}", f"1*1={problem.answer}+2", f"1*1={problem.answer}\n", problem.answer, "", "="):
        assert not task.verify(problem, text)


def test_unknown_task_is_named():
    with pytest.raises(InputError, match="arithmetic"):
        get_task("sudoku")
