"""Tasks that generate their own problems, model and gold traces: nothing is downloaded, everything is known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from dapo_fast.errors import InputError
from dapo_fast.names import resolve
from dapo_fast.tasks.arithmetic import Arithmetic
from dapo_fast.tasks.instruments import Instruments

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from dapo_fast.data.problems import Problem


class Task(Protocol):
    """A task of one's own; ``Arithmetic`` is one to copy from.

    ``collect.gold_starts`` also needs its ``solution``: a problem → a whole response that is right.
    """

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """With an end token."""
        ...

    def model_config(self) -> PreTrainedConfig:
        """The shape of the model that the supervised start trains from scratch, where ``model.path`` names none."""
        ...

    def problems(self, count: int, seed: int, split: str = "train") -> list[Problem]:
        """``count`` problems of the split "train" or "heldout", which share none."""
        ...

    def gold(self, count: int, seed: int, step: int) -> list[tuple[str, str]]:
        """``count`` (prompt, response) pairs for optimizer step ``step`` of the supervised start, none held out."""
        ...

    def verify(self, problem: Problem, response: str) -> float:
        """The reward of a response (see ``dapo_fast.rewards.Reward``)."""
        ...


TASKS: dict[str, Arithmetic] = {task.kind: task for task in (Arithmetic(), Instruments())}
_METHODS = ("tokenizer", "model_config", "problems", "gold", "verify")


def get_task(name: str, given: Mapping[str, Any] | None = None) -> Task:
    """The task ``name``: a built-in one, one that ``given`` holds, or ``module:attribute``.

    Raises:
        InputError: names the tasks that exist, or the methods that are missing.
    """
    known = TASKS | dict(given or {})
    if name not in known and ":" not in name:
        raise InputError(f"data.task {name}: unknown; there are {', '.join(sorted(TASKS))}, or name a module:task")
    task = resolve("data.task", name, known)
    missing = [method for method in _METHODS if not callable(getattr(task, method, None))]
    if missing or isinstance(task, type):
        what = "a class, not an object of it" if isinstance(task, type) else f"no task: it has no {', '.join(missing)}"
        raise InputError(f"data.task {name}: {what}")
    return task
