"""Step trees on disk: Parquet shards, one row a problem, published by an atomic rename.

Every page carries a checksum. Once all shards are there, ``done.json`` names them, with their trees and digests, and
whoever reads compares: a shard that is missing, doubled, replaced or damaged is an error that names it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from dapo_fast.data.columns import Columns
from dapo_fast.data.tree import Tree
from dapo_fast.data.wellformed import check_trees
from dapo_fast.errors import InputError, first_line, refuse_pipe
from dapo_fast.published import published
from dapo_fast.rundir import read_state, write_json

SCHEMA_VERSION = "3"
_VERSION_KEY = "dapo_fast.schema_version"
_META_PREFIX = "dapo_fast.meta."
_META_SUM = "dapo_fast.meta_sum"  # pages have checksums, a file's metadata has none
_DONE = "done.json"
_SHARDS = "shards"

_TOKENS = pa.list_(pa.int32())
_TRUNK = pa.struct([("ids", _TOKENS), ("step_ends", _TOKENS), ("reward", pa.float32()), ("finished", pa.bool_())])


def _schema(total: pa.DataType) -> pa.Schema:
    """The columns of a shard; ``total`` is the type of a sum of rewards."""
    candidate = pa.struct(
        [
            ("ids", _TOKENS),
            ("count", pa.int32()),
            ("terminal", pa.bool_()),
            ("reward", pa.float32()),
            ("right", total),
            ("n", pa.int32()),
            ("value", pa.float32()),
            ("q", pa.float32()),
            ("advantage", pa.float32()),
            ("ref_logp", pa.float32()),
            ("logp_after", pa.float32()),
        ]
    )
    state = pa.struct(
        [
            ("trunk", pa.int32()),
            ("step", pa.int32()),
            ("rewards", pa.list_(pa.float32())),
            ("candidates", pa.list_(candidate)),
            ("value", pa.float32()),
            ("kept", pa.bool_()),
        ]
    )
    return pa.schema(
        [
            ("problem_id", pa.string()),
            ("prompt", pa.string()),
            ("answer", pa.string()),
            ("prompt_ids", _TOKENS),
            ("trunks", pa.list_(_TRUNK)),
            ("states", pa.list_(state)),
            ("sampled", pa.int32()),
            ("correct", total),
        ]
    )


_SCHEMAS = {"2": _schema(pa.int32()), SCHEMA_VERSION: _schema(pa.float32())}  # rewards were 0 or 1 before
SCHEMA = _SCHEMAS[SCHEMA_VERSION]


def write_shard(path: str | Path, trees: Sequence[Tree], meta: dict[str, str] | None = None) -> None:
    """Write ``trees`` to ``path`` atomically: a reader sees the whole shard or none of it."""
    metadata = {_VERSION_KEY: SCHEMA_VERSION} | {_META_PREFIX + k: v for k, v in (meta or {}).items()}
    metadata[_META_SUM] = _sum_of(metadata)
    table = pa.Table.from_pylist([asdict(tree) for tree in trees], schema=SCHEMA.with_metadata(metadata))
    with published(Path(path)) as file:
        pq.write_table(table, file, compression="zstd", write_page_checksum=True)


def _sum_of(metadata: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(sorted(metadata.items())).encode()).hexdigest()


def seal(directory: Path, summary: Mapping[str, Any]) -> None:
    """Write ``done.json``: ``summary``, and what every shard of ``directory`` is from now on."""
    shards = {path.name: {"trees": _footer(path)[1], "sha256": _digest(path)} for path in _shards(directory)}
    write_json(directory / _DONE, dict(summary) | {_SHARDS: shards})


def sealed_summary(directory: Path, shape: type[BaseModel] | None = None) -> dict[str, Any] | None:
    """What ``seal`` was given; None where the store is not finished.

    Raises:
        InputError: it does not fit ``shape``.
    """
    path = directory / _DONE
    if not path.exists():
        return None
    if shape is not None:
        read_state(path, shape)
    found = _done(directory)
    if _SHARDS not in found:
        raise InputError(f"{path}: does not say which shards the store has")
    return {key: value for key, value in found.items() if key != _SHARDS}


def _done(directory: Path) -> dict[str, Any]:
    path = directory / _DONE
    found = read_state(path) if path.exists() else {}
    if not isinstance(found.get(_SHARDS, {}), dict):
        raise InputError(f"{path}: not what a finished store holds")
    return found


def _shards(directory: Path) -> list[Path]:
    return sorted(directory.glob("shard-*.parquet"))


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def shard_paths(directory: str | Path) -> list[Path]:
    """The finished shards of ``directory``, in order.

    Raises:
        InputError: there are none, or not those that ``done.json`` names.
    """
    directory = Path(directory)
    paths = _shards(directory)
    known = _done(directory).get(_SHARDS)
    if known is not None:
        names = {path.name for path in paths}
        for name in sorted(known.keys() - names):
            raise InputError(f"{directory / name}: missing, though {_DONE} names it")
        for name in sorted(names - known.keys()):
            raise InputError(f"{directory / name}: does not belong to this store, {_DONE} does not name it")
    if not paths:
        raise InputError(f"{directory}: no tree shards (shard-*.parquet) here")
    return paths


def checked_shards(directory: str | Path) -> list[Path]:
    """As ``shard_paths``; InputError also where one is not what the store was finished with. No tree is read."""
    paths = shard_paths(directory)
    for path in paths:
        _footer(path)
    return paths


def _check_sealed(path: Path) -> None:
    """InputError if ``path`` is not the shard that its store was finished with."""
    known = _done(path.parent).get(_SHARDS, {}).get(path.name)
    if known is not None and (not isinstance(known, dict) or known.get("sha256") != _digest(path)):
        raise InputError(f"{path}: damaged or replaced (its digest is not the one in {_DONE})")


def _open(path: str | Path) -> pa.Table:
    path = Path(path)
    with _known_shard(path):
        table = pq.read_table(path, page_checksum_verification=True)
        _check_schema(path, table.schema)
    return table.cast(SCHEMA.with_metadata(table.schema.metadata))


def _footer(path: str | Path) -> tuple[pa.Schema, int]:
    """A shard's schema and the number of its trees, of which none is read."""
    path = Path(path)
    with _known_shard(path), pq.ParquetFile(path) as file:
        _check_schema(path, file.schema_arrow)
        return file.schema_arrow, file.metadata.num_rows


@contextmanager
def _known_shard(path: Path) -> Iterator[None]:
    """InputError names ``path`` where it is not its store's, or cannot be read."""
    refuse_pipe(path)
    try:
        _check_sealed(path)
        yield
    except InputError:
        raise
    except (OSError, pa.ArrowException, ValueError) as error:
        raise InputError(f"{path}: not a readable tree shard ({first_line(error)})") from error


def _check_schema(path: Path, schema: pa.Schema) -> None:
    metadata = {k.decode(): v.decode() for k, v in (schema.metadata or {}).items()}
    version = metadata.get(_VERSION_KEY, "none")
    if version not in _SCHEMAS:
        raise InputError(
            f"{path}: tree schema version {version}, this program reads {SCHEMA_VERSION}: collect again, or read it "
            "with the release that wrote it"
        )
    total = metadata.pop(_META_SUM, None)
    if not schema.equals(_SCHEMAS[version]) or (total is not None and total != _sum_of(metadata)):
        raise InputError(f"{path}: damaged (its metadata is not what was written)")


def shard_meta(path: str | Path) -> dict[str, str]:
    """The metadata that was given to ``write_shard``."""
    raw = _footer(path)[0].metadata or {}
    prefix = _META_PREFIX.encode()
    return {k[len(prefix) :].decode(): v.decode() for k, v in raw.items() if k.startswith(prefix)}


def read_columns(path: str | Path) -> Columns:
    """One shard as columns; InputError names a file that is not one."""
    try:
        columns = Columns(_batch(_open(path)))
        check_trees(columns.batch)
    except (ValueError, TypeError, pa.ArrowException) as error:  # text that is not UTF-8, a list that is null, no trees
        raise InputError(f"{path}: not a readable tree shard ({first_line(error)})") from error
    return columns


def _batch(table: pa.Table) -> pa.RecordBatch:
    batches = table.combine_chunks().to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)


def read_shard(path: str | Path) -> list[Tree]:
    """The trees of one shard, in lists, which may be changed; InputError names a file that is not one."""
    columns = read_columns(path)
    return [columns.whole_tree(row) for row in range(columns.count)]


def read_trees(directory: str | Path) -> Iterator[Tree]:
    """All trees of a store, shard after shard."""
    for path in shard_paths(directory):
        yield from read_shard(path)


def scan_trees(directory: str | Path) -> Iterator[Tree]:
    """All trees of a store to be read only: what is not asked for of one is never made."""
    for path in shard_paths(directory):
        columns = read_columns(path)
        yield from (columns.tree(row) for row in range(columns.count))


def write_columns(directory: str | Path, path: Path) -> None:
    """Write all trees of a store into one file that can be mapped into memory (``mapped.MappedTrees``), atomically.

    Raises:
        InputError: names a shard that is not one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with pa.OSFile(str(temporary), "wb") as file, pa.ipc.new_file(file, SCHEMA) as writer:
            for shard in shard_paths(directory):
                writer.write_batch(read_columns(shard).batch)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
