"""What is checked and measured, in order of importance, and the process that does it."""

from __future__ import annotations

import gc
import importlib.util
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module

import torch

MARK = "@benchmarks.gpu "  # before every line of a child's output that is meant for its parent


@dataclass(frozen=True)
class Setup:
    """What a section is told."""

    dry: bool
    deadline: float  # time.time() after which it starts nothing more

    @staticmethod
    def has_gpu() -> bool:
        return torch.cuda.is_available()

    @property
    def device(self) -> torch.device:
        """The CPU in a dry run, so that it is the same one everywhere."""
        return torch.device("cpu" if self.dry else "cuda")

    def in_time(self, what: str) -> Iterator[dict]:
        """Nothing; a row that says so where there is no time for ``what`` any more."""
        if time.time() >= self.deadline:
            yield {"suite": "gpu", "case": what, "peer": "all", "state": "no time was left"}


@dataclass(frozen=True)
class Section:
    """One part of the run: its share of the time, the module whose rows(setup) it is, and what that imports."""

    share: float
    module: str
    needs: tuple[str, ...] = ()

    @property
    def rows(self) -> Callable[[Setup], Iterator[dict]]:
        return import_module(f"benchmarks.gpu.{self.module}").rows


SECTIONS = {
    "errors": Section(1.0, "errors"),
    "tests": Section(2.5, "cuda_tests", ("pytest", "hypothesis")),
    "attention": Section(1.5, "attention", ("transformers",)),
    "fused_loss": Section(2.5, "losses"),
    "actor": Section(2.0, "actor", ("transformers",)),
    "sampling": Section(1.0, "sampling", ("transformers",)),
}


def child(sections: list[tuple[str, float]], dry: bool) -> int:
    """Run sections until one fails; tell the parent of every row and every end."""
    for name, deadline in sections:
        missing = [package for package in SECTIONS[name].needs if importlib.util.find_spec(package) is None]
        if missing:
            _tell({"done": f"left out: {', '.join(missing)} not installed"})
            continue
        try:
            for row in SECTIONS[name].rows(Setup(dry, deadline)):
                _tell({"row": row})
        except Exception as failure:
            # Whatever it was: the parent names it, and goes on in a new process, since a GPU's error spoils this one.
            traceback.print_exc(file=sys.stdout)
            text = str(failure).strip()
            _tell({"failed": f"{type(failure).__name__}: {text.splitlines()[0][:300] if text else ''}"})
            return 1
        _tell({"done": "done"})
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return 0


def _tell(event: dict) -> None:
    print(f"{MARK}{json.dumps(event)}", flush=True)
