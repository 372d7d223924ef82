"""Runs that have not come far, or went nowhere, and files that are broken."""

import json
import shutil

import pytest
from pages import Page
from simulated_run import (
    Simulated,
    byte_tokenizer,
    make_run,
    simulated_tree,
    start_run,
    write_evaluation,
    write_iteration,
    write_metrics,
)

from dapo_fast.config import load_config
from dapo_fast.data.store import write_shard
from dapo_fast.errors import InputError
from dapo_fast.report import write_report
from dapo_fast.rundir import RunDirectory, write_json


@pytest.fixture(autouse=True)
def few_pictures(request):
    """Only the tests marked for it draw PNGs."""
    if "pictures" not in request.fixturenames:
        request.getfixturevalue("no_pictures")


@pytest.fixture
def pictures():
    """Asks for PNGs."""


def render(path):
    return Page(write_report(path))


def missing(page):
    return sum("missing" in attributes.get("class", "") for _, attributes in page.elements)


def trees(count, seed=1):
    policy, tokenizer = Simulated(seed, 0.0), byte_tokenizer()
    return [simulated_tree(policy, tokenizer, 0.5) for _ in range(count)]


def without_values(found):
    for tree in found:
        for state in tree.states:
            state.value = None
            for candidate in state.candidates:
                candidate.q = None
    return found


def test_settings_only(tmp_path, pictures):
    RunDirectory(tmp_path / "run", load_config(None, "arithmetic", [])).save_config()
    page = render(tmp_path / "run")
    assert page.anchors()[:2] == ["provenance", "progress"]
    assert "This run is from before provenance was recorded." in page.text
    assert f"dapo-fast run {tmp_path / 'run'}" in page.text
    for stage in ("sft", "collect", "critic", "evaluate"):
        assert f"dapo-fast {stage} {tmp_path / 'run'}" in page.text
    assert not list((tmp_path / "run" / "figures").iterdir())


def test_supervised_start_in_flight(tmp_path, pictures):
    path = start_run(tmp_path / "run")
    (path / "sft" / "done.json").unlink()
    metrics = path / "sft" / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + '{"step": 101, "lo')
    page = render(path)
    assert page.tables["Supervised start: loss"][1][1] == "100"
    assert "sft unfinished" in page.text
    assert "No trees have been collected yet." in page.text


def test_collected_but_not_valued(tmp_path):
    path = start_run(tmp_path / "run")
    write_evaluation(path, 0, 300, 1200)
    write_shard(path / "iter1" / "collect" / "shard-00000.parquet", without_values(trees(6)), {})
    page = render(path)
    assert "Values and advantages are not there yet." in page.text
    assert f"dapo-fast advantages {path} --iteration 1" in page.text
    step = page.trajectories[0]["steps"][0]
    assert step["value"] is None
    assert step["advantage"] is None
    assert step["completions"] == 8


def test_trained_but_not_measured(tmp_path, pictures):
    path = start_run(tmp_path / "run")
    write_iteration(path, 1, 6)
    page = render(path)
    assert "No policy has been evaluated yet." in page.text
    assert page.tables["Results by iteration"][1][1:3] == ["not measured", "not measured"]
    assert "undecided: the iteration has not finished" in page.text


@pytest.mark.parametrize(("sampled", "doubt"), [(1250, True), (3000, False)])
def test_a_change_within_the_intervals_is_said_to_be(tmp_path, sampled, doubt):
    path = start_run(tmp_path / "run")
    write_evaluation(path, 0, 300, 1200)
    write_iteration(path, 1, 4)
    write_evaluation(path, 1, 300, sampled)
    assert ("the 95% intervals overlap" in render(path).text) is doubt


def test_no_heldout_state(tmp_path):
    path = start_run(tmp_path / "run")
    write_iteration(path, 1, 6, heldout_fraction=0.0)
    assert "critic.heldout_fraction" in render(path).text


def test_heldout_completions_that_all_agree(tmp_path, pictures):
    path = start_run(tmp_path / "run", "critic.heldout_fraction=0.99")
    found = trees(6)
    for tree in found:
        for state in tree.states:
            state.rewards = [1.0] * 8
    write_iteration(path, 1, 6, trees=found, heldout_fraction=0.99)
    page = render(path)
    assert "there is no ROC curve" in page.text
    assert "not recorded" in page.text


def test_all_wrong_and_nothing_kept(tmp_path, pictures):
    path = start_run(tmp_path / "run")
    found = trees(4)
    for tree in found:
        tree.correct = 0
        for trunk in tree.trunks:
            trunk.reward = 0.0
        for state in tree.states:
            state.rewards, state.value = [0.0] * len(state.rewards), 0.01
            for candidate in state.candidates:
                candidate.q = candidate.reward = 0.0
    write_iteration(path, 1, 4, trees=found)
    shutil.rmtree(path / "iter1" / "actor")
    write_json(path / "results.json", [{"iteration": 0}, {"iteration": 1, "accepted": False, "stopped": "no <state>"}])
    page = render(path)
    assert "No state passes the gap filter" in page.text
    assert "stopped: no <state>" in page.text
    assert not any(row["correct"] for row in page.trajectories)


def test_a_critic_less_run(tmp_path):
    path = start_run(tmp_path / "run", "advantages.source=mc")
    write_iteration(path, 1, 6)
    shutil.rmtree(path / "iter1" / "critic")
    assert "without a critic" in render(path).text


def test_a_fraction_is_nearer_to_right_or_to_wrong(tmp_path):
    path = start_run(tmp_path / "run")
    found = trees(2)
    for tree in found:
        for trunk, reward in zip(tree.trunks, (0.2, 0.8, 0.5, 1.0)):
            trunk.reward = reward
    write_iteration(path, 1, 2, trees=found)
    shown = {row["reward"]: row["correct"] for row in render(path).trajectories}
    assert set(shown) & {0.2, 0.5} and set(shown) & {0.8, 1.0}
    assert all(correct == (reward > 0.5) for reward, correct in shown.items())


def test_no_tokenizer(tmp_path):
    path = start_run(tmp_path / "run")
    write_iteration(path, 1, 4)
    shutil.rmtree(path / "sft" / "model")
    page = render(path)
    assert "no tokenizer in" in page.text
    assert str(path / "sft" / "model") in page.text


def test_one_metric_only_and_not_finite(tmp_path, pictures):
    path = start_run(tmp_path / "run")
    (path / "sft" / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "loss": NaN}\n')
    page = render(path)
    assert page.tables["Supervised start: loss"][1][1:3] == ["1", "0.5"]
    assert "Not recorded in metrics.jsonl: probability of a response, gradient norm." in page.text


def test_a_state_that_was_not_completed(tmp_path):
    path = start_run(tmp_path / "run", "collect.every_state=2")
    found = trees(6)
    for tree in found:
        tree.states = [state for state in tree.states if state.step % 2 == 0]
    write_iteration(path, 1, 6, trees=found)
    steps = [step for row in render(path).trajectories for step in row["steps"]]
    assert any(step["value"] is None and not step["candidates"] for step in steps)


def test_an_old_figure_goes(tmp_path, pictures):
    path = start_run(tmp_path / "run")
    (path / "figures").mkdir()
    (path / "figures" / "accuracy.png").write_bytes(b"old")
    write_report(path)
    assert not (path / "figures" / "accuracy.png").exists()


BREAK = [
    "config.yaml",
    "results.json",
    "sft/done.json",
    "sft/metrics.jsonl",
    "iter0/evaluate/summary.json",
    "iter1/decision.json",
    "iter1/collect/done.json",
    "iter1/critic/heldout.json",
    "iter1/critic/metrics.jsonl",
    "iter1/advantages/shard-00001.parquet",
    "iter1/actor/scores.parquet",
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("whole") / "run", problems=4)


@pytest.mark.parametrize("name", BREAK)
@pytest.mark.parametrize("junk", [b"{not\n", b"\xff\xfe\x00\n", b""])
def test_a_corrupt_file_is_named(whole, tmp_path, name, junk):
    path = tmp_path / "run"
    shutil.copytree(whole, path)
    (path / name).write_bytes(junk)
    if not junk and name in ("sft/metrics.jsonl", "iter1/critic/metrics.jsonl"):
        write_report(path)  # a run that was killed before its first step
        return
    with pytest.raises(InputError) as error:
        write_report(path)
    assert str(path / name) in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("iter1/evaluate/summary.json", {"greedy": {"accuracy": "high"}}),
        ("iter1/evaluate/summary.json", {"greedy": 3}),
        ("iter1/critic/heldout.json", {"states": 3, "critic": {"calibration": [{"low": 0}]}}),
        ("iter1/decision.json", [1]),
        ("results.json", {"iteration": 1}),
    ],
)
def test_json_of_another_shape_is_named(whole, tmp_path, name, value):
    path = tmp_path / "run"
    shutil.copytree(whole, path)
    (path / name).write_text(json.dumps(value))
    with pytest.raises(InputError, match=name):
        write_report(path)


def test_scores_of_other_trees(whole, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(whole, path)
    shutil.copy(path / "iter2" / "actor" / "scores.parquet", path / "iter1" / "actor" / "scores.parquet")
    found = trees(1)
    for tree in found:
        tree.states = tree.states[:1]
    for shard in (path / "iter1" / "advantages").glob("shard-*.parquet"):
        write_shard(shard, found, {})
    with pytest.raises(InputError, match=r"iter1/actor/scores\.parquet"):
        write_report(path)


def test_not_a_run(tmp_path):
    with pytest.raises(InputError, match=r"no config\.yaml"):
        write_report(tmp_path)


def test_metrics_of_a_killed_line_in_the_middle(tmp_path):
    path = start_run(tmp_path / "run")
    write_metrics(path / "sft" / "metrics.jsonl", "sft", 3, 0)
    lines = (path / "sft" / "metrics.jsonl").read_text().splitlines(keepends=True)
    (path / "sft" / "metrics.jsonl").write_text(lines[0] + lines[1][:20] + "\n" + lines[2])
    with pytest.raises(InputError, match=r"metrics\.jsonl, line 2"):
        write_report(path)
