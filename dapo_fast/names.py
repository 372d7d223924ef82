"""Names in settings that stand for objects: ``module:attribute``, or ``<…>`` for what only a program can give.

Settings are text, since results are bound to them and a run directory keeps them. So an object that a program gives
goes by the name under which anybody can import it. Where it has none (a lambda, a function within a function or of the
program itself), it goes by one in angle brackets that ends in a digest: of a function's code, defaults and enclosed
values, or of an object's class and attributes.
"""

from __future__ import annotations

import functools
import importlib
import types
from collections.abc import Collection, Mapping
from typing import Any

from dapo_fast.errors import InputError, blaming
from dapo_fast.hashing import digest

_DEPTH = 6  # of attributes within attributes: further down only their types count


def resolve(setting: str, name: str, given: Mapping[str, Any] | None = None) -> Any:
    """The object that ``name`` stands for.

    Args:
        setting: What the message of an error begins with.
        given: Objects that a program gave, by their names.

    Raises:
        InputError: nothing can be imported under that name, or only a program can give it.
    """
    if given and name in given:
        return given[name]
    who = f"{setting} {name}".strip()
    if name.startswith("<"):
        raise InputError(f"{who}: was given by a program, and cannot be had without it")
    module, separator, attribute = name.partition(":")
    if not separator or not all(part.isidentifier() for part in [*module.split("."), *attribute.split(".")]):
        raise InputError(f"{who}: not a module:attribute that could be imported")
    with blaming(who, "cannot be imported"):
        found = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    return found


def check_name(name: str, known: Collection[str] = ()) -> None:
    """InputError unless ``name`` is one of ``known``, can be imported, or is a program's to give."""
    if name in known or name.startswith("<"):
        return
    if known and ":" not in name:
        raise InputError(f"{name!r} is none of {', '.join(known)}, and no module:attribute")
    resolve("", name)


def name_of(thing: Any) -> str:
    """The name that ``thing`` goes by in settings."""
    place = _place(thing)
    if _importable(thing):
        return place
    return f"<{place.replace('<', '').replace('>', '')} {digest(_described(thing))}>"


def _place(thing: Any) -> str:
    owner = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{getattr(owner, '__module__', None)}:{owner.__qualname__}"


def _importable(thing: Any) -> bool:
    place = _place(thing)
    try:
        # What another process has as __main__ is another program.
        return not place.startswith("__main__:") and resolve("", place) == thing
    except InputError:
        return False


def _enclosed(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a name that is not bound yet
        return None


def _described(thing: Any, depth: int = 0) -> Any:
    """JSON data that is the same in every process for the same object, as far as can be told."""
    if thing is None or isinstance(thing, bool | int | float | str):
        return thing
    if isinstance(thing, type) or depth == _DEPTH:
        return _place(thing)
    below = functools.partial(_described, depth=depth + 1)
    if isinstance(thing, Mapping):
        return [[below(key), below(value)] for key, value in thing.items()]
    if isinstance(thing, list | tuple):
        return [below(item) for item in thing]
    if isinstance(thing, set | frozenset):
        return sorted(map(str, thing))
    if isinstance(thing, types.CodeType):
        return [thing.co_code.hex(), list(thing.co_names), below(thing.co_consts)]
    if isinstance(thing, functools.partial):
        return [below(thing.func), below(thing.args), below(thing.keywords)]
    if isinstance(thing, types.MethodType):
        return [below(thing.__self__), thing.__name__]
    if isinstance(thing, types.FunctionType):
        cells = [_enclosed(cell) for cell in thing.__closure__ or ()]
        return [below(thing.__code__), below(thing.__defaults__), below(thing.__kwdefaults__), below(cells)]
    return [_place(type(thing)), below(vars(thing)) if hasattr(thing, "__dict__") else None]
