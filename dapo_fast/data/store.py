"""Step trees on disk: Parquet shards, one row a problem, published by an atomic rename."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dapo_fast.data.tree import Candidate, State, Tree, Trunk
from dapo_fast.errors import InputError

SCHEMA_VERSION = "2"
_VERSION_KEY = "dapo_fast.schema_version"
_META_PREFIX = "dapo_fast.meta."

_TOKENS = pa.list_(pa.int32())
_CANDIDATE = pa.struct(
    [
        ("ids", _TOKENS),
        ("count", pa.int32()),
        ("terminal", pa.bool_()),
        ("reward", pa.float32()),
        ("right", pa.int32()),
        ("n", pa.int32()),
        ("value", pa.float32()),
        ("q", pa.float32()),
        ("advantage", pa.float32()),
        ("ref_logp", pa.float32()),
        ("logp_after", pa.float32()),
    ]
)
_TRUNK = pa.struct([("ids", _TOKENS), ("step_ends", _TOKENS), ("reward", pa.float32()), ("finished", pa.bool_())])
_STATE = pa.struct(
    [
        ("trunk", pa.int32()),
        ("step", pa.int32()),
        ("rewards", pa.list_(pa.float32())),
        ("candidates", pa.list_(_CANDIDATE)),
        ("value", pa.float32()),
        ("kept", pa.bool_()),
    ]
)
SCHEMA = pa.schema(
    [
        ("problem_id", pa.string()),
        ("prompt", pa.string()),
        ("answer", pa.string()),
        ("prompt_ids", _TOKENS),
        ("trunks", pa.list_(_TRUNK)),
        ("states", pa.list_(_STATE)),
        ("sampled", pa.int32()),
        ("correct", pa.int32()),
    ]
)


def write_shard(path: str | Path, trees: Sequence[Tree], meta: dict[str, str] | None = None) -> None:
    """Write ``trees`` to ``path`` atomically: a reader sees the whole shard or none of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {_VERSION_KEY: SCHEMA_VERSION} | {_META_PREFIX + k: v for k, v in (meta or {}).items()}
    table = pa.Table.from_pylist([asdict(tree) for tree in trees], schema=SCHEMA.with_metadata(metadata))
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        pq.write_table(table, file, compression="zstd")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def shard_paths(directory: str | Path) -> list[Path]:
    """The finished shards of ``directory``, in order; InputError where there are none."""
    paths = sorted(Path(directory).glob("shard-*.parquet"))
    if not paths:
        raise InputError(f"{directory}: no tree shards (shard-*.parquet) here")
    return paths


def _open(path: str | Path) -> pa.Table:
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: not a readable tree shard ({error})") from error
    version = (table.schema.metadata or {}).get(_VERSION_KEY.encode(), b"none").decode()
    if version != SCHEMA_VERSION:
        raise InputError(
            f"{path}: tree schema version {version}, this program reads {SCHEMA_VERSION}: collect again, or read it "
            "with the release that wrote it"
        )
    return table


def shard_meta(path: str | Path) -> dict[str, str]:
    """The metadata that was given to ``write_shard``."""
    raw = _open(path).schema.metadata or {}
    prefix = _META_PREFIX.encode()
    return {k[len(prefix) :].decode(): v.decode() for k, v in raw.items() if k.startswith(prefix)}


def _tree(row: dict) -> Tree:
    row["trunks"] = [Trunk(**trunk) for trunk in row["trunks"]]
    for state in row["states"]:
        state["candidates"] = [Candidate(**candidate) for candidate in state["candidates"]]
    row["states"] = [State(**state) for state in row["states"]]
    return Tree(**row)


def read_shard(path: str | Path) -> list[Tree]:
    """The trees of one shard; InputError names a file that is not one."""
    return [_tree(row) for row in _open(path).to_pylist()]


def read_trees(directory: str | Path) -> Iterator[Tree]:
    """All trees of a store, shard after shard."""
    for path in shard_paths(directory):
        yield from read_shard(path)
