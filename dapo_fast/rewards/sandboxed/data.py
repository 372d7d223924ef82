"""Plain data over a pipe: frames of JSON, and Python's values as JSON with tags."""

from __future__ import annotations

import base64
import collections
import datetime
import decimal
import fractions
import json
import os
import struct
from typing import Any

MAX_FRAME = 32 * 2**20
FRAME_HEAD = struct.Struct(">I")
MUTABLE = (list, dict, set, bytearray, collections.deque)


def read_exactly(file: int, count: int) -> bytes:
    """``count`` bytes; EOFError if the other side closes first."""
    parts = []
    while count:
        part = os.read(file, min(count, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def read_frame(file: int) -> Any:
    """One value; ValueError for a frame that is too long or not JSON."""
    (length,) = FRAME_HEAD.unpack(read_exactly(file, 4))
    if length > MAX_FRAME:
        raise ValueError("frame too long")
    return json.loads(read_exactly(file, length))


def write_frame(file: int, value: Any) -> None:
    """Send one JSON value."""
    data = json.dumps(value).encode()
    view = memoryview(FRAME_HEAD.pack(len(data)) + data)
    while view:
        view = view[os.write(file, view) :]


_SEQUENCES = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset, "deque": collections.deque}
_AS_TEXT = {
    "Decimal": (decimal.Decimal, str, decimal.Decimal),
    "Fraction": (fractions.Fraction, str, fractions.Fraction),
    "datetime": (datetime.datetime, datetime.datetime.isoformat, datetime.datetime.fromisoformat),
    "date": (datetime.date, datetime.date.isoformat, datetime.date.fromisoformat),
    "time": (datetime.time, datetime.time.isoformat, datetime.time.fromisoformat),
}


def pack(value: Any, keep: Any) -> Any:
    """``value`` as JSON with tags; ``keep(value)`` names what is no plain data."""
    if value is None or value is True or value is False:
        return value
    if isinstance(value, str):
        return ["str", base64.b64encode("".join(value).encode("utf-8", "surrogatepass")).decode()]
    if isinstance(value, int):
        return ["int", hex(int.__index__(value))]
    if isinstance(value, float):
        return ["float", float.hex(value)]
    if isinstance(value, complex):
        return ["complex", float.hex(value.real), float.hex(value.imag)]
    if isinstance(value, bytes | bytearray):
        return ["bytes", base64.b64encode(bytes(value)).decode()]
    if isinstance(value, range):
        return ["range", value.start, value.stop, value.step]
    if isinstance(value, tuple) and isinstance(getattr(type(value), "_fields", None), tuple):
        return ["named", list(map(str, type(value)._fields)), [pack(item, keep) for item in tuple.__iter__(value)]]
    for tag, kind in _SEQUENCES.items():
        if isinstance(value, kind):
            return [tag, [pack(item, keep) for item in kind.__iter__(value)]]
    if isinstance(value, dict):
        return ["dict", [[pack(key, keep), pack(item, keep)] for key, item in dict.items(value)]]
    for tag, (kind, write, _) in _AS_TEXT.items():
        if type(value) is kind:
            return ["text", tag, write(value)]
    if isinstance(value, datetime.timedelta):
        return ["timedelta", value.days, value.seconds, value.microseconds]
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        return pack(value.tolist(), keep)
    return keep(value)


def unpack(data: Any, held: Any) -> Any:
    """The value of ``pack``; ``held(name)`` gives what is no plain data. ValueError for anything else."""
    if data is None or data is True or data is False:
        return data
    try:
        tag, *rest = data
        if tag == "str":
            return base64.b64decode(rest[0]).decode("utf-8", "surrogatepass")
        if tag == "int":
            return int(rest[0], 16)
        if tag == "float":
            return float.fromhex(rest[0])
        if tag == "complex":
            return complex(float.fromhex(rest[0]), float.fromhex(rest[1]))
        if tag == "bytes":
            return base64.b64decode(rest[0])
        if tag == "range":
            return range(*rest)
        if tag in _SEQUENCES:
            return _SEQUENCES[tag](unpack(item, held) for item in rest[0])
        if tag == "named":
            return collections.namedtuple("Named", rest[0])(*(unpack(item, held) for item in rest[1]))
        if tag == "dict":
            return {unpack(key, held): unpack(item, held) for key, item in rest[0]}
        if tag == "text":
            return _AS_TEXT[rest[0]][2](rest[1])
        if tag == "timedelta":
            return datetime.timedelta(*rest)
        if tag == "iterator":
            return iter([unpack(item, held) for item in rest[0]])
        if tag == "builtin":
            return held(str(rest[0]))
        if tag == "held":
            return held(rest[0])
    except (TypeError, KeyError, IndexError, OverflowError) as error:
        raise ValueError(f"no plain data: {error}") from error
    raise ValueError("no plain data")
