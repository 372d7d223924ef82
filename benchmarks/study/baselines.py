"""Methods that learn from whole responses of the collected trees: what DAPO is compared with."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import product

from dapo_kernels import DPO
from torch import Tensor

from dapo_fast.data.pack import Pack
from dapo_fast.data.tree import Candidate, State, Tree
from dapo_fast.errors import InputError

Sequences = list[tuple[list[int], list[int]]]


def correct_responses(trees: Sequence[Tree], batch: int, seed: int) -> Callable[[int], Sequences]:
    """Rejection sampling: the distinct correct responses, shuffled epoch by epoch, as a stream of batches."""
    found = [(t.prompt_ids, ids) for t in trees for ids in sorted({tuple(k.ids) for k in t.trunks if k.reward})]
    sequences = [(prompt, list(ids)) for prompt, ids in found]
    if not sequences:
        raise InputError("rejection sampling: no correct response in these trees")

    def stream(step: int) -> Sequences:
        chosen: Sequences = []
        for position in range(step * batch, (step + 1) * batch):
            epoch, place = divmod(position, len(sequences))
            chosen.append(sequences[_order(len(sequences), seed, epoch)[place]])
        return chosen

    return stream


_orders: dict[tuple[int, int, int], list[int]] = {}


def _order(count: int, seed: int, epoch: int) -> list[int]:
    key = (count, seed, epoch)
    if key not in _orders:
        _orders[key] = random.Random(f"{seed}/{epoch}").sample(range(count), count)
    return _orders[key]


def preference_trees(trees: Sequence[Tree]) -> list[Tree]:
    """Each problem's pairs of a correct and a wrong response: a state at the prompt with two candidates, chosen first.

    The advantages ±½ are only there to say which is which; ``dpo`` does not read them.
    """
    found = []
    for tree in trees:
        right = sorted({tuple(k.ids) for k in tree.trunks if k.reward})
        wrong = sorted({tuple(k.ids) for k in tree.trunks if not k.reward and k.finished})
        states = [
            State(0, 0, [], [_whole(chosen, 1.0), _whole(rejected, 0.0)], kept=True)
            for chosen, rejected in product(right, wrong)
        ]
        if states:
            found.append(Tree(tree.problem_id, tree.prompt, tree.answer, tree.prompt_ids, tree.trunks, states, 0, 0))
    if not found:
        raise InputError("preference pairs: no problem with a correct and a wrong response in these trees")
    return found


def _whole(ids: Sequence[int], reward: float) -> Candidate:
    return Candidate(list(ids), 1, True, reward, q=reward, advantage=reward - 0.5)


def dpo(beta: float) -> Callable[[Pack, float | Tensor], DPO]:
    """The objective of a pack of pairs, averaged over the batch's pairs (arXiv 2305.18290)."""
    return lambda pack, steps: DPO(pack.ref_logps, beta, steps / 2)
