"""A trained critic as what others use a process reward model for: the value of every step of a given response."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dapo_fast.config import Config, ModelSettings
from dapo_fast.data.dealing import Ranks
from dapo_fast.data.pack import pad_lengths
from dapo_fast.data.packing import pack_critic
from dapo_fast.data.problems import Problem
from dapo_fast.data.prompts import format_prompt
from dapo_fast.data.tree import State, Tree, Trunk
from dapo_fast.models.loading import load_value_model, resolve_device
from dapo_fast.models.padded import reads_padded
from dapo_fast.models.readpath import ValueReader
from dapo_fast.rollout.loading import load_tokenizer
from dapo_fast.rollout.steps import Splitter
from dapo_fast.rollout.text import text_of
from dapo_fast.snapshots import model_directory

_TOGETHER = 64  # problems whose responses are in memory as tokens


@dataclass(frozen=True)
class ValuedStep:
    """A step of a response.

    Attributes:
        text: Without special tokens.
        before: The critic's V of the state that the step was taken in: the chance that the response ends right.
        after: V of the state that the step led to; None where it ended the response, whose worth a reward says.
    """

    text: str
    before: float
    after: float | None


class StepValues:
    """Reads the values of steps with a critic."""

    def __init__(
        self,
        critic: str | Path,
        template: str = "chat",
        system_prompt: str | None = None,
        splitter: str = "line",
        model: ModelSettings | None = None,
        pack_tokens: int = 16384,
    ) -> None:
        """Load a critic.

        Args:
            critic: What training wrote (``DAPO.critic_model``), with the policy's tokenizer: a directory or on the hub.
            template: Puts the question as the critic knows it (``data.template`` of its run).
            system_prompt: Of its run too (``data.system_prompt``).
            splitter: Cuts responses as in its run (``collect.splitter``).
            model: Device, dtype and attention; None: the fastest that there is.
            pack_tokens: Most tokens of one forward pass.

        Raises:
            InputError: no critic there, or no such splitter.
        """
        model, critic = model or ModelSettings(), model_directory("critic", critic)
        self._device = resolve_device(model.device)
        self._reader = ValueReader(load_value_model(critic, self._device, model.dtype, model.attention))
        self._tokenizer = load_tokenizer(critic)
        self._splitter = Splitter(self._tokenizer, splitter)
        self._template, self._system = template, system_prompt
        self._pack_tokens = pack_tokens

    @classmethod
    def of(cls, critic: str | Path, config: Config) -> StepValues:
        """Load a critic as a run with the settings ``config`` reads it; errors as in ``__init__``."""
        data = config.data
        return cls(critic, data.template, data.system_prompt, config.collect.splitter, config.model)

    def __call__(self, problem: Problem | str, response: str, finished: bool = True) -> list[ValuedStep]:
        """The steps of ``response`` and what each was worth.

        Args:
            problem: A text is a maths question, as far as the template makes a difference.
            finished: The response ends here; else its last state has a value too.

        Raises:
            InputError: a template that cannot be filled, or an empty prompt.
        """
        tree = self._tree(problem, [self._trunk(response, finished)])
        values = self.of_trees([tree])[0][0]
        trunk = tree.trunks[0]
        starts = [0, *trunk.step_ends]
        after = [*values[1:], None] if finished else values[1:]
        return [
            ValuedStep(text_of(self._tokenizer, trunk.ids[start:end]), before, then)
            for start, end, before, then in zip(starts, trunk.step_ends, values, after)
        ]

    def scores(self, responses: Sequence[tuple[Problem, Sequence[str]]]) -> list[list[float]]:
        """What finished responses are worth to the critic: V of the last state, in which the last step was taken.

        Args:
            responses: Problems, each with any number of responses.
        """
        found: list[list[float]] = []
        for start in range(0, len(responses), _TOGETHER):
            part = responses[start : start + _TOGETHER]
            found += self.last([(problem, [self._trunk(text, True) for text in given]) for problem, given in part])
        return found

    def prompt(self, problem: Problem) -> list[int]:
        """Token ids of ``problem`` as the critic reads it; errors as in ``format_prompt``."""
        return format_prompt(problem, self._tokenizer, self._template, self._system)

    def last(
        self, trunks: Sequence[tuple[Problem, Sequence[Trunk]]], prompts: Sequence[Sequence[int]] | None = None
    ) -> list[list[float]]:
        """V of the last state of each trunk: where it goes on, or in which the step was taken that ended it.

        Args:
            trunks: Problems, each with any number of responses, whole or not, in this critic's tokens.
            prompts: What ``prompt`` gave for each, where it was asked already.
        """
        known = [None] * len(trunks) if prompts is None else prompts
        trees = [self._tree(*asked, prompt, last=True) for asked, prompt in zip(trunks, known, strict=True)]
        return [[values[-1] for values in of_tree] for of_tree in self.of_trees(trees)]

    def of_trees(self, trees: Sequence[Tree]) -> list[list[list[float]]]:
        """V of every state of ``trees``: for each tree, for each trunk, from the prompt on."""
        groups = [(index, state) for index, tree in enumerate(trees) for state in range(len(tree.states))]
        found: list[list[list[float]]] = [[[] for _ in tree.trunks] for tree in trees]
        read: dict[tuple[int, int], float] = {}
        lengths = pad_lengths(self._pack_tokens, self._device)
        ranks = Ranks(padded=reads_padded(self._reader.model.config))
        for pack in pack_critic(trees, groups, self._pack_tokens, lengths, ranks=ranks):
            values = self._reader.values(pack.to(self._device)).tolist()
            keys = ((tree, state) for tree, state, _ in pack.value_keys.tolist())
            read |= dict(zip(keys, values, strict=True))
        for tree, state in groups:
            found[tree][trees[tree].states[state].trunk].append(read[tree, state])
        return found

    def _tree(
        self,
        problem: Problem | str,
        trunks: Sequence[Trunk],
        prompt: Sequence[int] | None = None,
        last: bool = False,
    ) -> Tree:
        """``trunks`` with their states, or with the ``last`` of each alone."""
        if isinstance(problem, str):
            problem = Problem("", problem)
        # The end of a response is no state: nothing is sampled from there, so the critic has not learnt it.
        counts = [max(1, len(trunk.step_ends) + (not trunk.finished)) for trunk in trunks]
        states = [
            State(index, step, [], [])
            for index, count in enumerate(counts)
            for step in range(count - 1 if last else 0, count)
        ]
        ids = self.prompt(problem) if prompt is None else list(prompt)
        return Tree(problem.id, problem.prompt, problem.answer or "", ids, list(trunks), states, len(trunks), 0)

    def _trunk(self, response: str, finished: bool) -> Trunk:
        text = response.encode("utf-8", "replace").decode()  # no tokenizer takes a lone surrogate
        ids = list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        if finished and self._tokenizer.eos_token_id is not None:
            ids.append(self._tokenizer.eos_token_id)
        return Trunk(ids, self._splitter.split(ids), 0, finished)
