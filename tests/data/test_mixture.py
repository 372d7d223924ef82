"""Several sets of problems in one run: their shares, and that the same seed gives the same problems."""

import json

import pytest

from dapo_fast.config import Config
from dapo_fast.data.mixture import mixed
from dapo_fast.data.problems import Problem
from dapo_fast.errors import InputError
from dapo_fast.parts import Parts


def problems(count):
    return [Problem(str(i), f"{i}?", str(i)) for i in range(count)]


@pytest.mark.parametrize(
    ("sizes", "weights", "limit", "counts"),
    [
        ((90, 30), (2, 1), None, (60, 30)),
        ((90, 30), (2, 1), 10, (7, 3)),
        ((90, 30), (2, 1), 500, (60, 30)),
        ((90, 30), (None, None), None, (90, 30)),
        ((90, 30), (None, None), 12, (9, 3)),
        ((3, 3, 3), (1, 1, 1), 4, (2, 1, 1)),
        ((3, 3, 3), (0.1, 0.1, 0.1), None, (3, 3, 3)),
        ((1, 1000), (1, 999), None, (1, 999)),
        ((7,), (0.3,), 5, (5,)),
        ((5, 100), (1, 1000), 50, (0, 50)),
    ],
)
def test_shares(sizes, weights, limit, counts):
    sets = {f"s{i}": problems(size) for i, size in enumerate(sizes)}
    found = mixed(sets, weights, limit, seed=3)
    assert len({problem.id for problem in found}) == len(found) == sum(counts)
    if len(sizes) > 1:
        assert tuple(sum(p.id.startswith(f"{name}/") for p in found) for name in sets) == counts


def test_which_of_a_set_goes_by_the_seed():
    sets = {"a": problems(50), "b": problems(50)}
    once, again, other = (mixed(sets, (1, 1), 20, seed) for seed in (1, 1, 2))
    assert once == again and {p.id for p in once} != {p.id for p in other}
    assert [p.id for p in mixed(sets, (1, 1), 4, None)] == ["a/0", "a/1", "b/0", "b/1"]


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "more").mkdir()
    rows = {
        "maths.jsonl": [{"prompt": f"{i}+{i}?", "answer": str(2 * i)} for i in range(8)],
        "code.jsonl": [{"prompt": f"f{i}", "tests": {"test_list": [f"assert f() == {i}"]}} for i in range(8)],
        "more/maths.jsonl": [{"prompt": f"{i}?", "answer": str(i)} for i in range(8)],
    }
    for name, of_file in rows.items():
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in of_file))


def config(problems, **data):
    return Config(model={"path": "m"}, data={"problems": problems, "limit": 6, **data})


def test_maths_and_code_in_one_run_are_each_judged_by_their_kind(files):
    both = [{"path": "maths.jsonl", "weight": 2}, {"path": "code.jsonl", "weight": 1}]
    parts = Parts(config(both, heldout=[{"path": "code.jsonl"}, {"path": "maths.jsonl"}]))
    found = parts.problems(1)
    assert [problem.kind for problem in found] == ["math"] * 4 + ["code"] * 2
    assert [p.id.partition("/")[0] for p in found] == ["maths"] * 4 + ["code"] * 2
    assert parts.problems(1) == found != parts.problems(2)
    assert len(parts.heldout()) == 16
    reward = parts.reward(found)
    assert reward(found[0], f"It is \\boxed{{{found[0].answer}}}.") == 1 and reward(found[0], "\\boxed{99}") == 0
    right = found[-1].tests["test_list"][0].rpartition(" ")[2]
    assert reward(found[-1], f"```python\ndef f():\n    return {right}\n```") == 1


def test_one_set_alone_keeps_its_ids_and_its_order(files):
    assert {p.id for p in Parts(config("maths.jsonl")).problems(1)} < {str(i) for i in range(1, 9)}
    named = Parts(config([{"path": "maths.jsonl"}, {"path": "more/maths.jsonl"}], limit=None)).problems(1)
    assert named[0].id == "maths.jsonl/1" and named[-1].id == "more/maths.jsonl/8"


@pytest.mark.parametrize(
    ("sources", "words"),
    [
        ([], "data.problems: an empty list"),
        ([{"path": "a"}, {"path": "a"}], "data.problems: a is there more than once"),
        ([{"path": "a", "weight": 1}, {"path": "b"}], "data.problems: a weight for every set of problems, or for none"),
        ([{"path": "a", "weight": 0}], "weight: Input should be greater than or equal to 0.000001"),
        ([{"path": "a", "wieght": 1}], "wieght: there is no such setting"),
    ],
)
def test_what_is_no_mixture_is_named(sources, words, tmp_path):
    from dapo_fast.config import load_config

    with pytest.raises(InputError) as error:
        load_config(None, None, ["model.path=m", f"data.problems={json.dumps(sources)}"])
    assert words in str(error.value) and "\n" not in str(error.value)
