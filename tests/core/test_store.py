"""The Parquet store: what goes in comes out, and a damaged file is named."""

import json
import random
import shutil
from dataclasses import replace
from itertools import accumulate

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dapo_fast.data import store as store_module
from dapo_fast.data.mapped import MappedTrees
from dapo_fast.data.store import (
    read_shard,
    read_trees,
    scan_trees,
    seal,
    sealed_summary,
    shard_meta,
    shard_paths,
    write_columns,
    write_shard,
)
from dapo_fast.data.tree import Candidate, State, Tree, Trunk
from dapo_fast.errors import InputError

tokens = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=5)
number = st.floats(0, 1, width=32)
value = st.none() | number
maybe = st.none() | st.floats(-100, 100, width=32)
candidates = st.builds(
    Candidate,
    tokens,
    st.integers(1, 16),
    st.booleans(),
    number,
    value=value,
    q=value,
    advantage=maybe,
    ref_logp=maybe,
    logp_after=maybe,
)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@st.composite
def trunks(draw):
    steps = draw(st.lists(tokens, min_size=1, max_size=4))
    ids = [token for step in steps for token in step]
    return Trunk(ids, list(accumulate(map(len, steps))), draw(number), draw(st.booleans()))


@st.composite
def trees(draw):
    """Of any trunks, with states on them; or with the prompt alone."""
    kept = draw(st.lists(trunks(), max_size=2))
    places = [(i, step) for i, trunk in enumerate(kept) for step in range(len(trunk.step_ends))] or [(0, 0)]
    rewards, actions = st.lists(number, max_size=4), st.lists(candidates, max_size=3)
    states = [
        State(*place, draw(rewards), draw(actions), draw(value), draw(st.none() | st.booleans()))
        for place in draw(st.lists(st.sampled_from(places), max_size=3))
    ]
    count = st.integers(0, 32)
    return Tree(draw(text), draw(text), draw(text), draw(tokens), kept, states, draw(count), draw(count))


def whole(tree):
    """``tree`` in lists, as dataclasses compare them."""
    states = [replace(state, candidates=list(state.candidates)) for state in tree.states]
    return replace(tree, trunks=list(tree.trunks), states=states)


@settings(max_examples=25, deadline=None)
@given(st.lists(trees(), max_size=3))
def test_round_trip(tmp_path_factory, written):
    path = tmp_path_factory.mktemp("store") / "shard-00000.parquet"
    write_shard(path, written, {"digest": "d"})
    assert read_shard(path) == written
    assert shard_meta(path) == {"digest": "d"}
    lazy = list(scan_trees(path.parent))
    assert [whole(tree) for tree in lazy] == written
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_damaged_shard_is_named(tmp_path):
    path = tmp_path / "shard-00000.parquet"
    write_shard(path, [])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"shard-00000\.parquet"):
        list(read_trees(tmp_path))


def test_a_store_of_whole_sums_is_read(tmp_path, monkeypatch):
    tree = Tree("p", "", "", [1], [], [State(0, 0, [1.0], [Candidate([1], 1, False, 0.0, right=3, n=4)])], 8, 5)
    with monkeypatch.context() as patch:
        patch.setattr(store_module, "SCHEMA_VERSION", "2")
        patch.setattr(store_module, "SCHEMA", store_module._SCHEMAS["2"])
        write_shard(tmp_path / "shard-00000.parquet", [tree])
    assert pq.read_schema(tmp_path / "shard-00000.parquet").field("correct").type == pa.int32()
    assert read_shard(tmp_path / "shard-00000.parquet") == [tree]


def test_a_foreign_schema_is_refused(tmp_path):
    pq.write_table(pa.table({"a": [1]}), tmp_path / "shard-00000.parquet")
    with pytest.raises(InputError, match="schema version none"):
        read_shard(tmp_path / "shard-00000.parquet")


def test_an_empty_directory_is_named(tmp_path):
    with pytest.raises(InputError, match=str(tmp_path)):
        shard_paths(tmp_path)


def test_half_written_shards_are_not_seen(tmp_path):
    write_shard(tmp_path / "shard-00000.parquet", [])
    (tmp_path / "shard-00001.parquet.tmp").write_bytes(b"half")
    assert [p.name for p in shard_paths(tmp_path)] == ["shard-00000.parquet"]


def test_prefix_of_a_state():
    tree = Tree("p", "", "", [1, 2], [Trunk([3, 4, 5, 6], [1, 3, 4], 1.0, True)], [], 1, 1)
    assert [tree.prefix_ids(State(0, t, [], [])) for t in range(3)] == [[1, 2], [1, 2, 3], [1, 2, 3, 4, 5]]


# ---------------------------------------------------------------------------------------------------------- damage


def some_trees(seed, count=4):
    rng = random.Random(seed)

    def ids():
        return [rng.randrange(50_000) for _ in range(rng.randrange(1, 30))]

    def state(trunk, step):
        actions = [Candidate(ids(), 1, False, 0.0, q=rng.random(), advantage=rng.random()) for _ in range(3)]
        return State(trunk, step, [1.0, 0.0], actions, rng.random(), rng.random() < 0.5)

    return [
        Tree(
            f"p{seed}-{i}",
            f"Frage {i}: größer?",
            str(i),
            ids(),
            [Trunk(response := ids(), [len(response)], 1.0, True)],
            [state(0, 0)],
            8,
            i,
        )
        for i in range(count)
    ]


@pytest.fixture
def store(tmp_path):
    for index in range(2):
        meta = {"digest": "abc", "counts": '{"correct": 3}'}
        write_shard(tmp_path / "store" / f"shard-{index:05d}.parquet", some_trees(index), meta)
    return tmp_path / "store"


def everything(store):
    return [(path.name, shard_meta(path), read_shard(path)) for path in shard_paths(store)]


@pytest.mark.parametrize("finished", [True, False])
def test_a_flipped_bit_is_never_read_as_data(store, finished):
    """200 of them over both shards: an error that names the file, or the same trees and the same metadata."""
    if finished:
        seal(store, {})
    before = everything(store)
    rng = random.Random(1)
    errors = 0
    for _ in range(200):
        path = rng.choice(shard_paths(store))
        whole = path.read_bytes()
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            assert everything(store) == before
        except InputError as error:
            errors += 1
            assert str(path) in str(error) and "\n" not in str(error)
        path.write_bytes(whole)
    assert errors == 200 if finished else errors > 100


def test_a_finished_store_knows_its_shards(store):
    seal(store, {"states": 8})
    assert sealed_summary(store) == {"states": 8}
    assert [shard["trees"] for shard in json.loads((store / "done.json").read_text())["shards"].values()] == [4, 4]
    first, second = shard_paths(store)
    whole = first.read_bytes()
    shutil.copyfile(first, store / "shard-00002.parquet")
    with pytest.raises(InputError, match=r"shard-00002\.parquet: does not belong"):
        list(read_trees(store))
    (store / "shard-00002.parquet").unlink()
    shutil.copyfile(second, first)  # one shard twice, under the other's name
    with pytest.raises(InputError, match=r"shard-00000\.parquet: damaged or replaced"):
        list(read_trees(store))
    first.write_bytes(whole[:-100])
    with pytest.raises(InputError, match=r"shard-00000\.parquet: damaged or replaced"):
        read_shard(first)
    first.unlink()
    with pytest.raises(InputError, match=r"shard-00000\.parquet: missing, though done\.json names it"):
        list(read_trees(store))
    for garbage in ("[]", "{", '{"shards": 3}', '{"shards": {"shard-00001.parquet": 3}}'):
        (store / "done.json").write_text(garbage)
        with pytest.raises(InputError, match=r"done\.json"):
            list(read_trees(store))


def test_a_store_that_is_not_finished_can_be_read(store):
    assert sealed_summary(store) is None
    assert [tree.problem_id for tree in read_trees(store)] == [f"p{i}-{j}" for i in range(2) for j in range(4)]


def test_text_that_is_no_text_and_lists_that_are_null_are_named(store):
    path = store / "shard-00000.parquet"
    table = pq.read_table(path)
    column = table.schema.get_field_index("states")
    null = pa.array([None] * table.num_rows, table.schema.field("states").type)
    pq.write_table(table.set_column(column, table.schema.field("states"), null), path)
    with pytest.raises(InputError, match=r"shard-00000\.parquet: not a readable tree shard"):
        read_shard(path)
    raw = pa.array([b"\xff\xfe"] * table.num_rows, pa.binary()).view(pa.string())
    pq.write_table(table.set_column(0, table.schema.field(0), raw), path)
    with pytest.raises(InputError, match=r"shard-00000\.parquet: not a readable tree shard"):
        read_shard(path)


# ----------------------------------------------------------------------------------------------------- mapped trees


def test_mapped_trees_are_the_stores(store, tmp_path):
    write_columns(store, tmp_path / "trees.arrow")
    trees = MappedTrees(tmp_path / "trees.arrow")
    assert [whole(tree) for tree in trees] == list(read_trees(store))
    assert [tree.problem_id for tree in trees[1:7][2:5]] == ["p0-3", "p1-0", "p1-1"]
    assert trees[-1].problem_id == "p1-3" and trees[0] is trees[0]
    with pytest.raises(IndexError):
        trees[8]


def test_numbers_that_are_set_are_read_from_then_on(store, tmp_path):
    write_columns(store, tmp_path / "trees.arrow")
    trees = MappedTrees(tmp_path / "trees.arrow")
    assert trees[5].states[0].candidates[1].ref_logp is None
    trees.set("ref_logp", np.array([[5, 0, 1], [2, 0, 0]]), np.array([-1.5, -2.5]))
    found = [[c.ref_logp for c in tree.states[0].candidates] for tree in trees]
    assert found[2] == [-2.5, None, None] and found[5] == [None, -1.5, None]
    assert all(numbers == [None] * 3 for index, numbers in enumerate(found) if index not in (2, 5))


def test_a_shard_that_cannot_be_read_leaves_no_file_to_map(store, tmp_path):
    path = shard_paths(store)[1]
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=path.name):
        write_columns(store, tmp_path / "trees.arrow")
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
