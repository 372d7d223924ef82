"""Built-in tasks: problems, gold traces and verifiers that need no download."""

from __future__ import annotations

from dapo_fast.errors import InputError
from dapo_fast.tasks.arithmetic import Arithmetic
from dapo_fast.tasks.instruments import Instruments

TASKS: dict[str, Arithmetic] = {task.kind: task for task in (Arithmetic(), Instruments())}


def get_task(name: str) -> Arithmetic:
    """The built-in task ``name``; InputError names those that exist."""
    if name not in TASKS:
        raise InputError(f"data.task {name}: unknown; there are {', '.join(sorted(TASKS))}")
    return TASKS[name]
