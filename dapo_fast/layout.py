"""Where the parts of a run are, and what decides the result of each: its own settings and what it reads."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dapo_fast import state
from dapo_fast.config import Config
from dapo_fast.errors import InputError
from dapo_fast.rundir import RunDirectory, read_state
from dapo_fast.snapshots import model_directory
from dapo_fast.train.torchrun import is_first_rank

STAGES = ("sft", "collect", "critic", "advantages", "actor", "evaluate")


class Layout:
    """The stages' directories, bound to the settings that decide what is in them."""

    def __init__(self, directory: RunDirectory) -> None:
        self.directory = directory
        self.config = directory.config

    def policy(self, iteration: int) -> Path:
        """The policy after ``iteration`` (0: the one the run starts from); a model of the hub is fetched."""
        return model_directory("model.path", self._policy(iteration))

    def _policy(self, iteration: int) -> Path:
        """As ``policy``, but a model of the hub is its name."""
        if iteration == 0:
            return self.directory.stage(0, "sft") / "model" if self.has_sft() else Path(self.model_path())
        if not self.accepted(iteration):
            return self._policy(iteration - 1)
        return self.directory.stage(iteration, "actor") / "model"

    def trained(self, iteration: int) -> Path:
        """The policy that ``iteration`` trained, accepted or not."""
        return self.directory.stage(iteration, "actor") / "model" if iteration else self.policy(0)

    def newest(self) -> int:
        """The last iteration whose policy is trained, accepted or not; 0 where none is."""
        numbers = range(self.config.iterations, 0, -1)
        return next((i for i in numbers if (self.directory.stage(i, "actor") / "done.json").exists()), 0)

    def has_sft(self) -> bool:
        """Whether a supervised start comes before iteration 1."""
        return self.config.sft.is_asked_for

    def model_path(self) -> str:
        """``model.path``, where a run must have one."""
        if self.config.model.path is None:
            raise InputError("model.path: not set, and sft.steps is 0: there is no policy to start from")
        return self.config.model.path

    def need(self, path: Path, stage: str, iteration: int) -> Path:
        """``path``, or an error that names the command whose stage makes it."""
        if not path.exists():
            command = f"dapo-fast {stage} {self.directory.path}" + (f" --iteration {iteration}" if iteration else "")
            raise InputError(f"{path}: missing; run `{command}` first")
        return path

    def accepted(self, iteration: int) -> bool:
        """Whether the policy of ``iteration`` was kept; so while nothing is decided."""
        decision = self.directory.path / f"iter{iteration}" / "decision.json"
        return not decision.exists() or bool(read_state(decision, state.Decision)["accepted"])

    def settings(self, stage: str, iteration: int) -> dict[str, Any]:
        """What decides a stage's result: its own settings and the digest of what it reads."""
        config = self.config.at(iteration)
        common = {"stage": stage, "seed": config.seed}
        # Left out where there is none, as in runs from before there were any.
        reward = {} if config.reward is None else {"reward": config.reward}
        if stage == "sft":
            return common | {"model": config.model.model_dump()} | _supervised(config)
        if stage == "collect":
            data = config.data.model_dump(exclude=set(config.data.MEASURED))
            own = {"policy": self.policy_digest(iteration - 1), "data": data, "engine": config.engine.kind}
            return common | own | reward | {"iteration": iteration, "collect": config.collect.model_dump()}
        trees = self.upstream(self.directory.stage(iteration, "collect")) if iteration else ""
        if stage == "critic":
            return common | {"trees": trees, "critic": config.critic.model_dump(), "dtype": config.model.dtype}
        if stage == "advantages":
            settings = common | {"trees": trees, "advantages": config.advantages.model_dump()}
            if config.advantages.source == "critic":
                settings["critic"] = self.upstream(self.directory.stage(iteration, "critic"))
            return settings
        if stage == "actor":
            own = {"policy": self.policy_digest(iteration - 1), "actor": config.actor.model_dump()}
            own["advantages"] = self.upstream(self.directory.stage(iteration, "advantages"))
            if config.objective is not None:
                own["objective"] = config.objective
            if config.actor.sft_weight:
                own["demonstrations"] = _supervised(config)
            if config.actor.eval_every:
                data = config.data.model_dump(include={"task", *config.data.MEASURED, "template", "system_prompt"})
                own["validation"] = {"data": data, "evaluate": config.evaluate.model_dump(), **reward}
            return common | own | {"dtype": config.model.dtype}
        data = config.data.model_dump(include={"task", "heldout", "heldout_limit", "template", "system_prompt"})
        trained = self.directory.stage(iteration, "actor") / "model" if iteration else self._policy(0)
        own = {"policy": self._digest_of(trained), "data": data, "engine": config.engine.kind}
        return common | own | reward | {"evaluate": config.evaluate.model_dump()}

    def check_settings(self, until: tuple[str, int] | None = None) -> None:
        """Compare the settings with those of every stage that has begun, before anything is written.

        Args:
            until: A stage and its iteration: only with its own and those of the stages that it may build on.

        Raises:
            InputError: names the stage and the keys that differ.
        """
        for iteration in range(self.config.iterations + 1):
            for stage in STAGES[1:] if iteration else ("sft", "evaluate"):
                last = (stage, iteration) == until
                directory = self.directory.stage(iteration, stage)
                builds = until is None or last or stage != "evaluate"  # nothing builds on a measurement
                if builds and (directory / "stage.json").exists():  # else what it reads may not be there either
                    self.directory.check(directory, self.settings(stage, iteration))
                if last:
                    return

    def claim(self, stage: str, iteration: int) -> tuple[Path, str]:
        """Bind a stage's directory to its settings, on every rank. Returns the directory and its digest."""
        directory, settings = self.directory.stage(iteration, stage), self.settings(stage, iteration)
        if is_first_rank():
            self.directory.claim(directory, settings)
        # A claim of other settings may lie there until rank 0 replaces it.
        wait_for_rank_0(directory / "stage.json", lambda: self.directory.changed(directory, settings) == [])
        return directory, self.upstream(directory)

    def upstream(self, directory: Path) -> str:
        """The digest of a stage that has begun, for what builds on it."""
        return str(read_state(directory / "stage.json", state.Claim)["digest"])

    def policy_digest(self, iteration: int) -> str:
        """The digest of the stage that made the policy after ``iteration``, or its name where it is not of this run."""
        return self._digest_of(self._policy(iteration))

    def _digest_of(self, policy: Path) -> str:
        return self.upstream(policy.parent) if (policy.parent / "stage.json").exists() else f"model {policy}"


def _supervised(config: Config) -> dict[str, Any]:
    """What decides which traces are imitated, and their tokens."""
    data = config.data.model_dump(include={"task", "template", "system_prompt"})
    return data | {"sft": config.sft.model_dump()}


def wait_for_rank_0(path: Path, there: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait for a file that rank 0 writes before there is a process group."""
    deadline = time.monotonic() + seconds
    while not there():
        if time.monotonic() > deadline:
            raise InputError(f"{path}: rank 0 did not write it within {seconds:.0f} s; see its message")
        time.sleep(0.05)
