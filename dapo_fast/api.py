"""``DAPO``: a run of Algorithm 1 as a program composes it. The command line is a user of it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from dapo_fast.config import Config, merge, wrong_keys
from dapo_fast.errors import InputError
from dapo_fast.events import Callback
from dapo_fast.given import Given, engine_factory
from dapo_fast.pins import pin
from dapo_fast.rundir import RunDirectory
from dapo_fast.train.torchrun import is_first_rank

if TYPE_CHECKING:
    from dapo_fast.data.problems import Problem
    from dapo_fast.data.rows import Row
    from dapo_fast.data.tree import Tree
    from dapo_fast.models.readpath import PackObjective
    from dapo_fast.pipeline import Pipeline
    from dapo_fast.rewards import Reward
    from dapo_fast.rollout.engine import Engine
    from dapo_fast.tasks import Task

log = logging.getLogger("dapo_fast.api")


class DAPO:
    """A run in a directory, which every method resumes where it was killed.

    What is given here goes by a name in the run's settings (``dapo_fast.names``), and results are bound to these: with
    other problems or another reward the directory is refused, as with any other setting. A function that can be
    imported goes by where it is, whatever its body; another one by its code.

    Under torchrun a program that calls ``sft``, ``critic`` or ``actor`` is one of the ranks; ``run`` and ``iterate``
    start ``parallel.processes`` ranks for these by themselves.

    Attributes:
        config: The settings, what was given among them.
        directory: Where everything is kept.
        iteration: What ``collect``, ``critic``, ``advantages`` and ``actor`` work on; 1 at first, and ``iterate`` goes
            on to the next.
    """

    def __init__(
        self,
        config: Config | None,
        directory: str | Path,
        *,
        problems: str | Path | Iterable[Row | Problem] | None = None,
        heldout: str | Path | Iterable[Row | Problem] | None = None,
        validation: str | Path | Iterable[Row | Problem] | None = None,
        task: Task | None = None,
        reward: str | Reward | Mapping[str | Reward, float] | None = None,
        engine: Callable[[Path], Engine] | None = None,
        objective: PackObjective | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        """Check the settings; nothing is loaded or written yet, but of models of the hub the config.json is fetched.

        Args:
            config: None: the settings that the directory was made with.
            problems: What to train on: whatever ``load_problems`` reads, rows in memory among it.
            heldout: What policies are measured on; without it nothing is, and every policy is kept.
            validation: What ``actor.eval_every`` chooses policies by: none of the others.
            task: A task of one's own instead of all three.
            reward: ``(problem, response) → a number from 0 to 1``; "math" or "code"; or several of these with weights,
                of which the weighted mean counts. None: the verifier of each problem's kind.
            engine: A policy's directory → what samples from it; its ``close``, if it has one, is called at the end.
            objective: The actor's loss (docs/objectives.md); None: the squared loss.
            callbacks: Called with an ``Event`` after every optimizer step of this process and at the end of each stage.

        Raises:
            InputError: a setting or something given is wrong, or there are neither problems nor a model.
        """
        given = Given()
        sources = {"problems": problems, "heldout": heldout, "validation": validation}
        changes = {
            "data": {name: given.source(source) for name, source in sources.items()} | {"task": given.name(task)},
            "engine": {"kind": given.name(engine_factory(engine))},
            "reward": given.reward(reward),
            "objective": given.name(objective),
        }
        opened = RunDirectory(directory, config)
        merged = _merged(opened.config, _without_none(changes))
        self._directory = RunDirectory(directory, pin(merged, opened.saved))
        self.config = self._directory.config
        self.config.check_whole("DAPO")
        self.directory = self._directory.path
        self.iteration = 1
        self._begun = False
        self._given = given.objects
        self._callbacks = callbacks

    @cached_property
    def _pipeline(self) -> Pipeline:
        from dapo_fast.pipeline import Pipeline  # late: it loads torch

        return Pipeline(self._directory, self._given, self._callbacks)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Within the block no other process works in the directory; every method holds it for as long as it takes.

        Raises:
            InputError: another process is working there.
        """
        # Of several ranks the first holds it, or what started them does.
        theirs = not is_first_rank() or os.environ.get("DAPO_FAST_LOCKED")
        with nullcontext() if theirs else self._directory.locked():
            yield

    # All of it, or an iteration -------------------------------------------------------------------------------

    def run(self) -> list[dict[str, Any]]:
        """Every iteration, and the report. Returns the rows of the results table, the first of them before training.

        Raises:
            InputError: bad input, or the directory holds results of other settings.
            NonFiniteError: training diverged.
        """
        with self.locked():
            return self._pipeline.run()

    def iterate(self) -> dict[str, Any]:
        """The next iteration, after what comes before the first. Returns its row of the results table.

        A row with ``stopped`` says why there was nothing to train on; the next call is then about the same iteration.

        Raises:
            InputError: as ``run``; or ``iterations`` are done.
        """
        if self.iteration > self.config.iterations:
            raise InputError(f"iterations {self.config.iterations}: all of them are done")
        with self.locked(), self._pipeline.engines.lending():
            if not self._begun:
                self._pipeline.start()
                self._begun = True
            row = self._pipeline.advance(self.iteration)
        self.iteration += not row.get("stopped")
        return row

    # Stages ---------------------------------------------------------------------------------------------------

    def sft(self) -> Path:
        """The supervised start, from ``sft.data`` or the task's gold traces. Returns the model's directory."""
        return self._do("sft", 0)

    def collect(self, iteration: int | None = None) -> dict[str, Any]:
        """A.1 and A.2: samples responses and completions, by the policy so far. Returns counts.

        In iteration 1 the supervised start is made first, where the settings have one.
        """
        if self._number(iteration) == 1 and self._pipeline.layout.has_sft():
            with self.locked():
                self._pipeline.layout.check_settings(until=("collect", 1))
                self._save()
                self._pipeline.perform("sft", 0)
        return self._do("collect", iteration)

    def critic(self, iteration: int | None = None) -> dict[str, Any]:
        """A.3: trains the value model. Returns its metrics, and its quality on problems that it has not seen."""
        return self._do("critic", iteration)

    def advantages(self, iteration: int | None = None) -> dict[str, Any]:
        """B.1: Q, step advantages and the states that are kept. Returns counts."""
        return self._do("advantages", iteration)

    def actor(self, iteration: int | None = None) -> dict[str, Any]:
        """B.2: trains the policy. Returns the last step's metrics.

        Raises:
            InputError: no state is kept (``NoContrastError``), among others.
        """
        return self._do("actor", iteration)

    def evaluate(self, iteration: int | None = None, critic: str | Path | None = None) -> dict[str, Any] | None:
        """Accuracy on the held-out problems after ``iteration``: the newest that is trained, or 0 for before.

        Args:
            critic: Directory of one that also chooses among the ``evaluate.samples`` responses, and in a beam search.

        Returns:
            As ``dapo_fast.evaluate.evaluate``, with a critic also "chosen", as ``dapo_fast.best_of.choose_by_critic``;
            None where no problems are held out.

        Raises:
            InputError: with a critic: it is none, or nothing is held out or sampled.
        """
        if iteration is None:
            iteration = self._pipeline.layout.newest()
            log.info("evaluate: the policy after iteration %d", iteration)
        if critic is None:
            return self._do("evaluate", iteration)
        from dapo_fast.rollout.loading import check_critic

        directory = check_critic("critic", critic, self._pipeline.parts.tokenizer(), trained=True)
        config = self.config.at(iteration)
        if not config.evaluate.samples:
            raise InputError("evaluate.samples 0: there are no sampled responses to choose among")
        if not self._pipeline.parts.heldout():
            raise InputError("data.heldout: not set, so there are no responses to choose among")
        measured = self._do("evaluate", iteration)
        with self.locked():
            return measured | {"chosen": self._pipeline.choose(iteration, directory)}

    def best_of(self, critic: str | Path | None = None, iteration: int | None = None) -> dict[str, Any]:
        """Accuracy of what a critic chooses: among the held-out responses that ``evaluate`` samples, and step by step.

        Args:
            critic: Its directory; None: the newest of this run.
            iteration: As in ``evaluate``.

        Returns:
            As ``dapo_fast.best_of.choose_by_critic``.

        Raises:
            InputError: nothing is held out or sampled (``evaluate.samples``), or there is no critic.
        """
        measured = self.evaluate(iteration, critic or self.critic_model)
        assert measured is not None  # else it would have raised
        return measured["chosen"]

    def report(self) -> Path:
        """One HTML page about the run so far. Returns where it is."""
        from dapo_fast.report import write_report

        if not self._saved():
            self._save()
        return write_report(self.directory)

    # What has come of it --------------------------------------------------------------------------------------

    @property
    def policy(self) -> Path:
        """Hugging Face directory of the newest policy that was kept; before training, of the one to start from."""
        return self._pipeline.layout.policy(self._pipeline.layout.newest())

    @property
    def critic_model(self) -> Path:
        """Hugging Face directory of the newest critic, a token classifier whose one label is the logit of V.

        Raises:
            InputError: none is trained yet.
        """
        return self._newest(["critic"]) / "model"

    @property
    def trees(self) -> Iterator[Tree]:
        """The newest iteration's step trees, one a problem, shard by shard; with advantages where these are there.

        Raises:
            InputError: none are collected yet.
        """
        from dapo_fast.data.store import read_trees

        return read_trees(self._newest(["advantages", "collect"]))

    def _newest(self, stages: Sequence[str]) -> Path:
        for iteration in range(self.config.iterations, 0, -1):
            for stage in stages:
                path = self._directory.stage(iteration, stage)
                if (path / "done.json").exists():
                    return path
        raise InputError(f"{self.directory}: nothing here yet of {stages[-1]}; call it first")

    def _number(self, iteration: int | None) -> int:
        number = self.iteration if iteration is None else iteration
        if not 0 <= number <= self.config.iterations:
            raise InputError(f"iteration {number}: the run has iterations 1 to {self.config.iterations}")
        return number

    def _do(self, stage: str, iteration: int | None) -> Any:
        number = self._number(iteration)
        with self.locked():
            self._pipeline.layout.check_settings(until=(stage, number))
            if stage != "evaluate" or not self._saved():
                self._save()
            return self._pipeline.do(stage, number)

    def _saved(self) -> bool:
        return (self.directory / "config.yaml").exists()

    def _save(self) -> None:
        """What is done from here on is done with these settings; those of a measurement are its own."""
        from dapo_fast.provenance import record

        if is_first_rank():
            self._directory.save_config()
            if not os.environ.get("DAPO_FAST_LOCKED"):  # a rank works for a process that has told of itself
                record(self.directory, self.config)


def _without_none(changes: dict[str, Any]) -> dict[str, Any]:
    kept = {key: _without_none(value) if isinstance(value, dict) else value for key, value in changes.items()}
    return {key: value for key, value in kept.items() if value is not None and value != {}}


def _merged(config: Config, changes: dict[str, Any]) -> Config:
    before = config.model_dump()
    if "reward" in changes:
        before["reward"] = None  # several with weights take the place of others, and do not join them
    try:
        return Config.model_validate(merge(before, changes))
    except ValidationError as error:
        raise InputError(wrong_keys(error)) from error
