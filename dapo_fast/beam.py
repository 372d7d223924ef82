"""Step-level beam search: a policy proposes next steps, and a critic's values of the states they lead to choose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import isqrt
from typing import Any

from dapo_fast.config import Config
from dapo_fast.data.problems import Problem
from dapo_fast.data.prompts import prompt_encoder
from dapo_fast.data.tree import Trunk
from dapo_fast.rewards import Reward, verify_many
from dapo_fast.rollout.engine import Engine, Sample, SamplingParams
from dapo_fast.rollout.loading import fitting
from dapo_fast.rollout.steps import Splitter
from dapo_fast.rollout.text import text_of
from dapo_fast.statistics import mean_of_problems
from dapo_fast.step_values import StepValues


@dataclass
class _Search:
    """The search for a response to one problem."""

    problem: Problem
    prompt: list[int]
    read: list[int]  # the prompt as the critic reads it
    beams: list[Trunk] = field(default_factory=lambda: [Trunk([], [], 0.0, False)])
    ended: list[tuple[float, Trunk]] = field(default_factory=list)  # with their values

    def keep(self, proposals: Sequence[tuple[float, Trunk]], width: int) -> None:
        """The best of ``proposals``: an ended response takes the place of a beam for good."""
        best = sorted(proposals, key=lambda one: -one[0])[: width - len(self.ended)]
        self.ended += [one for one in best if one[1].finished]
        self.beams = [trunk for _, trunk in best if not trunk.finished]


class BeamSearch:
    """Searches with one policy and one critic, as many next steps at a time as there would be samples."""

    def __init__(self, engine: Engine, critic: StepValues, config: Config) -> None:
        """Take ``evaluate.samples`` next steps at a time for each problem, of √samples beams (rounded down).

        Args:
            engine: The policy; its tokens are the critic's.
            config: How to ask, to sample and to cut steps.
        """
        self.width = isqrt(config.evaluate.samples)
        self._proposed = config.evaluate.samples // self.width
        self._engine, self._critic, self._config = engine, critic, config
        self._splitter = Splitter(engine.tokenizer, config.collect.splitter)

    def accuracy(self, problems: Sequence[Problem], verify: Reward | None = None) -> dict[str, Any]:
        """Mean reward of the responses that are found; none found is wrong, and so is a prompt that fills the context.

        Args:
            verify: None: the verifier of each problem's kind.

        Returns:
            ``accuracy`` with its 95 % interval ``low`` and ``high``, ``n`` problems, and ``beams``.
        """
        size, encode = self._config.evaluate.batch_problems, prompt_encoder(self._engine.tokenizer, self._config.data)
        prompts = fitting({problem.id: encode(problem) for problem in problems}, self._engine.context)
        found: list[tuple[Problem, str]] = []
        for start in range(0, len(problems), size):
            batch = [problem for problem in problems[start : start + size] if problem.id in prompts]
            texts = self.responses(batch, [prompts[problem.id] for problem in batch])
            found += [(problem, text) for problem, text in zip(batch, texts, strict=True) if text is not None]
        rewards = verify_many(found, verify)
        return mean_of_problems([*rewards, *[0.0] * (len(problems) - len(rewards))]) | {"beams": self.width}

    def responses(self, problems: Sequence[Problem], prompts: Sequence[Sequence[int]]) -> list[str | None]:
        """The response to each problem that the critic values most of those that ended; None where none did."""
        searches = [
            _Search(problem, list(prompt), self._critic.prompt(problem))
            for problem, prompt in zip(problems, prompts, strict=True)
        ]
        depth = 0
        while any(search.beams for search in searches):
            self._extend([search for search in searches if search.beams], depth)
            depth += 1
        best = [max(search.ended, key=lambda one: one[0])[1] if search.ended else None for search in searches]
        return [None if trunk is None else text_of(self._engine.tokenizer, trunk.ids) for trunk in best]

    def _extend(self, searches: Sequence[_Search], depth: int) -> None:
        """One more step of every beam that has room for one."""
        open_ = [(search, beam, self._room(search, beam)) for search in searches for beam in search.beams]
        open_ = [one for one in open_ if one[2] > 0]
        settings = self._config.evaluate
        params = SamplingParams(
            n=self._proposed,
            max_tokens=tuple(room for _, _, room in open_),
            temperature=settings.temperature,
            top_p=settings.top_p,
            seed=self._config.seed + depth,
            stop=self._config.collect.splitter,
        )
        prompts = [search.prompt + beam.ids for search, beam, _ in open_]
        sampled = self._engine.generate(prompts, params) if open_ else []
        proposals: dict[str, dict[tuple[int, ...], Trunk]] = {search.problem.id: {} for search in searches}
        for (search, beam, _), samples in zip(open_, sampled, strict=True):
            found = [self._extended(beam, sample) for sample in samples if sample.ids]
            proposals[search.problem.id].update((tuple(trunk.ids), trunk) for trunk in found)
        trunks = [list(proposals[search.problem.id].values()) for search in searches]
        asked = [(search.problem, found) for search, found in zip(searches, trunks, strict=True)]
        values = self._critic.last(asked, [search.read for search in searches])
        for search, found, worth in zip(searches, trunks, values, strict=True):
            search.keep(list(zip(worth, found, strict=True)), self.width)

    def _room(self, search: _Search, beam: Trunk) -> int:
        return min(self._config.evaluate.max_tokens, self._engine.context - len(search.prompt)) - len(beam.ids)

    def _extended(self, beam: Trunk, sample: Sample) -> Trunk:
        step = sample.ids[: self._splitter.first(sample.ids)]
        ids = beam.ids + step
        return replace(
            beam,
            ids=ids,
            step_ends=[*beam.step_ends, len(ids)],
            finished=sample.finished and len(step) == len(sample.ids),
        )
