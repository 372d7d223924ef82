"""Losses that DAPO's is compared with on stored trees: clipped policy gradients, and imitation of the best candidate.

Each is trees for the actor to read and an objective over their packs. Where it differs from its paper:

- GRPO (arXiv 2402.03300): no KL term; one reference, the policy that sampled, for all updates of an iteration.
- clip-higher, ByteDance's DAPO (arXiv 2503.14476): groups of one outcome are left out and not replaced; no penalty of
  length; the mean is over tokens of the whole iteration, not of the batch.
- VinePPO (arXiv 2410.01679): advantages of two responses a problem from two completions a state; no KL term.
- The best candidate (PA-RL, arXiv 2412.06685): candidates are sampled and not improved by gradients of Q; Q is of the
  policy's own outcomes, not learnt off-policy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Literal

import torch
from dapo_kernels import ClippedPolicyGradient, CrossEntropy, hidden_states_and_weight, linear_token_logprobs
from torch import Tensor

from dapo_fast.config import ModelSettings
from dapo_fast.data.pack import Pack
from dapo_fast.data.tree import Candidate, State, Tree
from dapo_fast.errors import InputError
from dapo_fast.models.attention import backbone_inputs
from dapo_fast.models.loading import load_causal_lm, resolve_device

LOW, HIGH, HIGHER = 0.2, 0.2, 0.28  # how far a token's ratio may go down, up, and up with clip-higher
_ROUNDING = 1e-6  # of fp32 rewards: equal fractions differ from their mean by less


@dataclass(frozen=True)
class Policy:
    """The policy that sampled, and how its model is loaded."""

    directory: Path
    settings: ModelSettings

    def load(self) -> torch.nn.Module:
        """Its model, in fp32."""
        return load_causal_lm(
            self.directory, resolve_device(self.settings.device), torch.float32, self.settings.attention
        )


# What the actor reads --------------------------------------------------------------------------------------------


def group_trees(trees: Sequence[Tree], mean: Literal["response", "token"]) -> list[Tree]:
    """Each problem's responses as candidates at the prompt, every one as often as it was sampled.

    ``advantage`` is (reward − the group's mean) / the group's standard deviation, divided by the length that the loss
    averages over: ``"response"``: the response's own, so that the loss is a mean over responses of means over their
    tokens (GRPO); ``"token"``: the mean length, so that it is a mean over tokens (clip-higher). Groups of one outcome
    are left out: nothing is learnt from them.

    Raises:
        InputError: completions were sampled, so that not every response is a trunk.
    """
    found = []
    for tree in trees:
        average = tree.correct / tree.sampled
        responses = [k for k, times in zip(tree.trunks, _times_sampled(tree), strict=True) for _ in range(times)]
        spread = math.sqrt(fmean((k.reward - average) ** 2 for k in responses))
        if spread < _ROUNDING:
            continue
        candidates = [whole_response(k.ids, k.reward, (k.reward - average) / spread) for k in responses]
        found.append(replace(tree, states=[State(0, 0, [], candidates, kept=True)]))
    return weighted(found, mean)


def _times_sampled(tree: Tree) -> list[int]:
    """How often the response of each trunk was sampled: the outcomes that pass through its last step."""
    ends = {(*tree.response_prefix(s), *c.ids): c.n for s in tree.states for c in s.candidates if c.terminal}
    times = [ends.get(tuple(trunk.ids), 0) for trunk in tree.trunks]
    if sum(times) != tree.sampled:
        raise InputError("group advantages: need collect.completions 0 and collect.every_state 1")
    return times


def whole_response(ids: Sequence[int], reward: float, advantage: float) -> Candidate:
    """A response as one candidate of the prompt."""
    return Candidate(list(ids), 1, True, reward, q=reward, advantage=advantage)


def step_trees(trees: Sequence[Tree]) -> list[Tree]:
    """Trees with advantages of trunks' steps, every step as often as it was taken; weighted for a mean over tokens."""
    found = []
    for tree in trees:
        kept = [replace(s, candidates=[replace(c) for c in s.candidates for _ in range(c.count)])
                for s in tree.states if s.kept]  # fmt: skip
        if kept:
            found.append(replace(tree, states=kept))
    return weighted(found, "token")


def weighted(trees: list[Tree], mean: Literal["response", "token"]) -> list[Tree]:
    """``trees`` with each advantage over the candidate's length, or over the mean length of all."""
    candidates = [c for tree in trees for state in tree.states for c in state.candidates]
    average = fmean(len(c.ids) for c in candidates) if candidates else 1.0
    for candidate in candidates:
        candidate.advantage /= len(candidate.ids) if mean == "response" else average
    return trees


def best_trees(trees: Sequence[Tree]) -> list[Tree]:
    """Trees in which every state has one candidate: that of the highest Q."""
    found = []
    for tree in trees:
        states = [replace(s, candidates=[max(s.candidates, key=lambda c: c.q)], kept=True)
                  for s in tree.states if s.candidates]  # fmt: skip
        if states:
            found.append(replace(tree, states=states))
    return found


# What it is trained with -----------------------------------------------------------------------------------------


class Clipped:
    """−Σ min(r·A, clip(r)·A) / steps over tokens, r = π/π_old of a token, A its candidate's advantage.

    π_old is the policy that sampled; it is read once more for each pack.
    """

    def __init__(self, policy: Policy, high: float) -> None:
        self._old = policy.load()
        self._high = high

    def __call__(self, pack: Pack, steps: float | Tensor) -> Callable[[Tensor, Tensor, int, int], Tensor]:
        old = token_logps(self._old, pack)
        advantages = pack.advantages.repeat_interleave(pack.cu_steps.diff().to(pack.advantages.device))
        objective = ClippedPolicyGradient(advantages, old, LOW, self._high, steps)
        offsets = pack.cu_steps.tolist()
        return lambda step_logps, logps, start, stop: objective(step_logps, logps, offsets[start], offsets[stop])


@torch.no_grad()
def token_logps(model: torch.nn.Module, pack: Pack) -> Tensor:
    """(N,) fp32 log-probability of every scored token of ``pack``, nats."""
    head = hidden_states_and_weight(model, **backbone_inputs(model, pack))
    return linear_token_logprobs(head.hidden[0], head.weight, pack.targets, rows=pack.hidden_rows, **head.options)


def imitation(pack: Pack, steps: float | Tensor) -> CrossEntropy:
    """−Σ log π(a|s) / steps."""
    return CrossEntropy(steps)
