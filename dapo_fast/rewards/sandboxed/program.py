"""The program under test: a script of its own, or a module that does what the judge asks of it."""

from __future__ import annotations

import builtins
import os
import site
import sys
import types
import warnings
from typing import Any

from .data import MUTABLE, pack, read_frame, unpack, write_frame


def _as_from_a_terminal(name: str) -> dict[str, Any]:
    """The name space of a new module ``name``, with what a program finds when it is started by hand."""
    site.setquit()  # exit() and quit(), which -S leaves out
    site.setcopyright()
    sys.argv = ["program.py"]
    # A pool of processes as large as the machine would meet the limit of processes.
    os.cpu_count = lambda: 2
    # Registered, so that pickle and dataclasses find a class's module.
    sys.modules[name] = types.ModuleType(name)
    space = sys.modules[name].__dict__
    space |= {"__builtins__": builtins, "__file__": "/tmp/program.py"}
    return space


def run(source: str, file: str, space: dict[str, Any]) -> None:
    """Execute as a module of its own: the future annotations of this one are not the source's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        code = compile(source, file, "exec", dont_inherit=True)
    exec(code, space)


def run_script(orders: dict[str, Any], stdin: int) -> None:
    """A whole program, reading standard input and writing standard output.

    It ends as any program does: by the interpreter, which waits for threads, runs ``atexit`` and gives the exit code.
    """
    os.dup2(stdin, 0)
    os.closerange(3, 65536)
    sys.stdin = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115 - the program's own
    sys.stdout = open(1, "w", encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115 - likewise
    sys.__stdin__, sys.__stdout__ = sys.stdin, sys.stdout
    run(orders["program"], "program.py", _as_from_a_terminal("__main__"))


_MISSING = object()


class Program:
    """The program's side: defines its names, then does what the judge asks of them."""

    def __init__(self, orders: dict[str, Any], requests: int, replies: int) -> None:
        self.requests, self.replies = requests, replies
        self.objects: list[Any] = []
        self.space = _as_from_a_terminal("program")
        self.given: dict[str, Any] = {}
        self.operations = {
            "function": self.function,
            "name": self.name,
            "call": lambda target, positional, named: target(*positional, **named),
            "get": getattr,
            "set": setattr,
            "item": lambda target, key: target[key],
            "length": len,
            "iterate": iter,
            "truth": bool,
            "text": str,
        }
        try:
            run(orders["preamble"], "preamble.py", self.space)
            self.given = dict(self.space)
            run(orders["program"], "program.py", self.space)
        except SystemExit as stop:
            if stop.code not in (None, 0):
                write_frame(replies, ["raised", "SystemExit", ""])
                return
        except BaseException as error:
            write_frame(replies, ["raised", type(error).__name__, str(error)[:500]])
            return
        write_frame(replies, ["ready"])

    def name(self, name: str) -> Any:
        """What the program, and not the preamble, calls ``name``."""
        value = self.space[name]
        if self.given.get(name, _MISSING) is value:
            raise KeyError(name)
        return value

    def function(self, name: str, owner: str) -> Any:
        """The function ``name``, or the method of a new ``owner``."""
        try:
            return self.name(name)
        except KeyError:
            return getattr(self.space[owner](), name)

    def keep(self, value: Any) -> Any:
        self.objects.append(value)
        return ["held", [len(self.objects) - 1, callable(value)]]

    def held(self, name: Any) -> Any:
        if isinstance(name, str):
            return getattr(builtins, name)
        kind, number = name if len(name) == 2 else ("object", name[0])
        return self.callback(number) if kind == "callback" else self.objects[number]

    def callback(self, number: int) -> Any:
        """A function of the test's: each call is asked of the judge."""

        def call(*positional: Any, **named: Any) -> Any:
            write_frame(self.replies, ["callback", number, pack(list(positional), self.keep), pack(named, self.keep)])
            kind, *rest = self.serve(until_returned=True)
            if kind == "returned":
                return unpack(rest[0], self.held)
            raise getattr(builtins, rest[0], Exception)(rest[1])

        return call

    def serve(self, until_returned: bool = False) -> Any:
        """Answer requests; the answer to a callback ends the loop that waits for it."""
        while True:
            operation, *rest = read_frame(self.requests)
            if until_returned and operation in ("returned", "raised"):
                return [operation, *rest]
            write_frame(self.replies, self.answer(operation, rest[0]))

    def answer(self, operation: str, arguments: list[Any]) -> list[Any]:
        """The reply to one request: with what has become of the arguments that a call has changed."""
        values = [unpack(argument, self.held) for argument in arguments]
        try:
            if operation == "next":
                value = next(values[0], _MISSING)
                return ["end"] if value is _MISSING else ["value", pack(value, self.keep)]
            if operation != "call":
                return ["value", pack(self.operations[operation](*values), self.keep)]
            target, positional, named = values
            passed = [*positional, *named.values()]  # a program may rebind its *args, not these
            value = target(*positional, **named)
        except BaseException as error:
            return ["raised", type(error).__name__, str(error)[:500]]
        try:
            same = next((i for i, item in enumerate(passed) if item is value and isinstance(item, MUTABLE)), None)
            reply = ["value", None if same is not None else pack(value, self.keep), same, {}]
            sent = [*arguments[1][1], *(item for _, item in arguments[2][1])]
            for index, item in enumerate(passed):
                if isinstance(item, MUTABLE) and (now := pack(item, self.keep)) != sent[index]:
                    reply[3][index] = now
        except BaseException as error:
            return ["raised", type(error).__name__, str(error)[:500]]
        return reply
