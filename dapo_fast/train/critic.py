"""A.3, the critic: a value model trained on (state, MC), measured on problems it has not seen, and read for Q."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dapo_fast.config import AdvantageSettings, CriticSettings, ModelSettings, ParallelSettings
from dapo_fast.data.batches import Group, critic_batches, critic_groups
from dapo_fast.data.mapped import Chosen
from dapo_fast.data.pack import Pack
from dapo_fast.data.packing import pack_candidates, pack_critic
from dapo_fast.data.tree import Tree, is_heldout
from dapo_fast.errors import InputError
from dapo_fast.evidence import ASSUMED, fit_shrinkage
from dapo_fast.models.readpath import ValueReader
from dapo_fast.rundir import write_json
from dapo_fast.train.calibration import measure
from dapo_fast.train.dealer import Dealer, Epochs, read_values
from dapo_fast.train.loop import Batch, train
from dapo_fast.train.memory import longest_pack
from dapo_fast.train.parallel import World, open_world
from dapo_fast.train.place import Place
from dapo_fast.train.readers import saved_value_reader, value_reader
from dapo_fast.train.stage import finish, finished
from dapo_fast.train.trees import open_trees

log = logging.getLogger("dapo_fast.train")


class CriticTask:
    """Soft-label cross-entropy (or squared error) between V(s) and MC(s), averaged over the batch's outcomes.

    A state weighs as many as it has: where all have as many completions, as in the paper, that is the mean over states.
    """

    name = "critic"

    def __init__(
        self, reader: ValueReader, trees: Sequence[Tree], settings: CriticSettings, dealer: Dealer, seed: int
    ) -> None:
        self._reader = reader
        self._trees = trees
        self._objective = settings.loss
        self._dealer = dealer
        self._batches: Epochs[list[Group]] = Epochs(
            lambda epoch: critic_batches(trees, settings.batch_states, seed, epoch)
        )
        self.steps = self._batches.steps(settings)

    def batch(self, step: int) -> Batch:
        """The states of ``step``."""
        packs = self._dealer.packs(pack_critic, self._trees, self._batches[step])
        return self._dealer(packs, int(sum(pack.value_weights.sum().item() for pack in packs)))

    def items(self, pack: Pack) -> int:
        """States."""
        return pack.value_rows.numel()

    def loss(self, pack: Pack, count: int) -> tuple[Tensor, Tensor]:
        """The pack's share of the loss, and V of its states."""
        out = self._reader(pack, count, self._objective)
        return out.loss, out.values

    def halt(self, metrics: dict[str, float]) -> None:
        """Never: every step is done."""

    def measure(self, step: int, last: bool) -> dict[str, float]:
        """Nothing."""
        return {}

    def metrics(self, packs: Sequence[Pack], values: Tensor) -> dict[str, float]:
        """Mean value, mean target and squared error of the batch."""
        targets = torch.cat([pack.value_targets for pack in packs]).double()
        return {
            "value_mean": values.mean().item(),
            "target_mean": targets.mean().item(),
            "squared_error": (values - targets).square().mean().item(),
            "states": float(values.numel()),
        }


def train_critic(
    trees_directory: Path,
    init: str | Path,
    policy: Path,
    settings: CriticSettings,
    parallel: ParallelSettings,
    model: ModelSettings,
    out: Path,
    *,
    seed: int,
    digest: str,
) -> dict[str, Any]:
    """Train a value model on the collected trees: ``out/model`` and ``out/heldout.json``.

    Problems are split into training and held-out by a hash of their id.

    Args:
        init: ``"scratch"``: random weights in the shape of ``policy``; else the directory of a causal LM to start from.
        policy: The policy that collected the trees.

    Raises:
        InputError: the trees, the model or the settings.
    """
    done = finished(out, digest)
    if done is not None:
        return done
    start, kind = (policy, "scratch") if init == "scratch" else (Path(init), "causal_lm")
    with open_world(model, parallel) as world, open_trees(trees_directory, out, world) as trees:
        sides: tuple[list[int], list[int]] = ([], [])
        for index, tree in enumerate(trees):
            sides[is_heldout(tree.problem_id, settings.heldout_fraction)].append(index)
        training, heldout = (Chosen(trees, indices) for indices in sides)
        states = len(critic_groups(training))
        if not states:
            raise InputError(
                f"{trees_directory}: no state with completions outside the held-out problems: nothing to train on"
            )
        reader = value_reader(start, kind, settings, model, parallel, world, seed)
        longest = longest_pack("critic", start, settings, Place.of(world, parallel))
        dealer = Dealer(world, reader.model, settings.pack_tokens, longest, trees_directory)
        task = CriticTask(reader, training, settings, dealer, seed)
        train(task, reader, reader.model, settings, world, out, seed, digest, parallel)
        measured = _measure_heldout(heldout, training, reader, dealer, world)
        if world.rank == 0:
            write_json(out / "heldout.json", measured)
        # The tokenizer comes along from the policy: the critic reads the policy's tokens.
        k = measured.get("shrinkage", {"k": ASSUMED})["k"]
        log.info("critic: worth %.2g sampled outcomes (k, fitted on held-out states)", k)
        summary = {
            "steps": task.steps,
            "states": states,
            "heldout": measured.get("critic"),
            "k": k,
        }
        return finish(out, digest, reader.model, policy, world, summary)


def _measure_heldout(
    heldout: Sequence[Tree], training: Sequence[Tree], reader: ValueReader, dealer: Dealer, world: World
) -> dict[str, Any]:
    """The critic on the held-out states, beside a predictor that always says the training states' mean."""
    groups = critic_groups(heldout)
    if not groups:
        log.warning("critic: no held-out state (%d held-out problems); its quality is not measured", len(heldout))
        return {"problems": len(heldout), "states": 0}
    batch = dealer(dealer.packs(pack_critic, heldout, groups), 1)
    values = read_values(reader, batch, world, reader.values)
    keys = torch.cat([pack.value_keys for pack in batch.packs]).tolist()
    states = [heldout[tree].states[state] for tree, state, _ in keys]
    correct = torch.tensor([sum(state.rewards) for state in states], dtype=torch.float64)
    sampled = torch.tensor([len(state.rewards) for state in states], dtype=torch.float64)
    squares = torch.tensor([sum(reward**2 for reward in state.rewards) for state in states], dtype=torch.float64)
    trained = [training[tree].states[state].mc for tree, state in critic_groups(training)]
    constant = torch.full_like(correct, sum(trained) / len(trained))
    return {
        "problems": len(heldout),
        "states": len(states),
        "critic": measure(values.double(), correct, sampled, squares),
        "constant": measure(constant, correct, sampled, squares),
        "shrinkage": fit_shrinkage(values.tolist(), correct.tolist(), sampled.tolist(), squares.tolist()),
    }


class ValueFiller:
    """Reads V of every state and of what every candidate leads to with a trained critic, on all ranks."""

    def __init__(
        self,
        critic: Path,
        settings: AdvantageSettings,
        model: ModelSettings,
        parallel: ParallelSettings,
        world: World,
    ) -> None:
        """Lay the critic in ``critic`` over the processes of ``world``; ``settings``: how long packs may be."""
        self._reader = saved_value_reader(critic, model, parallel, world)
        longest = longest_pack("critic", critic, settings, Place.of(world, parallel))
        self._dealer = Dealer(world, self._reader.model, settings.pack_tokens, longest)
        self._world = world

    def __call__(self, trees: Sequence[Tree]) -> None:
        """Set ``value`` of every state, and of every candidate that does not end its response, on every rank."""
        batch = self._dealer(self._dealer.packs(pack_candidates, trees), 1)
        values = read_values(self._reader, batch, self._world, self._reader.values).tolist()
        keys = [key for pack in batch.packs for key in pack.value_keys.tolist()]
        for (tree, state, candidate), value in zip(keys, values, strict=True):
            if candidate < 0:
                trees[tree].states[state].value = value
            else:
                trees[tree].states[state].candidates[candidate].value = value
