"""B.2, the actor: the squared loss between log-ratios and scaled advantages, from the reference, on stored trees."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dapo_fast.config import ActorSettings, ModelSettings, ParallelSettings
from dapo_fast.data.batches import Group, actor_batches, actor_groups
from dapo_fast.data.mapped import MappedTrees
from dapo_fast.data.pack import Pack
from dapo_fast.data.packing import pack_actor
from dapo_fast.data.tables import read_table, write_table
from dapo_fast.data.tree import Tree
from dapo_fast.errors import InputError
from dapo_fast.models.readpath import PackObjective, PolicyReader
from dapo_fast.targets import beta_of, log_partition
from dapo_fast.train.best import BestStep, Measured
from dapo_fast.train.dealer import Dealer, Epochs, read_values
from dapo_fast.train.demonstrations import Demonstrated, Demonstrations
from dapo_fast.train.loop import Batch, Task, train
from dapo_fast.train.memory import longest_pack
from dapo_fast.train.parallel import World, open_world
from dapo_fast.train.place import Place
from dapo_fast.train.readers import policy_reader
from dapo_fast.train.stage import finish, finished
from dapo_fast.train.trees import open_trees

log = logging.getLogger("dapo_fast.train")

REFERENCE_TREES = 256  # trees between two saves of the reference pass
SCORED_TREES = 256  # trees whose log-probabilities after training are kept for the report
_PLACE = ("tree", "state", "candidate")


class ActorTask:
    """½ Σ (Â/β − u)² over the batch's state-action pairs, divided by their number; u = log π(a|s) − log π_ref(a|s)."""

    name = "actor"

    def __init__(
        self,
        reader: PolicyReader,
        trees: Sequence[Tree],
        settings: ActorSettings,
        dealer: Dealer,
        seed: int,
        beta: float,
        objective: PackObjective | None = None,
        best: BestStep | None = None,
    ) -> None:
        self._reader = reader
        self._best = best
        self._trees = trees
        self._beta = beta
        self._kl_budget = settings.kl_budget
        self._log_partition = settings.log_partition
        self._objective = objective or "direct_advantage"
        self._dealer = dealer
        self._batches: Epochs[list[Group]] = Epochs(
            lambda epoch: actor_batches(trees, settings.batch_pairs, seed, epoch, settings.state_wise)
        )
        self.steps = self._batches.steps(settings)

    def batch(self, step: int) -> Batch:
        """The state-action pairs of ``step``."""
        packs = self._dealer.packs(pack_actor, self._trees, self._batches[step])
        if self._log_partition:
            for pack in packs:
                pack.advantages -= self._beta * self._log_partitions(pack)
        return self._dealer(packs, sum(pack.steps for pack in packs))

    def _log_partitions(self, pack: Pack) -> Tensor:
        """``(S,)`` log Z of each step's state: with it the target Â/β becomes Â/β − log Z, which a policy can meet."""
        states = [(tree, state) for tree, state, _ in pack.step_keys.tolist()]
        known = {(tree, state): log_partition(self._trees[tree].states[state], self._beta) for tree, state in states}
        return torch.tensor([known[state] for state in states])

    def items(self, pack: Pack) -> int:
        """Pairs."""
        return pack.steps

    def loss(self, pack: Pack, count: int) -> tuple[Tensor, Tensor]:
        """The pack's share of the loss, and log π(a|s) of its pairs."""
        out = self._reader(pack, self._beta, count, self._objective)
        return out.loss, out.step_logps

    def halt(self, metrics: dict[str, float]) -> str | None:
        """Why training ends here: the step's divergence from the reference has passed ``kl_budget``."""
        if self._kl_budget is None or metrics["kl_reference"] <= self._kl_budget:
            return None
        return f"KL to the reference {metrics['kl_reference']:.3g} nats, over actor.kl_budget {self._kl_budget:g}"

    def measure(self, step: int, last: bool) -> dict[str, float]:
        """Accuracy on what policies are chosen by, where that is due."""
        return {} if self._best is None else self._best.measure(step, last)

    def metrics(self, packs: Sequence[Pack], values: Tensor) -> dict[str, float]:
        """How far the policy has moved from the reference, and how much of the target it has met.

        ``explained``: 1 − loss / (loss at u = 0). ``kl_reference``: mean over the state's completions of e^u − 1 − u,
        an estimate of KL(π_ref ‖ π) of one step in nats that is never negative.
        """
        u = values - torch.cat([pack.ref_logps for pack in packs]).double()
        target = torch.cat([pack.advantages for pack in packs]).double() / self._beta
        keys = torch.cat([pack.step_keys for pack in packs]).tolist()
        counts = torch.tensor([self._trees[t].states[s].candidates[c].count for t, s, c in keys], dtype=torch.float64)
        low, middle, high = torch.quantile(u, torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)).tolist()
        kl = torch.expm1(u.clamp(max=20.0)) - u
        if not counts.any():
            counts = torch.ones_like(counts)  # a batch of steps that only trunks take
        zero_loss = target.square().sum()
        return {
            "explained": (1 - (target - u).square().sum() / zero_loss).item() if zero_loss > 0 else 0.0,
            "log_ratio_mean": u.mean().item(),
            "log_ratio_p05": low,
            "log_ratio_p50": middle,
            "log_ratio_p95": high,
            "kl_reference": ((kl * counts).sum() / counts.sum()).item(),
            "same_sign": ((u * target) > 0).double().mean().item(),
            "pairs": float(u.numel()),
        }


def train_actor(
    trees_directory: Path,
    policy: Path,
    settings: ActorSettings,
    parallel: ParallelSettings,
    model: ModelSettings,
    out: Path,
    *,
    seed: int,
    digest: str,
    objective: PackObjective | None = None,
    demonstrations: Demonstrations | None = None,
    measured: Measured | None = None,
) -> dict[str, Any]:
    """Train the policy on the stored advantages and write it to ``out/model``; a killed run goes on where it was.

    Only the actor is in memory: the reference's log-probabilities are computed once at the start, by the same forward,
    and kept in ``out/reference``.

    Args:
        trees_directory: Trees with advantages and kept states.
        policy: The reference: where training starts from.
        objective: Another loss of the same steps; None: the squared loss.
        demonstrations: What ``settings.sft_weight`` weighs.
        measured: How policies fare, every ``settings.eval_every`` steps: the best is written, not the last.

    Raises:
        InputError: no state is kept, there are no demonstrations to weigh, or the trees, the model or the settings are
            wrong.
    """
    done = finished(out, digest)
    if done is not None:
        return done
    if bool(settings.sft_weight) != (demonstrations is not None):
        raise InputError(f"actor.sft_weight {settings.sft_weight:g}: needs demonstrations, and 0 takes none")
    if bool(settings.eval_every) != (measured is not None):
        raise InputError(f"actor.eval_every {settings.eval_every}: needs a measure of policies, and 0 takes none")
    with open_world(model, parallel) as world, open_trees(trees_directory, out, world) as trees:
        groups = actor_groups(trees)
        if not groups:
            raise InputError(f"{trees_directory}: no state is kept, so there is nothing to train the actor on")
        advantages = _advantages(trees, groups, trees_directory)
        try:
            beta = beta_of(advantages, settings.beta)
        except ValueError as error:
            raise InputError(f"actor.{error}: nothing to train the actor on") from error
        reader = policy_reader(policy, settings, model, parallel, world)
        longest = longest_pack("actor", policy, settings, Place.of(world, parallel))
        dealer = Dealer(world, reader.model, settings.pack_tokens, longest, trees_directory)
        _fill_reference(trees, reader, dealer, world, out / "reference", digest)
        best = None
        if measured is not None:
            best = BestStep(reader.model, policy, world, out, digest, settings.eval_every, measured)
        own = ActorTask(reader, trees, settings, dealer, seed, beta, objective, best)
        task: Task = own
        if demonstrations is not None:
            task = Demonstrated(own, reader, dealer, demonstrations, settings.sft_weight)
        train(task, reader, reader.model, settings, world, out, seed, digest, parallel)
        chosen = {} if best is None else {"best": best.restore()}
        _write_scores(out / "scores.parquet", trees[:SCORED_TREES], reader, dealer, world)
        summary = {"steps": task.steps, "states": len(groups), "pairs": len(advantages), "beta": beta} | chosen
        return finish(out, digest, reader.model, policy, world, summary)


def _advantages(trees: Sequence[Tree], groups: Sequence[Group], directory: Path) -> np.ndarray:
    """``(pairs,)`` fp64: Â of every pair that is trained on; InputError where one has none."""
    found: list[np.ndarray] = []
    for tree, state in groups:
        # None becomes NaN.
        found.append(np.array([c.advantage for c in trees[tree].states[state].candidates], dtype=np.float64))
        if np.isnan(found[-1]).any():
            raise InputError(f"{directory}: problem {trees[tree].problem_id}: a kept state without advantages")
    return np.concatenate(found)


def _read_logps(trees: Sequence[Tree], reader: PolicyReader, dealer: Dealer, world: World) -> tuple[Tensor, Tensor]:
    """Keys ``(S, 3)`` and log π(a|s) ``(S,)`` of every candidate of the kept states."""
    batch = dealer(dealer.packs(pack_actor, trees, actor_groups(trees)), 1)
    if not batch.packs:
        return torch.zeros((0, 3), dtype=torch.int64), torch.zeros(0)
    logps = read_values(reader, batch, world, reader.step_logps)
    return torch.cat([pack.step_keys for pack in batch.packs]), logps


def _fill_reference(
    trees: MappedTrees, reader: PolicyReader, dealer: Dealer, world: World, directory: Path, digest: str
) -> None:
    """Set ``ref_logp`` of every kept candidate, from ``directory`` where it was computed before."""
    for start in range(0, len(trees), REFERENCE_TREES):
        part = trees[start : start + REFERENCE_TREES]
        path = directory / f"part-{start // REFERENCE_TREES:05d}.parquet"
        # Rank 0 decides for all: a file seen by some ranks only would leave the others alone in a collective.
        if not world.broadcast(path.exists()):
            keys, read = _read_logps(part, reader, dealer, world)
            if world.rank == 0:
                _write_table(path, keys, {"ref_logp": read}, digest)
            world.barrier()
        places, logps = _read_reference(path, digest)
        trees.set("ref_logp", places + np.array([start, 0, 0]), logps)
    log.info("reference log-probabilities: %s", directory)


def _read_reference(path: Path, digest: str) -> tuple[np.ndarray, np.ndarray]:
    """Tree, state and candidate indices ``(n, 3)`` and their log π_ref(a|s) ``(n,)``."""
    try:
        columns, of = read_table(path, (*_PLACE, "ref_logp"))
    except InputError as error:
        raise InputError(f"{error}; remove it, it is computed again") from error
    if of != digest:
        raise InputError(f"{path}: made with other settings; use a new run directory")
    return np.stack([columns[name] for name in _PLACE], axis=1).astype(np.int64), columns["ref_logp"]


def _write_scores(path: Path, trees: Sequence[Tree], reader: PolicyReader, dealer: Dealer, world: World) -> None:
    keys, logps = _read_logps(trees, reader, dealer, world)
    before = [trees[t].states[s].candidates[c].ref_logp for t, s, c in keys.tolist()]
    if world.rank == 0:
        _write_table(path, keys, {"ref_logp": torch.tensor(before), "logp_after": logps}, "")


def _write_table(path: Path, keys: Tensor, columns: dict[str, Tensor], digest: str) -> None:
    arrays = {name: keys[:, i].to(torch.int32).numpy() for i, name in enumerate(_PLACE)}
    write_table(path, arrays | {name: column.float().numpy() for name, column in columns.items()}, digest)
