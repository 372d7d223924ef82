"""What a program gave to a run: objects, by the names that they go by in its settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dapo_fast.errors import InputError
from dapo_fast.names import name_of

if TYPE_CHECKING:
    from dapo_fast.data.problems import Problem
    from dapo_fast.data.rows import Row
    from dapo_fast.rollout.engine import Engine


class Given:
    """What a program gave, by the names that it goes by in settings."""

    def __init__(self) -> None:
        self.objects: dict[str, Any] = {}

    def name(self, thing: Any) -> str | None:
        """The name of ``thing``; a text is one already."""
        if thing is None or isinstance(thing, str):
            return thing
        name = name_of(thing)
        if self.objects.setdefault(name, thing) is not thing:
            raise InputError(f"{name}: two things that are given go by this name; give them as module:attribute")
        return name

    def source(self, problems: str | Path | Iterable[Row | Problem] | None) -> str | None:
        """Where problems are, or a name of all that they say."""
        if problems is None or isinstance(problems, str | Path):
            return None if problems is None else str(problems)
        from dapo_fast.data.problems import content_digest, load_problems

        read = load_problems(problems)
        name = f"<{len(read)} problems {content_digest(read)[:16]}>"
        self.objects[name] = read
        return name

    def reward(self, reward: Any) -> str | dict[str, float] | None:
        """A reward's name, or the names of several with their weights."""
        for one in reward if isinstance(reward, Mapping) else [reward]:
            if one is not None and not isinstance(one, str) and not callable(one):
                raise InputError(f"reward: {one!r} is neither a name nor a function of a problem and a response")
        if isinstance(reward, Mapping):
            names = [str(self.name(one)) for one in reward]
            for name in names:
                if names.count(name) > 1:
                    raise InputError(f"reward: {name}: is given more than once")
            return dict(zip(names, reward.values(), strict=True))
        return self.name(reward)


def engine_factory(engine: Any) -> Callable[[Path], Engine] | None:
    """``engine``; InputError where it is not a function of a policy's directory."""
    if engine is None or (callable(engine) and (isinstance(engine, type) or not hasattr(engine, "generate"))):
        return engine
    raise InputError("engine: give a function of a policy's directory, since every iteration samples from a new policy")
