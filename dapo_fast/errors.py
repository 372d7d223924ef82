"""The one error a user can cause, and what other libraries raise made into it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LONGEST = 600  # characters of a message: what a library quotes may be a whole file


class InputError(ValueError):
    """Bad input: the message names the file, line or argument. The command line exits with code 2 on it."""


class NonFiniteError(ArithmeticError):
    """A loss or gradient that is not a number: training has diverged. The command line exits with code 1 on it."""


def one_line(text: object) -> str:
    """``text`` on one printable line, its middle left out where it is long."""
    line = " ".join("".join(c if c.isprintable() or c.isspace() else repr(c)[1:-1] for c in str(text)).split())
    half = _LONGEST // 2
    return line if len(line) <= _LONGEST else f"{line[:half]} … {line[-half:]}"


def first_line(error: BaseException) -> str:
    """The message of another library's error, which may go on for many lines."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def reason(error: BaseException) -> str:
    """What went wrong, on one line, for a message that says already where."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 text: byte {error.start}"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, KeyError):
        return f"nothing named {one_line(error)}"
    return one_line(error) or type(error).__name__


def refuse_pipe(path: Path) -> None:
    """InputError if ``path`` is a named pipe: to open one takes until somebody writes to it, which may be never."""
    if path.is_fifo():
        raise InputError(f"{path}: not a regular file")


@contextmanager
def blaming(culprit: object, what: str = "not readable") -> Iterator[None]:
    """Whatever the block's libraries raise is an InputError of one line that names ``culprit``.

    Only for a block that reads what a user gave, with code that is not ours: a bug of ours must stay one.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        # Parsers of other people's formats raise a dozen unrelated types on files that are not theirs.
        raise InputError(f"{culprit}: {what} ({reason(error)})") from error


# Packages whose errors are about files, a disk or a server, whatever of ours called them.
_READERS = ("pyarrow", "safetensors", "safetensors_rust", "tokenizers", "jinja2", "httpx", "huggingface_hub", "yaml")


# A full disk, a quota, a limit on a file's size. Writers that are not Python say it in words only.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """``error`` and all that led to it, what any rank says of a checkpoint included."""
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    while waiting:
        cause = waiting.pop()
        if cause is None or id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        failures = getattr(cause, "failures", None)
        waiting += [failed[0] for failed in failures.values()] if isinstance(failures, dict) else []
        waiting += [cause.__context__, cause.__cause__]


def _no_room(error: BaseException, place: object) -> str | None:
    for cause in _causes(error):
        name = cause.filename if isinstance(cause, OSError) else None
        number = cause.errno if isinstance(cause, OSError) else None
        words = [os.strerror(n) for n in _NO_ROOM if n == number or os.strerror(n) in str(cause)]
        if any(sign in str(cause) for sign in ("PytorchStreamWriter", "inline_container", "iostream error")):
            # torch's writer keeps the reason to itself
            words.append("a file could not be written, as on a full disk")
        if words:
            return f"{one_line(name) if name else place}: {words[0]}; make room, and the same command goes on"
    return None


def from_outside(error: BaseException, place: object) -> str | None:
    """One line about an error that the system or a reader of files raised; None where it may be a bug of ours.

    Args:
        place: Names where, if the error does not know the file.
    """
    full = _no_room(error, place)
    if full is not None:
        return full
    if isinstance(error, OSError):
        names = [str(name) for name in (error.filename, error.filename2) if name is not None]
        return f"{one_line(' to '.join(names)) or place}: {reason(error)}"
    written_in_rust = "(os error " in str(error)  # tokenizers raises a plain Exception
    if written_in_rust or type(error).__module__.partition(".")[0] in _READERS:
        return f"{place}: {reason(error)}"
    return None
