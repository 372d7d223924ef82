"""Rows of a published file: JSON that is read strictly, and fields that are what they must be."""

from __future__ import annotations

import decimal
import json
import math
from typing import Any

from dapo_fast.errors import InputError

Row = dict[str, Any]


def read_json(data: bytes, where: str) -> Any:
    """The value of ``data``; InputError, naming ``where``, for anything that is not JSON."""
    try:
        return json.loads(data.decode("utf-8-sig"), parse_constant=_no_constant, parse_int=_whole)
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: invalid UTF-8 at byte {error.start}") from error
    except RecursionError as error:
        raise InputError(f"{where}: JSON nested too deeply") from error
    except ValueError as error:
        raise InputError(f"{where}: not valid JSON ({error})") from error


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _whole(digits: str) -> int:
    # TACO's tests hold numbers of more digits than Python converts unless the whole process is told to.
    return int(digits) if len(digits) < 4000 else int(decimal.Decimal(digits))


def as_object(value: Any, where: str, what: str = "a problem") -> Row:
    """``value``, if it is a JSON object; InputError says that ``what`` is one."""
    if not isinstance(value, dict):
        raise InputError(f"{where}: {what} is a JSON object, this is {kind(value)}")
    return value


def kind(value: Any) -> str:
    """What a message calls ``value``."""
    names = {dict: "an object", list: "an array", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def text(row: Row, field: str, where: str) -> str:
    """A field that must be text."""
    if not isinstance(row.get(field), str):
        raise InputError(f"{where}: {field!r} must be text, not {kind(row.get(field))}")
    return row[field]


def texts(row: Row, field: str, where: str) -> list[str]:
    """A field that must be a non-empty array of text."""
    value = row[field]
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        raise InputError(f"{where}: {field!r} must be a non-empty array of text")
    return value


def answer(row: Row, field: str, where: str) -> str:
    """A field that must be text or a number, as text."""
    value = row[field]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise InputError(f"{where}: {field!r} must be text or a number, not {kind(value)}")
    if isinstance(value, float) and math.isinf(value):
        raise InputError(f"{where}: {field!r} is a number beyond all that are told apart; write it as text")
    # AMC and SVAMP publish whole numbers as 27.0.
    whole = isinstance(value, float) and value.is_integer()
    return _written(int(value) if whole else value)


def identity(row: Row, field: str, where: str) -> str:
    """A field that must be text or a whole number, as text."""
    value = row[field]
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise InputError(f"{where}: {field!r} must be text or a whole number, not {kind(value)}")
    return _written(value)


def _written(value: str | int | float) -> str:
    # As in _whole: Python writes no more digits than it reads.
    return str(decimal.Decimal(value)) if isinstance(value, int) else str(value)
