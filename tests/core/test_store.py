"""The Parquet store: what goes in comes out, and a damaged file is named."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dapo_fast.data.store import read_shard, read_trees, shard_meta, shard_paths, write_shard
from dapo_fast.data.tree import Candidate, State, Tree, Trunk
from dapo_fast.errors import InputError

tokens = st.lists(st.integers(0, 2**31 - 1), max_size=5)
number = st.floats(0, 1, width=32)
maybe = st.none() | st.floats(-100, 100, width=32)
candidates = st.builds(
    Candidate,
    tokens,
    st.integers(1, 16),
    st.booleans(),
    number,
    q=maybe,
    advantage=maybe,
    ref_logp=maybe,
    logp_after=maybe,
)
states = st.builds(
    State,
    st.integers(0, 5),
    st.integers(0, 9),
    st.lists(number, max_size=4),
    st.lists(candidates, max_size=3),
    maybe,
    st.none() | st.booleans(),
)
trunks = st.builds(Trunk, tokens, tokens, number, st.booleans())
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
trees = st.builds(
    Tree,
    text,
    text,
    text,
    tokens,
    st.lists(trunks, max_size=2),
    st.lists(states, max_size=3),
    st.integers(0, 32),
    st.integers(0, 32),
)


@settings(max_examples=25, deadline=None)
@given(st.lists(trees, max_size=3))
def test_round_trip(tmp_path_factory, written):
    path = tmp_path_factory.mktemp("store") / "shard-00000.parquet"
    write_shard(path, written, {"digest": "d"})
    assert read_shard(path) == written
    assert shard_meta(path) == {"digest": "d"}
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_damaged_shard_is_named(tmp_path):
    path = tmp_path / "shard-00000.parquet"
    write_shard(path, [])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"shard-00000\.parquet"):
        list(read_trees(tmp_path))


def test_a_foreign_schema_is_refused(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

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
