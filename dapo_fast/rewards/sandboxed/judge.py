"""The judge: runs the tests with the program's functions, and with nothing else of the program's."""

from __future__ import annotations

import ast
import builtins
import contextlib
import importlib
import math
import re
import sys
from typing import Any

from .data import unpack
from .program import run
from .remote import Channel, Wrong


def judge(tests: dict[str, Any], channel: Channel) -> None:
    """Run the tests; whatever is raised means that the program is wrong."""
    if "cases" in tests:
        candidate = channel.ask("function", tests["entry_point"], tests["method_of"])
        for given, wanted in unpack(tests["cases"], None):
            found, wanted = _as_json(candidate(*map(_whole_keys, given))), _as_json(wanted)
            # APPS wraps some results into a list of one.
            wrapped = isinstance(wanted, list) and len(wanted) == 1 and _same(found, wanted[0])
            if not wrapped and not _same(found, wanted):
                raise Wrong("another result")
        return
    if "entry_point" in tests:
        space = _trusted_space(tests.get("prompt", ""))
        candidate = channel.ask("function", tests["entry_point"], tests.get("method_of", ""))
        space[tests["entry_point"]] = candidate  # HumanEval/33 calls it by its name too
        run(tests["test"], "test.py", space)
        space["check"](candidate)
        return
    setup = tests.get("test_setup_code", "")
    lines = list(tests["test_list"])
    space = _trusted_space("")
    space |= _names_for(setup, "\n".join(lines), channel)
    run(setup, "setup.py", space)
    for line in lines:
        run(line, "test.py", space)


def _as_json(value: Any) -> Any:
    """JSON has no tuples, and only text as keys."""
    if isinstance(value, list | tuple):
        return [_as_json(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _as_json(item) for key, item in value.items()}
    return value


def _whole_keys(value: Any) -> Any:
    """JSON turns whole numbers that are keys into text; APPS's own checker turns them back."""
    if isinstance(value, dict) and all(re.fullmatch("-?[0-9]+", key) for key in value):
        return {int(key): item for key, item in value.items()}
    return value


def _same(found: Any, wanted: Any) -> bool:
    if _number(found) and _number(wanted) and float in (type(found), type(wanted)):
        return math.isclose(found, wanted, rel_tol=1e-6, abs_tol=1e-9)
    if isinstance(found, list) and isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(_same, found, wanted))
    if isinstance(found, dict) and isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(_same(found[key], wanted[key]) for key in wanted)
    return type(found) is type(wanted) and found == wanted


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _trusted_space(preamble: str) -> dict[str, Any]:
    space: dict[str, Any] = {"__name__": "tests", "__builtins__": builtins}
    # HumanEval's prompt defines helpers that its tests call: the tests get their own copy, never the program's.
    try:
        run(preamble, "prompt.py", space)
    except SyntaxError:
        run(f"{preamble}\n    pass\n", "prompt.py", space)  # it ends behind the line that opens a body
    return space


def _names_for(setup: str, asserts: str, channel: Channel) -> dict[str, Any]:
    """What stands behind the names that the tests use and do not define.

    The functions under test are the program's. Everything else that a test leans on is the judge's own, or a program
    could bring a ``set`` or a ``Counter`` that makes all things equal: built-ins, modules, and names of the standard
    library. Where such a name is all that the tests call, as in MBPP's ``assert sum(10, 15) == 6``, it is under test.
    """
    tree = ast.parse(f"{setup}\n{asserts}")
    free = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - _bound_names(tree)
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    known = {name: value for name in free if (value := _library(name)) is not None}
    under_test = free - known.keys() - set(dir(builtins))
    if not called & under_test:
        under_test |= _innermost_calls(tree)
    found = {name: value for name, value in known.items() if name not in under_test}
    for name in sorted(under_test):
        # What the program lacks is a NameError in the test that needs it.
        with contextlib.suppress(KeyError):
            found[name] = channel.ask("name", name)
    return found


def _bound_names(tree: ast.AST) -> set[str]:
    bound = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            bound.add(node.id)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef | ast.ExceptHandler) and node.name:
            bound.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            bound |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    return bound


def _innermost_calls(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            inside = [n for argument in node.args for n in ast.walk(argument) if isinstance(n, ast.Call)]
            if not any(isinstance(n.func, ast.Name) for n in inside):
                found.add(node.func.id)
    return found if len(found) == 1 else set()


_LIBRARY = ("math", "cmath", "collections", "itertools", "functools", "operator", "datetime", "decimal", "fractions")
_LIBRARY += ("re", "heapq", "bisect", "copy", "string", "typing", "random", "statistics", "json")


def _library(name: str) -> Any:
    """A module, or what ``from module import name`` would have brought; None if there is none of that name."""
    if name in sys.stdlib_module_names:
        return importlib.import_module(name)
    if name in ("np", "numpy"):
        with contextlib.suppress(ImportError):
            return importlib.import_module("numpy")
    for module in map(importlib.import_module, _LIBRARY):
        if name in getattr(module, "__all__", dir(module)) and not name.startswith("_"):
            return getattr(module, name)
    return None
