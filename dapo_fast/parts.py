"""What a run is made of: the things that its settings name, read, imported, or as a program gave them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from dapo_fast.config import Config, Source
from dapo_fast.data.mixture import mixed
from dapo_fast.data.problems import SOLUTION, Problem, asked, gold_solution, load_problems, refuse_common
from dapo_fast.errors import InputError
from dapo_fast.models.readpath import PackObjective
from dapo_fast.names import resolve
from dapo_fast.rewards import Reward, named_reward, verify_by_kind
from dapo_fast.rollout.engine import Engine, make_engine
from dapo_fast.rollout.loading import load_tokenizer
from dapo_fast.rollout.server import Server
from dapo_fast.snapshots import model_directory
from dapo_fast.tasks import Task, get_task

# Problems of a task, where ``data.limit``, ``data.heldout_limit`` and ``data.validation_limit`` do not say.
TRAINING, HELDOUT, VALIDATION = 600, 1000, 200


class Parts:
    """The task, problems, reward, engine and objective of a run; each is found when it is asked for."""

    def __init__(self, config: Config, given: Mapping[str, Any] | None = None) -> None:
        """Take the settings, and objects that a program gave by the names that they have there."""
        self.config = config
        self._given = dict(given or {})

    @property
    def task(self) -> Task | None:
        """The task that generates problems; None where they are read."""
        name = self.config.data.task
        return None if name is None else get_task(name, self._given)

    def problems(self, iteration: int) -> list[Problem]:
        """What ``iteration`` samples responses to."""
        config, seed = self.config.at(iteration), self.config.seed + iteration
        data = config.data
        if self.task is not None:
            problems = self.task.problems(data.limit or TRAINING, seed)
        else:
            problems = self._mixed("data.problems", data.problems or "", data.limit, seed)
        return self._solved(problems) if config.collect.gold_starts else problems

    def _solved(self, problems: list[Problem]) -> list[Problem]:
        """``problems`` with the gold solutions that their task knows; InputError where no problem has one."""
        solve = getattr(self.task, "solution", None)
        if solve is not None:
            problems = [replace(p, extra={**(p.extra or {}), SOLUTION: solve(p)}) for p in problems]
        if not any(gold_solution(problem) for problem in problems):
            raise InputError(f"collect.gold_starts: no problem has a {SOLUTION!r}, and the task knows none")
        return problems

    def heldout(self) -> list[Problem]:
        """What policies are measured on; none where nothing is held out."""
        data = self.config.data
        if self.task is not None and data.heldout is None:
            return self.task.problems(data.heldout_limit or HELDOUT, self.config.seed, split="heldout")
        return self._mixed("data.heldout", data.heldout, data.heldout_limit, None) if data.heldout else []

    def validation(self) -> list[Problem]:
        """What ``actor.eval_every`` chooses a policy by: of a task, held-out problems that ``heldout`` leaves.

        Raises:
            InputError: one of them is reported on too, or there are none.
        """
        data, reported = self.config.data, self.heldout()
        if data.validation is not None:
            found = self._mixed("data.validation", data.validation, data.validation_limit, None)
            refuse_common(found, reported, "data.heldout, and what a policy is chosen by must not be what is reported")
        elif self.task is not None:
            count, known = data.validation_limit or VALIDATION, {asked(problem) for problem in reported}
            drawn = self.task.problems(len(reported) + count, self.config.seed, split="heldout")
            found = [problem for problem in drawn if asked(problem) not in known][:count]
        else:
            found = []
        if not found:
            raise InputError("actor.eval_every: there are no problems to choose the policy by (data.validation)")
        return found

    def _mixed(self, setting: str, given: str | list[Source], limit: int | None, seed: int | None) -> list[Problem]:
        sources = [Source(path=given)] if isinstance(given, str) else given
        names = [Path(source.path).stem for source in sources]
        if len(set(names)) < len(names):
            names = [source.path for source in sources]
        sets = {name: self._read(setting, source.path) for name, source in zip(names, sources, strict=True)}
        return mixed(sets, [source.weight for source in sources], limit, seed)

    def _read(self, setting: str, source: str) -> list[Problem]:
        if source.startswith("<"):
            return list(resolve(setting, source, self._given))
        return load_problems(source)

    def reward(self, problems: Sequence[Problem]) -> Reward:
        """What judges responses to ``problems``.

        Raises:
            InputError: a reward that cannot be had, or none and a problem without an answer or tests.
        """
        if self.config.reward is not None:
            known = {} if self.task is None else {str(self.config.data.task): self.task.verify}
            return named_reward(self.config.reward, self._given | known)
        if self.task is not None:
            return self.task.verify
        for problem in problems:
            if {"math": problem.answer, "code": problem.tests}.get(problem.kind) is None:
                raise InputError(f"problem {problem.id!r}: neither an answer nor tests, so a reward has to be named")
        return verify_by_kind

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The policy's."""
        path = self.config.model.path
        if path is None and self.task is not None:
            return self.task.tokenizer()
        return load_tokenizer(model_directory("model.path", str(path), weights=False))

    def objective(self) -> PackObjective | None:
        """The actor's loss; None: the squared loss."""
        name = self.config.objective
        return None if name is None else resolve("objective", name, self._given)

    def engine(self, policy: Path, config: Config, server: Server | None) -> Engine:
        """What samples from ``policy`` in an iteration whose settings are ``config``."""
        return make_engine(config.engine, policy, config.model, server, self._given)
