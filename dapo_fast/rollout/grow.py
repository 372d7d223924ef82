"""From sampled responses and completions to a tree: which responses are trunks, which states and which candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from dapo_fast.data.tree import Candidate, State, Tree, Trunk
from dapo_fast.evidence import Continuation, Outcomes
from dapo_fast.rollout.steps import Splitter


@dataclass
class Sampled:
    """What was sampled from one state.

    Attributes:
        budget: Most new tokens there.
        ids: Completions, or with ``collect.completions`` 0 what is left of each response that passes through.
        finished: Whether an end token closed each.
        rewards: Reward of each.
        first_steps: Candidate steps sampled alone: (ids, whether it ends the response, its reward then).
    """

    budget: int
    ids: list[list[int]] = field(default_factory=list)
    finished: list[bool] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    first_steps: list[tuple[list[int], bool, float]] = field(default_factory=list)

    def add(self, ids: list[int], finished: bool, reward: float) -> None:
        """One more completion."""
        self.ids.append(ids)
        self.finished.append(finished)
        self.rewards.append(reward)

    @property
    def decided(self) -> bool:
        """Whether all verdicts agree that it is right, or wrong: of a fraction ``decision_point`` says nothing."""
        return set(self.rewards) in ({0.0}, {1.0})


def choose_trunks(responses: Sequence[tuple[int, ...]], rewards: Sequence[float], kept: int) -> list[int]:
    """Indices of at most ``kept`` distinct responses, right and wrong as balanced as possible, earliest first.

    Right is what has more than the middle of the lowest and the highest reward.

    Where one side is short the other fills up; where both are, fewer are kept, since a response that repeats another
    has no states of its own.
    """
    distinct = list({response: index for index, response in reversed(list(enumerate(responses)))}.values())
    middle = (min(rewards, default=0.0) + max(rewards, default=0.0)) / 2
    right = sorted(index for index in distinct if rewards[index] > middle)
    wrong = sorted(index for index in distinct if rewards[index] <= middle)
    half = min(len(right), kept // 2)
    chosen_wrong = wrong[: kept - half]
    return sorted(right[: kept - len(chosen_wrong)] + chosen_wrong)


def states_of(trunks: Sequence[Trunk], every: int = 1) -> list[State]:
    """The states of ``trunks``: the prompt and each ``every``-th step boundary, but not the end; each prefix once."""
    seen: set[tuple[int, ...]] = set()
    states = []
    for index, trunk in enumerate(trunks):
        for step, end in enumerate([0, *trunk.step_ends[:-1]]):
            prefix = tuple(trunk.ids[:end])
            if step % every or prefix in seen:
                continue
            seen.add(prefix)
            states.append(State(index, step, [], []))
    return states


def candidates_of(sampled: Sampled, splitter: Splitter) -> list[Candidate]:
    """The unique first steps of what was sampled from a state, in order of appearance.

    A completion that is a single step ends the response: with its verified reward if it finished, with 0 if
    ``max_tokens`` cut it.
    """
    found: dict[tuple[int, ...], Candidate] = {}
    of_ids: dict[tuple[int, ...], tuple[int, ...]] = {}
    steps: list[tuple[tuple[int, ...], bool, float]] = []
    for ids, reward in zip(sampled.ids, sampled.rewards, strict=True):
        whole = tuple(ids)
        if whole not in of_ids:
            of_ids[whole] = whole[: splitter.first(ids)]
        steps.append((of_ids[whole], len(of_ids[whole]) == len(ids), reward))
    steps += [(tuple(ids), terminal, reward) for ids, terminal, reward in sampled.first_steps]
    for step, terminal, reward in steps:
        if step in found:
            found[step].count += 1
        else:
            found[step] = Candidate(list(step), 1, terminal, reward if terminal else 0.0)
    return list(found.values())


def add_trunk_steps(tree: Tree) -> None:
    """Make the step that each trunk takes a candidate of every state that the trunk passes.

    It costs nothing and has the most evidence there is: every completion of the state that it leads to. It does not
    count in the state's mean, since trunks are chosen by their outcome.
    """
    for state in tree.states:
        begins = tree.response_length(state)
        there = {tuple(candidate.ids) for candidate in state.candidates}
        for trunk, end in tree.steps_from(state):
            step = trunk.ids[begins:end]
            if tuple(step) not in there:
                there.add(tuple(step))
                terminal = end == len(trunk.ids)
                state.candidates.append(Candidate(step, 0, terminal, trunk.reward if terminal else 0.0))


def add_evidence(tree: Tree, continuations: Sequence[Continuation]) -> None:
    """Fill ``right`` and ``n`` of every candidate: a pure function of what was sampled for the problem."""
    outcomes = Outcomes(continuations)
    for state in tree.states:
        prefix = tree.response_prefix(state)
        for candidate in state.candidates:
            candidate.right, candidate.n = outcomes.through(prefix + candidate.ids)


def decision_point(completions: int, error: float) -> int:
    """After how many agreeing verdicts a state is decided, so that sampling stops there.

    The smallest k for which, when the first k of m verdicts agree, the expected squared difference between MC over
    these k (0 or 1) and MC over all m is at most ``error``, the state's success rate being uniform a priori: with
    r = m - k verdicts left, of which X disagree, X is beta-binomial with parameters (r, 1, k + 1), and the expected
    squared difference is E[X²]/m² = [r / (k + 2) + 2 r (r - 1) / ((k + 2)(k + 3))] / m². Whatever the prior, a state of
    success rate p is taken for all wrong with probability (1 - p)^k, and for all right with p^k.
    """
    m = completions
    for k in range(1, m):
        r = m - k
        if (r / (k + 2) + 2 * r * (r - 1) / ((k + 2) * (k + 3))) / m**2 <= error:
            return k
    return m
