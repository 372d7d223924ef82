"""Names in settings that stand for objects: ``module:attribute``, or ``<…>`` for what only a program can give.

Settings are text, since results are bound to them and a run directory keeps them. So an object that a program gives
goes by the name under which anybody can import it. Where it has none (a lambda, a function within a function or of the
program itself), it goes by one in angle brackets that ends in a digest: of a function's code, defaults and enclosed
values, or of an object's class and what pickle would keep of it.
"""

from __future__ import annotations

import copyreg
import functools
import hashlib
import importlib
import json
import logging
import os
import sys
import types
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from dapo_fast.errors import InputError, blaming
from dapo_fast.hashing import digest

_PLAIN = (types.NoneType, bool, int, float, str)
_READ: dict[type, tuple[str, ...]] = {  # what decides what these do
    types.CodeType: ("co_code", "co_names", "co_consts"),
    types.FunctionType: ("__code__", "__defaults__", "__kwdefaults__", "__closure__", "__dict__"),
    property: ("fget", "fset", "fdel"),
    classmethod: ("__func__",),
    staticmethod: ("__func__",),
    functools.cached_property: ("func",),
}

_LOOKED_UP = ContextVar("looked up", default=True)


@contextmanager
def unresolved() -> Iterator[None]:
    """Within the block names in settings are taken as they are: to read what a run left, nothing need be imported."""
    token = _LOOKED_UP.set(False)
    try:
        yield
    finally:
        _LOOKED_UP.reset(token)


def looked_up(name: str) -> bool:
    """Whether ``name`` is to be found when settings are read, as one that only a program can give is not."""
    return _LOOKED_UP.get() and not name.startswith("<")


def import_path() -> str:
    """``PYTHONPATH`` of a process that is to import what this one can, a module beside the user's script among it."""
    return os.pathsep.join(path or os.getcwd() for path in sys.path)


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
        found = _imported(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    return found


def _imported(module: str) -> types.ModuleType:
    try:
        return importlib.import_module(module)
    except SystemExit as stop:  # of a script that runs when it is imported, but not of a signal
        if isinstance(stop.code, int) and stop.code > 128:
            raise
        raise ImportError(f"it ends the program with {stop.code}") from stop


def check_name(name: str, known: Collection[str] = ()) -> None:
    """InputError unless ``name`` is one of ``known``, can be imported and called, or is a program's to give."""
    if name in known or not looked_up(name):
        return
    if known and ":" not in name:
        raise InputError(f"{name!r} is none of {', '.join(known)}, and no module:attribute")
    if not callable(found := resolve("", name)):
        raise InputError(f"{name}: a {type(found).__name__}, which cannot be called")


def name_of(thing: Any) -> str:
    """The name that ``thing`` goes by in settings.

    Raises:
        InputError: it holds something that cannot be told apart from others of its type, such as a lock.
    """
    place = _place(thing)
    if _importable(thing):
        return place
    with blaming(place, "cannot be told apart; give it as module:attribute"):
        return f"<{place.replace('<', '').replace('>', '')} {digest(_Describer()(thing))}>"


def _place(thing: Any) -> str:
    owner = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{getattr(owner, '__module__', None)}:{owner.__qualname__}"


def _importable(thing: Any) -> bool:
    place = _place(thing)
    try:
        # An object's place is its class's. What another process has as __main__ is another program.
        return hasattr(thing, "__qualname__") and not place.startswith("__main__:") and resolve("", place) == thing
    except InputError:
        return False


def _enclosed(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a name that is not bound yet
        return None


class _Describer:
    """Objects as JSON data that is the same in every process, whatever shares what: all but plain values as a digest.

    What can be imported goes by where it is, within other things as well.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[Any, str]] = {}  # with the thing, so that nothing else gets its id
        self._above: dict[int, int] = {}  # what is being described, by depth: a cycle ends there

    def __call__(self, thing: Any) -> Any:
        """``thing`` itself where it is plain."""
        if type(thing) in _PLAIN:
            return thing
        key = id(thing)
        if key in self._above:
            return ["above", len(self._above) - self._above[key]]
        if key not in self._known:
            self._above[key] = len(self._above)
            self._known[key] = (thing, digest([_place(type(thing)), self._parts(thing)]))
            del self._above[key]
        return self._known[key][1]

    def _parts(self, thing: Any) -> Any:
        if isinstance(thing, types.ModuleType | logging.Logger):
            # What they hold changes with use.
            return thing.__name__ if isinstance(thing, types.ModuleType) else thing.name
        if _importable(thing):
            return _place(thing)
        if isinstance(thing, bytes | bytearray):
            return hashlib.sha256(thing).hexdigest()
        if type(thing) in (list, tuple):
            return [self(item) for item in thing]
        if type(thing) in (dict, types.MappingProxyType):
            return [[self(key), self(value)] for key, value in thing.items()]
        if type(thing) in (set, frozenset):
            return sorted((self(item) for item in thing), key=json.dumps)
        if isinstance(thing, type):
            return [_place(thing), self(thing.__bases__), self(_class_body(thing))]
        for kind, attributes in _READ.items():
            if isinstance(thing, kind):
                return [self(getattr(thing, attribute)) for attribute in attributes]
        if isinstance(thing, types.CellType):
            return self(_enclosed(thing))
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(thing, torch.Tensor):  # which pickles with an address
            content = thing.detach().cpu().reshape(-1).view(torch.uint8).numpy()
            return [str(thing.dtype), list(thing.shape), hashlib.sha256(content).hexdigest()]
        return self._pickled(thing)

    def _pickled(self, thing: Any) -> Any:
        """What pickle would keep, in parts: its bytes depend on which equal parts are one object, and on hash seeds."""
        reduce = copyreg.dispatch_table.get(type(thing))
        kept = reduce(thing) if reduce else thing.__reduce_ex__(2)
        if isinstance(kept, str):  # a place, which may not hold it
            return [_place(thing), self(getattr(thing, "__dict__", None))]
        made, arguments, state, items, pairs = (*kept, None, None, None)[:5]
        return [self(part) for part in (made, arguments, state, list(items or ()), list(pairs or ()))]


def _class_body(thing: type) -> dict[str, Any]:
    """Functions and attributes; what a class keeps about itself is left out."""
    special = {name for name in vars(thing) if name.startswith("__") and name.endswith("__")} | {"_abc_impl"}
    return {k: v for k, v in vars(thing).items() if k not in special or isinstance(v, types.FunctionType)}
