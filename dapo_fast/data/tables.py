"""Small tables of numbers, one row a step of a tree: written whole, and known again by a sum of their values.

Parquet's own checksums are of its pages, and leave out what says how a page is read.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dapo_fast.errors import InputError, reason, refuse_pipe
from dapo_fast.published import published

_DIGEST, _SUM = b"digest", b"sum"


def write_table(path: Path, columns: Mapping[str, np.ndarray], digest: str) -> None:
    """Publish ``columns``, of one length, atomically; ``digest`` says what they were computed from."""
    table = pa.table(dict(columns)).replace_schema_metadata({_DIGEST: digest, _SUM: _sum_of(columns)})
    with published(path) as file:
        pq.write_table(table, file, write_page_checksum=True)


def read_table(path: Path, names: Sequence[str]) -> tuple[dict[str, np.ndarray], str]:
    """The columns ``names``, which are all that were written, and their digest.

    Raises:
        InputError: no such table, or a damaged one.
    """
    refuse_pipe(path)
    try:
        table = pq.read_table(path, page_checksum_verification=True)
        columns = {name: table.column(name).to_numpy() for name in names}
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise InputError(f"{path}: damaged ({reason(error)})") from error
    said = table.schema.metadata or {}
    if said.get(_SUM, _sum_of(columns).encode()) != _sum_of(columns).encode():
        raise InputError(f"{path}: damaged (its sum is of other values)")
    return columns, said.get(_DIGEST, b"").decode(errors="replace")


def _sum_of(columns: Mapping[str, np.ndarray]) -> str:
    crc = 0
    for name in sorted(columns):
        crc = zlib.crc32(np.ascontiguousarray(columns[name]).tobytes(), zlib.crc32(name.encode(), crc))
    return f"{crc:08x}"
