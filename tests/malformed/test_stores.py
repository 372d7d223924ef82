"""Shards of trees and checkpoints that are missing, doubled, cut or damaged, through the stages that read them."""

import hashlib
import json
import shutil

import pytest
from malformed_cases import PRESET, SMALL, edited, refused, replace, rotated

from dapo_fast.cli import main
from dapo_fast.data.store import read_shard, write_shard


def flipped(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


def longer(path):
    path.write_bytes(path.read_bytes() + b"\0")


def emptied(path):
    path.write_bytes(b"")


def swapped(path):
    other = next(p for p in path.parent.glob(path.name[:5] + "*") if p != path)
    path.write_bytes(other.read_bytes())


def doubled(path):
    shutil.copy(path, path.with_name("shard-00007.parquet"))


def shortened(path):
    write_shard(path, read_shard(path)[:-1])


DAMAGES = {
    "missing": lambda path: path.unlink(),
    "doubled": doubled,
    "swapped": swapped,
    "shortened": shortened,
    "flipped": flipped,
    "cut": cut,
    "longer": longer,
    "emptied": emptied,
    "text": lambda path: replace(path, "text"),
    "directory": lambda path: replace(path, "directory"),
    "pipe": lambda path: replace(path, "pipe"),
    "loop": lambda path: replace(path, "loop"),
}
READERS = [("collect", "critic"), ("collect", "advantages"), ("advantages", "actor"), ("advantages", "report")]


@pytest.mark.parametrize(("damage", "reader"), rotated(DAMAGES, READERS))
def test_shards(damage, reader, run, capsys):
    store, command = reader
    DAMAGES[damage](run / "iter1" / store / "shard-00001.parquet")
    if command != "report":  # which reads whatever is there; a stage that is done reads nothing
        (run / "iter1" / command / "done.json").unlink()
    for shard in (run / "iter1" / "advantages").glob("shard-*") if command == "advantages" else ():
        shard.unlink()
    refused(capsys, [command, run], f"{run}/iter1/{store}/shard-0000", keeps=[run])


def forged(path, change):
    """Let ``change`` loose on the trees of a shard, and have done.json say that they were so."""
    trees = read_shard(path)
    change(trees[0])
    write_shard(path, trees)
    done = path.with_name("done.json")
    shards = json.loads(done.read_text())["shards"]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    edited(done, shards=shards | {path.name: shards[path.name] | {"sha256": digest}})


def put(name, value):
    """Set an attribute; of ``a.b.c`` that of the last item of the lists in between."""

    def change(tree):
        *lists, last = name.split(".")
        for part in lists:
            tree = getattr(tree, part)[-1]
        setattr(tree, last, value)

    return change


FORGERIES = {
    "prompt_ids": [[], [-1], [10**6]],
    "problem_id": [None],
    "sampled": [None],
    "trunks.ids": [[], [-5], [3]],
    "trunks.step_ends": [[], [0], [2, 1], [10**6], [-1]],
    "trunks.reward": [7.0, -1.0, None],
    "trunks.finished": [None],
    "states.trunk": [-1, 99, None],
    "states.step": [-1, 99, None],
    "states.rewards": [[3.0], [None]],
    "states.candidates.ids": [[], [-1]],
    "states.candidates.count": [-1, None],
    "states.candidates.n": [-1],
    "states.candidates.reward": [float("inf"), None],
    "states.candidates.advantage": [float("inf")],
    "states.candidates.value": [-3.0],
    "states.candidates.terminal": [None],
}
FORGED = [(name, value) for name, values in FORGERIES.items() for value in values]


@pytest.mark.parametrize(("name", "value", "reader"), [(*one, READERS[i % 4]) for i, one in enumerate(FORGED)])
def test_shards_that_are_forged_together_with_their_digest(name, value, reader, run, capsys):
    store, command = reader
    path = run / "iter1" / store / "shard-00001.parquet"
    forged(path, put(name, value))
    unknown = value == [10**6] and name == "prompt_ids"  # a token that this model has not: the shard is one of another
    if command == "report" and unknown:  # which shows whatever tokens there are
        assert main([command, str(run)]) == 0
        return
    if command != "report":
        (run / "iter1" / command / "done.json").unlink()
        for shard in (run / "iter1" / "advantages").glob("shard-*") if command == "advantages" else ():
            shard.unlink()
    words, keeps = (["token 1000000"], []) if unknown else ([path], [run])  # where it is read training has begun
    refused(capsys, [command, run], *words, keeps=keeps)


@pytest.fixture(scope="module")
def interrupted(inputs, tmp_path_factory):
    """Read-only: a supervised start of three steps that was stopped before its model was exported."""
    path = tmp_path_factory.mktemp("interrupted") / "run"

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dapo_fast.train.sft.finish", stop)
        words = ["sft", str(path), *PRESET, f"model.path={inputs / 'model'}", *SMALL, "sft.save_every=1"]
        assert main(words) == 130
    return path


@pytest.fixture
def begun(interrupted, here):
    return shutil.copytree(interrupted, here / "run")


def newest(run):
    return run / "sft" / "checkpoints" / "step-00000002"


def test_the_start_that_is_broken_below_can_be_resumed(begun):
    assert newest(begun).is_dir()
    assert main(["sft", str(begun)]) == 0


TENSORS = ["missing", "flipped", "cut", "longer", "emptied", "directory"]


@pytest.mark.parametrize(("damage", "name"), rotated(TENSORS, ["*.distcp", ".metadata"]))
def test_tensors_of_a_checkpoint(damage, name, begun, capsys):
    path = next(newest(begun).glob(name))
    DAMAGES[damage](path)
    refused(capsys, ["sft", begun], path, "step-00000001", keeps=[begun])


NOTES = {
    "meta.json": [{}, [], 3, {"digest": 3}, {"world_size": "2"}, {"world_size": 0}, {"world_size": 2}, "cut", "pipe"],
    "sums-0.json": [{"x": 3}, {"x": [1]}, {"x": ["1", "2"]}, {"x": [1, 2]}, [1], "deep", "binary", "directory"],
    "sums-index.json": [{".metadata": None}, {".metadata": [1, 2]}, "empty", "latin"],
}


@pytest.mark.parametrize(("name", "junk"), [(name, junk) for name, kinds in NOTES.items() for junk in kinds])
def test_notes_of_a_checkpoint(name, junk, begun, capsys):
    path = newest(begun) / name
    if name == "meta.json" and isinstance(junk, dict) and junk:
        edited(path, **junk)
    else:
        replace(path, junk if isinstance(junk, str) else json.dumps(junk))
    refused(capsys, ["sft", begun], newest(begun), keeps=[begun])


def test_a_checkpoint_of_other_settings(begun, capsys):
    edited(newest(begun) / "meta.json", digest="of others")
    refused(capsys, ["sft", begun], newest(begun), "other settings", keeps=[begun])


@pytest.mark.parametrize("line", ['{"step": 1', "[]", '{"step": "1"}'])
def test_metrics_of_what_was_trained(line, begun, capsys):
    path = begun / "sft" / "metrics.jsonl"
    path.write_text(f"{line}\n{path.read_text()}")
    refused(capsys, ["sft", begun], f"{path}, line 1", keeps=[begun])


@pytest.mark.parametrize("junk", ["{}", '{"step": 0}', '{"step": "2"}', "list", "pipe"])
def test_a_note_of_where_training_halted(junk, begun, capsys):
    replace(begun / "sft" / "halted.json", junk)
    refused(capsys, ["sft", begun], begun / "sft" / "halted.json", keeps=[begun])


@pytest.mark.parametrize("junk", ["empty", "text", "binary", "directory", "pipe"])
def test_a_reference_of_the_actor(junk, run, capsys):
    (run / "iter1" / "actor" / "done.json").unlink()
    path = run / "iter1" / "actor" / "reference" / "part-00000.parquet"
    replace(path, junk)
    refused(capsys, ["actor", run], path, keeps=[run])


MEASURED = {
    "claim.json": ["empty", "list", "deep", "pipe", '{"digest": 3}', '{"digest": "of others"}'],
    "greedy.jsonl": [
        "[]\n",
        "3\n",
        "{}\n",
        "\n",
        '{"id": "z", "responses": []}\n',
        "[" * 5000 + "\n",
        "pipe",
        b"\xff\n",
    ],
    "sampled.jsonl": ["null\n", "{}{}\n", "directory"],
}


@pytest.mark.parametrize(("name", "junk"), [(name, junk) for name, kinds in MEASURED.items() for junk in kinds])
def test_an_evaluation_that_had_begun(name, junk, run, capsys):
    place = run / "iter1" / "evaluate"
    (place / "summary.json").unlink()
    replace(place / name, junk)
    refused(capsys, ["evaluate", run, "--iteration", "1"], place, keeps=[run])
