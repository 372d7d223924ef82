"""A CRC-32 within all JSON that is read back: a bit that flips on a disk is an error, not another number.

It is taken over the value, not over the text, so the files are plain JSON, which anybody may write anew; what is
without one, as in runs from before there were any, is read as it is.
"""

from __future__ import annotations

import json
import zlib
from typing import Any

from dapo_fast.errors import InputError

_KEY = "crc32"


def with_sum(value: Any) -> Any:
    """``value`` to be written: an object with its sum, or a list of such."""
    if isinstance(value, list):
        return [with_sum(item) for item in value]
    return value | {_KEY: _sum_of(value)} if isinstance(value, dict) else value


def without_sum(value: Any, where: object) -> Any:
    """What ``with_sum`` was given.

    Raises:
        InputError: naming ``where``: it is not what was written.
    """
    if isinstance(value, list):
        return [without_sum(item, where) for item in value]
    if not isinstance(value, dict) or not value:
        return value
    *items, (_, last) = value.items()
    plain = dict(items)
    if last == _sum_of(plain):  # whatever a flipped bit has made of its name
        return plain
    if _KEY in value:
        raise InputError(
            f"{where}: damaged, or changed by hand (its {_KEY} is of other values); without {_KEY} it is read as it is"
        )
    return value


def json_line(row: dict[str, Any]) -> str:
    """``row`` as a line of a file of JSON lines, with its sum."""
    return json.dumps(with_sum(row)) + "\n"


def with_last_line(text: str) -> str:
    """``text``, of whole lines, and a last one of its sum, which YAML takes for a comment."""
    return f"{text}# {_KEY} {_text_sum(text)}\n"


def check_last_line(text: str, where: object) -> None:
    """InputError, naming ``where``, if the last line of ``text`` is the sum of another one."""
    body, found, written = text.rpartition(f"# {_KEY} ")
    if found and written.strip() != _text_sum(body):
        raise InputError(f"{where}: damaged, or changed by hand; without its last line it is read as it is")


def _text_sum(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"


def _sum_of(value: dict[str, Any]) -> str:
    # Through JSON once, as it is read: keys are text then, and tuples lists.
    return _text_sum(json.dumps(json.loads(json.dumps(value)), sort_keys=True))
