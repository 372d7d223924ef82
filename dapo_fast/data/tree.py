"""The step tree: the one structure that collection writes, the critic reads and the actor trains on.

The prompt is the root. Its kept responses are trunks; at each step boundary of a trunk hangs a state, and on each
state hang its unique candidate steps. A state is a token prefix: trunks that share a prefix share its state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(slots=True)
class Trunk:
    """A kept response, cut into steps.

    Attributes:
        ids: Response token ids, the end token included when the response finished.
        step_ends: Cumulative token offsets, increasing; step t is ``ids[step_ends[t-1]:step_ends[t]]`` and the last
            entry is ``len(ids)``.
        reward: Of the response, from 0 (wrong) to 1 (right); 0 when truncated.
        finished: Whether an end token closed the response.
    """

    ids: list[int]
    step_ends: list[int]
    reward: float
    finished: bool

    @property
    def right(self) -> bool:
        """Whether it is nearer to right than to wrong: a reward may be a fraction."""
        return self.reward > 0.5


@dataclass(slots=True)
class Candidate:
    """One unique next step of a state: an action of the paper.

    It begins completions that were sampled from the state, or it is the step that a trunk takes there.

    Attributes:
        ids: Token ids of the step, its line break or end token included.
        count: How many of the steps sampled at the state are this one; 0 for a step that only a trunk takes.
        terminal: The step ends the response, by an end token or by truncation inside it.
        reward: Reward of a terminal step; 0 for a truncated one and for every other.
        right: How many of the ``n`` sampled continuations through the step ended right (``dapo_fast.evidence``): the
            sum of their rewards, which may be fractions.
        n: Sampled continuations that are known to pass through the step.
        value: The critic's V of the state that the step leads to; None for a terminal step.
        q: Q(s, a): ``reward`` if terminal, else what the critic and the outcomes say together.
        advantage: Q minus the mean of Q over the steps sampled at the state (duplicates counted).
        ref_logp: log π_ref(a|s), nats, summed over the step's tokens.
        logp_after: The same under the trained policy.
    """

    ids: list[int]
    count: int
    terminal: bool
    reward: float
    right: float = 0
    n: int = 0
    value: float | None = None
    q: float | None = None
    advantage: float | None = None
    ref_logp: float | None = None
    logp_after: float | None = None


@dataclass(slots=True)
class State:
    """A prefix at a step boundary, with the Monte Carlo estimate of its success rate.

    Attributes:
        trunk: Index of the first trunk that passes through this state.
        step: Number of steps before the state (0: the prompt alone).
        rewards: Reward of each completion sampled from here; where none is (``collect.completions`` 0), of
            each sampled response that passes through.
        candidates: Unique next steps: those of completions, and those that trunks take.
        value: The critic's V(s).
        kept: Whether the advantage-gap filter kept the state; None before advantages are computed.
    """

    trunk: int
    step: int
    rewards: list[float]
    candidates: list[Candidate]
    value: float | None = None
    kept: bool | None = None

    @property
    def mc(self) -> float:
        """MC(s), the mean reward of the completions, in [0, 1]."""
        return sum(self.rewards) / len(self.rewards)


@dataclass(slots=True)
class Tree:
    """Everything collected for one problem.

    Attributes:
        problem_id: Identifier of the problem.
        prompt: The problem's text, for people.
        answer: The expected answer, for people.
        prompt_ids: Token ids of the templated prompt.
        trunks: Kept responses; last, where none was right and ``collect.gold_starts`` is on, the gold solution.
        states: Unique states of the trunks, ordered by trunk, then step.
        sampled: Responses sampled in A.1.
        correct: How many of them were correct: the sum of their rewards.
    """

    problem_id: str
    prompt: str
    answer: str
    prompt_ids: list[int]
    trunks: list[Trunk]
    states: list[State]
    sampled: int
    correct: float

    def response_length(self, state: State) -> int:
        """Tokens of the response up to ``state``, without the prompt."""
        return self.trunks[state.trunk].step_ends[state.step - 1] if state.step else 0

    def response_prefix(self, state: State) -> list[int]:
        """Token ids of the response up to ``state``, without the prompt."""
        length = self.response_length(state)  # 0 for the prompt, a state even where no response was kept
        return self.trunks[state.trunk].ids[:length] if length else []

    def steps_from(self, state: State) -> Iterator[tuple[Trunk, int]]:
        """The trunks that pass through ``state``, each with the number of its tokens after the step that it takes."""
        prefix = self.response_prefix(state)
        for trunk in self.trunks:
            starts = [0, *trunk.step_ends[:-1]]
            if len(prefix) in starts and trunk.ids[: len(prefix)] == prefix:
                yield trunk, trunk.step_ends[starts.index(len(prefix))]

    def prefix_ids(self, state: State) -> list[int]:
        """Token ids of ``state``: the prompt and the response up to it."""
        return self.prompt_ids + self.response_prefix(state)


def is_heldout(problem_id: str, fraction: float) -> bool:
    """Whether a problem is held out of the critic's training: a function of its id alone."""
    return int.from_bytes(hashlib.sha256(problem_id.encode()).digest()[:8], "big") < fraction * 2**64
