"""State of a run directory that is no state: named by whatever reads it, and everything else as it was."""

import json
import shutil

import pytest
from malformed_cases import JUNK, edited, refused, replace, rotated

from dapo_fast.cli import main
from dapo_fast.errors import InputError
from dapo_fast.rundir import read_state
from dapo_fast.state import Done

READERS = [  # a file, and commands that read it
    ("sft/stage.json", "run"),
    ("sft/stage.json", "collect"),
    ("sft/done.json", "sft"),
    ("sft/done.json", "report"),
    ("sft/metrics.jsonl", "report"),
    ("iter0/evaluate/summary.json", "report"),
    ("iter0/evaluate/summary.json", "evaluate --iteration 0"),
    ("iter0/evaluate/stage.json", "evaluate --iteration 0"),
    ("iter1/collect/done.json", "collect"),
    ("iter1/collect/done.json", "report"),
    ("iter1/collect/stage.json", "critic"),
    ("iter1/collect/timing.json", "report"),
    ("iter1/critic/done.json", "critic"),
    ("iter1/critic/heldout.json", "report"),
    ("iter1/critic/metrics.jsonl", "report"),
    ("iter1/advantages/done.json", "actor"),
    ("iter1/advantages/done.json", "advantages"),
    ("iter1/advantages/stage.json", "actor"),
    ("iter1/actor/done.json", "actor"),
    ("iter1/actor/scores.parquet", "report"),
    ("iter1/decision.json", "collect --iteration 2"),
    ("iter1/decision.json", "report"),
    ("iter1/evaluate/summary.json", "run"),
    ("iter2/evaluate/summary.json", "evaluate"),
    ("results.json", "run"),
    ("results.json", "report"),
]
SPOILT = [junk for junk in JUNK if junk != "loop"]  # which is as good as none


def test_the_run_that_is_broken_below_is_whole(run, capsys):
    for command in ("sft", "collect", "critic", "advantages", "actor", "evaluate"):
        assert main([command, str(run)]) == 0
    assert "Traceback" not in capsys.readouterr().err


# In lines, the last one may be half written: what is wrong has another behind it.
LINES = {
    "blank": "\n{}\n",
    "list": "[]\n{}\n",
    "number": "3\n{}\n",
    "null": "null\n{}\n",
    "text": '"text"\n{}\n',
    "two": "{}{}\n{}\n",
    "bom": '\ufeff{"step": 1}\n{}\n',
    "deep": "[" * 5000 + "\n{}\n",
    "nul": "\0\n{}\n",
}


def spoilt():
    for file, junk in rotated(READERS, SPOILT, 2):
        if not file[0].endswith(".jsonl"):
            yield *file, junk
        elif junk not in ("empty", "cut", "nan"):  # which a kill may leave
            yield *file, LINES.get(junk, junk)


@pytest.mark.parametrize(("name", "command", "junk"), spoilt())
def test_files_that_are_no_state(name, command, junk, run, capsys):
    replace(run / name, junk)
    command, *more = command.split()
    refused(capsys, [command, run, *more], run / name, keeps=[run])


@pytest.mark.parametrize("junk", SPOILT)
def test_junk_is_no_state(junk, here):
    replace(here / "state.json", junk)
    with pytest.raises(InputError, match=r"state\.json: not ") as error:
        read_state(here / "state.json", Done)
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000


ACCURACY = {"accuracy": 0.5, "low": 0.4, "high": 0.6, "n": 2}
SHAPES = [
    ("sft/stage.json", {"digest": "d"}, "run", "settings"),
    ("sft/stage.json", {"digest": "d", "settings": []}, "run", "settings"),
    ("sft/stage.json", {"settings": {}}, "run", "digest"),
    ("sft/done.json", {}, "sft", "digest"),
    ("sft/done.json", {"digest": 3}, "sft", "digest"),
    ("sft/done.json", {"digest": "of others"}, "sft", "other settings"),
    ("sft/done.json", {"digest": None}, "run", "digest"),
    ("iter1/critic/done.json", {}, "critic", "digest"),
    ("iter1/advantages/done.json", {"digest": "d", "kept": "2"}, "actor", "kept"),
    ("iter1/advantages/done.json", {"digest": "d"}, "advantages", "kept"),
    ("iter1/advantages/done.json", {"digest": "d", "kept": 1.5}, "run", "kept"),
    ("iter1/collect/done.json", {}, "collect", "shards"),
    ("iter1/collect/done.json", {"shards": []}, "collect", ""),
    ("iter1/collect/done.json", {"shards": "all"}, "collect", ""),
    ("iter1/advantages/done.json", {"shards": {}}, "report", "shard-00000"),
    ("iter1/advantages/done.json", {"shards": {"shard-00000.parquet": 3}}, "report", "shard-00001"),
    ("iter0/evaluate/summary.json", {}, "run", "greedy"),
    ("iter0/evaluate/summary.json", {"greedy": None}, "run", "greedy"),
    ("iter0/evaluate/summary.json", {"greedy": [0.5]}, "report", "greedy"),
    ("iter0/evaluate/summary.json", {"greedy": ACCURACY | {"accuracy": "high"}}, "run", "accuracy"),
    ("iter0/evaluate/summary.json", {"greedy": ACCURACY | {"accuracy": True}}, "report", "accuracy"),
    ("iter0/evaluate/summary.json", {"greedy": ACCURACY | {"accuracy": 1.5}}, "report", "accuracy"),
    ("iter0/evaluate/summary.json", {"greedy": ACCURACY | {"low": float("nan")}}, "report", "low"),
    ("iter0/evaluate/summary.json", {"greedy": ACCURACY | {"tokens": float("inf")}}, "report", "tokens"),
    ("iter0/evaluate/summary.json", {"greedy": ACCURACY | {"n": "2"}}, "report", "n"),
    ("iter0/evaluate/summary.json", {"greedy": ACCURACY | {"pass@two": 0.5}}, "report", "pass@two"),
    ("iter0/evaluate/summary.json", {"greedy": ACCURACY | {"pass@2": "half"}}, "report", "pass@2"),
    ("iter0/evaluate/summary.json", {"greedy": ACCURACY | {f"pass@{'9' * 5000}": 0.5}}, "report", "pass@"),
    ("iter0/evaluate/summary.json", {"greedy": ACCURACY | {"n": -3}}, "report", "n"),
    ("iter0/evaluate/summary.json", {"greedy": ACCURACY | {"samples": 0}}, "report", "samples"),
    ("iter0/evaluate/summary.json", {"greedy": ACCURACY | {"tokens": 1e300}}, "report", "tokens"),
    ("iter1/actor/done.json", {"digest": "d", "best": {"step": "last"}}, "report", "best"),
    ("iter1/collect/timing.json", {"seconds": "long"}, "report", "seconds"),
    ("iter1/collect/timing.json", {"seconds": -1}, "report", "seconds"),
    ("iter1/collect/timing.json", {"seconds": float("inf")}, "report", "seconds"),
    ("iter1/decision.json", {}, "collect --iteration 2", "accepted"),
    ("iter1/decision.json", {"accepted": "no"}, "collect --iteration 2", "accepted"),
    ("iter1/decision.json", {"accepted": None}, "report", "accepted"),
    ("iter1/decision.json", {"accepted": True, "reason": 3}, "report", "reason"),
    ("iter1/critic/heldout.json", {"states": "many"}, "report", "states"),
    ("iter1/critic/heldout.json", {"critic": {"auc": "high"}}, "report", "auc"),
    ("iter1/critic/heldout.json", {"critic": {"calibration": [3]}}, "report", "calibration"),
    ("iter1/critic/heldout.json", {"shrinkage": {"k": 2}}, "report", "shrinkage"),
    ("results.json", {"iteration": 1}, "run", "results.json"),
    ("results.json", [3], "run", "results.json"),
    ("results.json", [{"iteration": "1"}], "run", "iteration"),
    ("results.json", [{"iteration": -1}], "report", "iteration"),
    ("results.json", [{"accepted": True}], "report", "iteration"),
]


@pytest.mark.parametrize(("name", "value", "command", "words"), SHAPES)
def test_state_of_another_shape(name, value, command, words, run, capsys):
    replace(run / name, json.dumps(value))
    command, *more = command.split()
    refused(capsys, [command, run, *more], run / name.rpartition("/")[0], words, keeps=[run])


@pytest.mark.parametrize(
    "value", [{}, {"k": 2.0}, {"digest": "d"}, {"digest": "d", "k": "2"}, {"digest": "d", "k": []}]
)
def test_a_critic_that_fitted_nothing(value, run, capsys):
    (run / "iter1" / "advantages" / "done.json").unlink()
    replace(run / "iter1" / "critic" / "done.json", json.dumps(value))
    refused(capsys, ["advantages", run], run / "iter1" / "critic" / "done.json", keeps=[run])


STEPS = ['{"step": 0}', '{"step": "1"}', '{"loss": 1}', '{"step": 1.5}', '{"step": true}', '{"step": 1, "seconds": -1}']


@pytest.mark.parametrize("line", [*STEPS, '{"step": 1, "tokens": "many"}', '{"step": 1, "seconds": NaN}', "{", ""])
def test_lines_of_metrics(line, run, capsys):
    replace(run / "sft" / "metrics.jsonl", f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    refused(capsys, ["report", run], f"{run}/sft/metrics.jsonl, line 2", keeps=[run])


def test_numbers_too_large_to_draw_are_left_out(run):
    """Their range would be infinite, though each is a number."""
    rows = [{"step": 1, "loss": 1e308, "grad_norm": 1}, {"step": 2, "loss": -1e308, "grad_norm": 2}]
    replace(run / "iter1" / "actor" / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert main(["report", str(run)]) == 0


# Places ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.yaml", "run.log", ".lock", "results.json", "sft/metrics.jsonl"])
@pytest.mark.parametrize("junk", ["directory", "pipe"])
def test_what_is_no_file(name, junk, run, capsys):
    replace(run / name, junk)
    refused(capsys, ["report" if name.endswith("l") else "run", run], run, keeps=[run])


@pytest.mark.parametrize("name", ["iter1/actor", "iter1", "sft", "iter0/evaluate"])
def test_files_where_directories_belong(name, run, capsys):
    shutil.rmtree(run / name)
    (run / name).write_text("a file")
    refused(capsys, ["run", run], run / name, keeps=[run])


def test_a_report_where_a_directory_lies(run, capsys):
    replace(run / "report.html", "directory")
    refused(capsys, ["report", run], run / "report.html", keeps=[run])


@pytest.mark.parametrize(
    "changed", ["seed=1", "collect.samples=3", "critic.lr=0.5", "sft.steps=4", "evaluate.samples=3"]
)
def test_settings_that_are_not_those_of_the_run(changed, run, capsys):
    refused(capsys, ["run", run, changed], changed.partition("=")[0].rpartition(".")[2], "other settings", keeps=[run])


@pytest.mark.parametrize(
    ("missing", "command"),
    [
        ("sft/model", "evaluate --iteration 0"),
        ("sft/model", "collect"),
        ("iter1/collect/stage.json", "critic"),
        ("iter1/critic/stage.json", "advantages"),
        ("iter1/collect", "critic"),
        ("iter1/critic", "advantages"),
        ("iter1/advantages", "actor"),
        ("iter1/actor", "collect --iteration 2"),
    ],
)
def test_what_is_missing(missing, command, run, capsys):
    path = run / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    command, *more = command.split()
    refused(capsys, [command, run, *more], run, keeps=[run])


def test_a_claim_of_others(run, capsys):
    path = run / "iter1" / "critic" / "stage.json"
    settings = json.loads(path.read_text())["settings"]
    settings["critic"]["lr"] = 7.0
    edited(path, settings=settings)
    refused(capsys, ["critic", run], "critic.lr (7.0, now", keeps=[run])
