"""Size and CRC-32 of files, written beside them: a flipped bit is not read as data, nor another model's file."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path

from dapo_fast.errors import InputError, reason

SUMS = "sums.json"  # in a model directory that training exported
_WEIGHTS = ".safetensors"


def file_sum(path: Path) -> list[int]:
    """Size in bytes and CRC-32 of a file."""
    crc = size = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            crc = zlib.crc32(block, crc)
            size += len(block)
    return [size, crc]


def damaged(directory: Path, sums: Mapping[str, list[int]]) -> str | None:
    """What of ``directory`` is not as ``sums`` (name → ``file_sum``) says, in one line; None where all is."""
    for name, written in sums.items():
        file = directory / name
        try:
            if not file.is_file():
                return f"{file}: missing"
            if file_sum(file) != written:
                return f"{file}: damaged (size or checksum differs from what was written)"
        except OSError as error:  # raised, it would leave other ranks alone in a collective
            return f"{file}: {reason(error)}"
    return None


def write_sums(directory: Path, known: Mapping[str, list[int]]) -> None:
    """Write ``SUMS`` of the files in ``directory``; of those that are ``known`` nothing is read."""
    from dapo_fast.rundir import write_json  # late: it loads pydantic, without which models without sums are read too

    others = [path for path in sorted(directory.iterdir()) if path.is_file() and path.name not in {SUMS, *known}]
    write_json(directory / SUMS, dict(known) | {path.name: file_sum(path) for path in others})


def damaged_model(directory: str | Path, weights: bool, part: slice = slice(None)) -> str | None:
    """What of a model directory is not as it was exported, in one line; None where all is, or nothing is known of it.

    Args:
        weights: Whether the files of weights are to be looked at, or all others, which are small.
        part: Which of them: where several ranks share the work.
    """
    path = Path(directory) / SUMS
    if not path.exists():
        return None
    from dapo_fast.rundir import read_state  # late: see write_sums
    from dapo_fast.state import Sums

    try:
        sums = read_state(path, Sums)
    except InputError as error:
        return str(error)
    chosen = [name for name in sorted(sums) if name.endswith(_WEIGHTS) == weights][part]
    found = damaged(Path(directory), {name: sums[name] for name in chosen})
    return found and f"{found}; without {SUMS} the directory is read as it is"


def check_model(directory: str | Path, weights: bool) -> None:
    """InputError where ``damaged_model`` finds something."""
    found = damaged_model(directory, weights)
    if found:
        raise InputError(found)
