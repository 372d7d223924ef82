"""What a run tells a program while it works: one event an optimizer step, and one at the end of each stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Event:
    """Something has been done.

    Attributes:
        stage: "sft", "collect", "critic", "advantages", "actor" or "evaluate".
        iteration: The first is 1; 0 for what comes before it.
        step: Of the optimizer, from 1 on; None: the stage has ended.
        values: The step's metrics as metrics.jsonl has them, or what the stage says at its end.
    """

    stage: str
    iteration: int
    step: int | None
    values: dict[str, Any]


Callback = Callable[[Event], None]

_listening: ContextVar[Callable[[int, dict[str, Any]], None] | None] = ContextVar("listening", default=None)


@contextmanager
def telling(callbacks: Sequence[Callback], stage: str, iteration: int) -> Iterator[None]:
    """Tell ``callbacks`` of every optimizer step that this process takes within the block."""

    def tell(step: int, metrics: dict[str, Any]) -> None:
        for callback in callbacks:
            callback(Event(stage, iteration, step, metrics))

    before = _listening.set(tell)
    try:
        yield
    finally:
        _listening.reset(before)


def tell_step(step: int, metrics: dict[str, Any]) -> None:
    """Optimizer step ``step`` has been taken."""
    tell = _listening.get()
    if tell is not None:
        tell(step, metrics)
