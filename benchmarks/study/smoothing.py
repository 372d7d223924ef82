"""Values without a critic: outcomes smoothed over states that are near each other in the policy's hidden space.

A state is where the policy's last hidden state is. Outcomes are averaged with a Gaussian kernel (Nadaraya-Watson) whose
width is, of a few, the one that predicts the outcomes of problems left out best. Both methods are built from their
abstracts, which do not give estimators in full; those of the papers may differ.

- KAE (arXiv 2604.28005) smooths over few traces a prompt and takes a policy gradient; here its values stand where the
  critic's do in DAPO, shrunk towards outcomes as these are.
- BASIS (arXiv 2605.27293) samples one response a prompt and pools over the prompts of a batch, online; here over those
  of an iteration, and its baseline of a prompt is what the others' outcomes say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

import torch
from torch import Tensor

from dapo_fast.data.batches import critic_groups
from dapo_fast.data.pack import Pack
from dapo_fast.data.packing import pack_candidates, pack_critic
from dapo_fast.data.tree import State, Tree
from dapo_fast.errors import InputError
from dapo_fast.evidence import fit_shrinkage
from dapo_fast.models.attention import backbone_inputs

from .peers import Policy, weighted, whole_response

WIDTHS = (0.5, 0.25, 0.125, 0.0625)  # of the kernel, in root mean squared distances between states
_PACK_TOKENS = 16384
_QUERIES = 1024  # compared with all states at once

Key = tuple[int, int, int]  # tree, state, candidate (-1: the state itself)


class Smoother:
    """The mean outcome around a point, from outcomes at known points.

    Attributes:
        left_out: ``(N,)`` what the outcomes of all other problems say at each known point.
    """

    def __init__(self, points: Tensor, right: Tensor, n: Tensor, problems: Tensor) -> None:
        """Take ``(N, H)`` points, and of each the sum of its outcomes, their number and its problem, ``(N,)``."""
        if problems.unique().numel() < 2:
            raise InputError("smoothing: outcomes of a single problem; there is none to leave out")
        self._points, self._share, self._n = points, right / n, n
        distance = (2 * points.var(0, correction=0).sum()).sqrt().clamp(min=1e-6)
        found = []
        for width in (distance * share for share in WIDTHS):
            values = self._smooth(points, width, problems, problems)
            found.append(((n * (self._share - values).square()).sum().item(), width, values))
        _, self._width, self.left_out = min(found, key=lambda one: one[0])

    def __call__(self, points: Tensor) -> Tensor:
        """``(M,)`` the smoothed outcome at each of ``(M, H)`` points."""
        return self._smooth(points, self._width)

    def _smooth(self, points: Tensor, width: Tensor, own: Tensor | None = None, of: Tensor | None = None) -> Tensor:
        """With ``own``, the points' problems, the outcomes ``of`` the same problem are left out."""
        parts = []
        for start in range(0, len(points), _QUERIES):
            chosen = slice(start, start + _QUERIES)
            weights = self._n.log() - torch.cdist(points[chosen], self._points).square() / (2 * width**2)
            if own is not None:
                weights.masked_fill_(own[chosen, None] == of, -torch.inf)
            parts.append(weights.softmax(1) @ self._share)
        return torch.cat(parts)


@torch.no_grad()
def hidden_states(model: torch.nn.Module, packs: Sequence[Pack]) -> dict[Key, Tensor]:
    """``(H,)`` last hidden state wherever ``packs`` read a value."""
    found: dict[Key, Tensor] = {}
    for pack in packs:
        pack = pack.to(model.device)
        states = model.base_model(**backbone_inputs(model, pack)).last_hidden_state[0]
        rows = states.index_select(0, pack.value_rows).float().cpu()
        found |= zip(map(tuple, pack.value_keys.tolist()), rows, strict=True)
    return found


def _smoother(trees: Sequence[Tree], groups: Sequence[tuple[int, ...]], at: dict[Key, Tensor]) -> Smoother:
    """Of the outcomes of the states ``groups``."""
    states = [trees[tree].states[state] for tree, state in groups]
    right, n = (torch.tensor([float(f(s.rewards)) for s in states]) for f in (sum, len))
    points = torch.stack([at[(*group, -1)] for group in groups])
    return Smoother(points, right, n, torch.tensor([tree for tree, _ in groups]))


class SmoothedValues:
    """Fills the values of trees, as ``ValueFiller`` does with a critic.

    Attributes:
        k: How many outcomes a value is worth, fitted on values that left the problem itself out.
    """

    def __init__(self, trees: Sequence[Tree], policy: Policy) -> None:
        self._model = policy.load()
        groups = critic_groups(trees)
        at = hidden_states(self._model, pack_critic(trees, groups, _PACK_TOKENS))
        self._smoother = _smoother(trees, groups, at)
        rewards = [trees[tree].states[state].rewards for tree, state in groups]
        right, squares = [sum(r) for r in rewards], [sum(one**2 for one in r) for r in rewards]
        fitted = fit_shrinkage(self._smoother.left_out.tolist(), right, [len(r) for r in rewards], squares)
        self.k = fitted["k"]

    def __call__(self, trees: Sequence[Tree]) -> None:
        """Set ``value`` of every state, and of every candidate that does not end its response."""
        at = hidden_states(self._model, pack_candidates(trees, _PACK_TOKENS))
        values = self._smoother(torch.stack(list(at.values()))).tolist()
        for (tree, state, candidate), value in zip(at, values, strict=True):
            there = trees[tree].states[state]
            (there if candidate < 0 else there.candidates[candidate]).value = value


def single_rollout_trees(trees: Sequence[Tree], policy: Policy) -> list[Tree]:
    """BASIS: the one response to each prompt as its candidate, with its reward − what the other prompts' say there."""
    if any(len(tree.trunks) != 1 or tree.sampled != 1 for tree in trees):
        raise InputError("single rollouts: need collect.samples 1")
    groups = [(index, 0) for index in range(len(trees))]
    at = hidden_states(policy.load(), pack_critic(trees, groups, _PACK_TOKENS))
    baselines = _smoother(trees, groups, at).left_out.tolist()
    spread = fmean((tree.correct - baseline) ** 2 for tree, baseline in zip(trees, baselines, strict=True)) ** 0.5
    if not spread:
        return []
    found = []
    for tree, baseline in zip(trees, baselines, strict=True):
        (trunk,) = tree.trunks
        candidate = whole_response(trunk.ids, trunk.reward, (trunk.reward - baseline) / spread)
        found.append(replace(tree, states=[State(0, 0, [], [candidate], kept=True)]))
    return weighted(found, "token")
