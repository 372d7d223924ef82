"""Methods that learn from whole responses of the collected trees, and what of all methods the actor stage trains on."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

from dapo_kernels import DPO
from torch import Tensor

from dapo_fast.config import ActorSettings
from dapo_fast.data.pack import Pack
from dapo_fast.data.tree import State, Tree
from dapo_fast.errors import InputError
from dapo_fast.models.readpath import PackObjective

from .peers import HIGH, HIGHER, Clipped, Policy, best_trees, group_trees, imitation, step_trees, whole_response
from .smoothing import single_rollout_trees

Sequences = list[tuple[list[int], list[int]]]
RESPONSES_A_BATCH = 64  # of methods that learn from whole responses; 64 pairs of DPO
UPDATES = 120  # an iteration, of these methods; DAPO's single epoch is about as many


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
            State(0, 0, [], [whole_response(chosen, 1.0, 0.5), whole_response(rejected, 0.0, -0.5)], kept=True)
            for chosen, rejected in product(right, wrong)
        ]
        if states:
            found.append(Tree(tree.problem_id, tree.prompt, tree.answer, tree.prompt_ids, tree.trunks, states, 0, 0))
    return found


def dpo(beta: float | str) -> PackObjective:
    """The objective of a pack of pairs, averaged over the batch's pairs (arXiv 2305.18290).

    Raises:
        InputError: β by rule, which is one for advantages.
    """
    if isinstance(beta, str):
        raise InputError(f"actor.beta {beta}: a rule for advantages; DPO needs a number")

    def objective(pack: Pack, steps: float | Tensor) -> DPO:
        return DPO(pack.ref_logps, beta, steps / 2)

    return objective


@dataclass(frozen=True)
class Baseline:
    """What the actor stage of a method is, where it is not DAPO's.

    Attributes:
        reads: The stage whose trees it starts from.
        trees: What it trains on, made from these; none: nothing to learn from.
        objective: The loss, given the actor's settings and the policy that sampled.
        batch_pairs: Candidates an update; None: ``actor.batch_pairs``, and an epoch of these instead of ``UPDATES``.
    """

    reads: Literal["collect", "advantages"]
    trees: Callable[[Sequence[Tree], Policy], list[Tree]]
    objective: Callable[[ActorSettings, Policy], PackObjective]
    batch_pairs: int | None = None

    def settings(self, actor: ActorSettings) -> ActorSettings:
        """``actor`` with what this method fixes; β is only measured by, but for DPO's."""
        update: dict[str, object] = {"log_partition": False}
        if self.batch_pairs is not None:
            update |= {"batch_pairs": self.batch_pairs, "steps": actor.steps or UPDATES}
        if isinstance(actor.beta, str):
            update["beta"] = 1.0
        return actor.model_copy(update=update)


def _clipped(high: float) -> Callable[[ActorSettings, Policy], PackObjective]:
    return lambda actor, policy: Clipped(policy, high)


BASELINES = {
    "preference pairs": Baseline(
        "collect",
        lambda trees, policy: preference_trees(trees),
        lambda actor, policy: dpo(actor.beta),
        2 * RESPONSES_A_BATCH,
    ),
    "GRPO": Baseline(
        "collect", lambda trees, policy: group_trees(trees, "response"), _clipped(HIGH), RESPONSES_A_BATCH
    ),
    "clip-higher": Baseline(
        "collect", lambda trees, policy: group_trees(trees, "token"), _clipped(HIGHER), RESPONSES_A_BATCH
    ),
    "BASIS": Baseline("collect", single_rollout_trees, _clipped(HIGH), RESPONSES_A_BATCH),
    "VinePPO": Baseline("advantages", lambda trees, policy: step_trees(trees), _clipped(HIGH)),
    "best candidates": Baseline("advantages", lambda trees, policy: best_trees(trees), lambda actor, policy: imitation),
}
