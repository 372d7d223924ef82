"""The judge's end of the pipes: the program's functions and objects, as they can be used from here."""

from __future__ import annotations

import builtins
import collections
import collections.abc
from typing import Any

from .data import MUTABLE, pack, read_frame, unpack, write_frame

# An exception of these ends a loop instead of failing a test, or ends the judge.
_NEVER_RAISED = {"StopIteration", "StopAsyncIteration", "GeneratorExit", "SystemExit", "KeyboardInterrupt"}


class Wrong(Exception):
    """The program broke off or answered with no answer."""


class Channel:
    """The judge's end of the two pipes."""

    def __init__(self, requests: int, replies: int) -> None:
        self.requests, self.replies = requests, replies
        self.callbacks: list[Any] = []
        if read_frame(replies) != ["ready"]:
            raise Wrong("the program does not load")

    def ask(self, operation: str, *arguments: Any) -> Any:
        """Have the program's side do ``operation``; its exception is raised here, as a plain built-in one."""
        packed = [pack(argument, self._name_of) for argument in arguments]
        write_frame(self.requests, [operation, packed])
        kind, *rest = read_frame(self.replies)
        while kind == "callback":
            self._call_back(*rest)
            kind, *rest = read_frame(self.replies)
        if kind == "value" and operation == "call":
            return self._after_call([*arguments[1], *arguments[2].values()], *rest)
        if kind == "value":
            return unpack(rest[0], self._remote)
        if kind == "end":
            if operation != "next":
                raise Wrong("an end of what is no iteration")
            raise StopIteration
        name = str(rest[0])
        exception = getattr(builtins, name, None)
        ordinary = isinstance(exception, type) and issubclass(exception, Exception) and name not in _NEVER_RAISED
        if not ordinary or issubclass(exception, UnicodeError | BaseExceptionGroup):
            exception = Wrong
        raise exception(str(rest[1]))

    def _after_call(self, passed: list[Any], value: Any, same: Any, changed: Any) -> Any:
        """The value of a call; its arguments have been changed in place as the program changed its own."""
        for index, packed in dict(changed).items():
            target, now = passed[int(index)], unpack(packed, self._remote)
            if type(target) is not type(now) or not isinstance(target, MUTABLE):
                raise Wrong("an argument became another")
            _become(target, now)
        if same is None:
            return unpack(value, self._remote)
        if not isinstance(passed[int(same)], MUTABLE):
            raise Wrong("an argument is no result")
        return passed[int(same)]

    def _call_back(self, number: Any, positional: Any, named: Any) -> None:
        """Call a function of the test's that the program was given."""
        function = self.callbacks[int(number)]
        arguments, keywords = unpack(positional, self._remote), unpack(named, self._remote)
        if not isinstance(arguments, list) or not isinstance(keywords, dict):
            raise Wrong("no arguments")
        try:
            reply = ["returned", pack(function(*arguments, **keywords), self._name_of)]
        except (Wrong, EOFError):
            raise
        except Exception as error:
            reply = ["raised", type(error).__name__, str(error)[:500]]
        write_frame(self.requests, reply)

    def _name_of(self, value: Any) -> list[Any]:
        if isinstance(value, Remote):
            return ["held", value._number]
        if getattr(builtins, getattr(value, "__name__", ""), None) is value:
            return ["builtin", value.__name__]  # remove_datatype(values, int)
        if isinstance(value, collections.abc.Iterator):
            return ["iterator", [pack(item, self._name_of) for item in value]]
        if callable(value):
            self.callbacks.append(value)
            return ["held", ["callback", len(self.callbacks) - 1]]
        raise TypeError(f"a test passes {type(value).__name__}, which is no plain data")

    def _remote(self, name: Any) -> Any:
        number, is_callable = name  # a bare name, of a built-in, is for the other direction only
        return (RemoteCallable if is_callable else Remote)(self, [int(number)])


class Remote:
    """An object that stays on the program's side. It equals itself and nothing else, whatever its class says."""

    __slots__ = ("_channel", "_number")

    def __init__(self, channel: Channel, number: list[int]) -> None:
        object.__setattr__(self, "_channel", channel)
        object.__setattr__(self, "_number", number)

    def __getattr__(self, name: str) -> Any:
        return self._channel.ask("get", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._channel.ask("set", self, name, value)

    def __getitem__(self, key: Any) -> Any:
        return self._channel.ask("item", self, key)

    def __len__(self) -> int:
        return self._channel.ask("length", self)

    def __bool__(self) -> bool:
        return self._channel.ask("truth", self) is True

    # No __contains__: `in` goes through __iter__ and compares on this side.
    def __iter__(self) -> Remote:
        return self._channel.ask("iterate", self)

    def __next__(self) -> Any:
        return self._channel.ask("next", self)

    def __str__(self) -> str:
        return str(self._channel.ask("text", self))


class RemoteCallable(Remote):
    """One that can be called."""

    __slots__ = ()

    def __call__(self, *positional: Any, **named: Any) -> Any:
        return self._channel.ask("call", self, list(positional), named)


def _become(target: Any, now: Any) -> None:
    """Make ``target`` equal ``now`` in place, and what is in it as far as both have one shape: a test may hold it."""
    if isinstance(target, list) and len(target) == len(now):
        for index, item in enumerate(now):
            if isinstance(item, MUTABLE) and type(target[index]) is type(item):
                _become(target[index], item)
            else:
                target[index] = item
    elif isinstance(target, list | bytearray):
        target[:] = now
    else:
        target.clear()
        (target.extend if isinstance(target, collections.deque) else target.update)(now)
