"""One engine at a time, kept for the next stage where that samples from the same policy."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from dapo_fast.config import Config
from dapo_fast.parts import Parts
from dapo_fast.rollout.engine import Engine
from dapo_fast.rollout.server import serving


class EngineLoan:
    """Opens engines for the stages that sample, each with the server it talks to."""

    def __init__(self, parts: Parts, server_log: Path) -> None:
        """``server_log``: where a server that is started writes; one a run, so that the next finds a killed run's."""
        self._parts = parts
        self._server_log = server_log
        self._lent = ExitStack()  # the engine in use, and what it stands for
        self._lent_for: tuple[Path, dict] | None = None
        self._engine: Engine | None = None
        self._keeps = False  # whether the next stage may want the same engine

    @contextmanager
    def open(self, policy: Path, config: Config) -> Iterator[Engine]:
        """What samples from ``policy``: the one that the stage before used, if it is the same."""
        wanted = (policy, {"engine": config.engine.model_dump(), "model": config.model.model_dump()})
        if wanted != self._lent_for:
            self.release()
            try:
                self._start(policy, config)
            except BaseException:
                self.release()
                raise
            self._lent_for = wanted
        try:
            yield self._engine
        finally:
            if not self._keeps:
                self.release()

    def _start(self, policy: Path, config: Config) -> None:
        server = self._lent.enter_context(serving(config.engine, policy, self._server_log))
        self._engine = self._parts.engine(policy, config, server)
        self._lent.callback(getattr(self._engine, "close", lambda: None))

    def release(self) -> None:
        """Let go of the engine: training wants the memory."""
        self._engine = self._lent_for = None
        self._lent.close()
        free_memory()

    @contextmanager
    def lending(self) -> Iterator[None]:
        """Within the block an engine stays for the next stage, which may sample from the same policy."""
        self._keeps = True
        try:
            yield
        finally:
            self._keeps = False
            self.release()


def free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
