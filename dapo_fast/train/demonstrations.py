"""Demonstrations beside the actor's own loss: sampling finds only what the policy already does now and then."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dapo_fast.data.pack import Pack
from dapo_fast.data.packing import pack_sequences
from dapo_fast.models.readpath import PolicyReader
from dapo_fast.train.dealer import Dealer
from dapo_fast.train.loop import Batch, Task

Demonstrations = Callable[[int], list[tuple[list[int], list[int]]]]  # optimizer step → (prompt ids, response ids)


class Demonstrated:
    """A task whose loss is another's plus ``weight`` times the mean −log π of the demonstrations' tokens."""

    def __init__(self, task: Task, reader: PolicyReader, dealer: Dealer, given: Demonstrations, weight: float) -> None:
        self.name, self.steps, self.halt, self.measure = task.name, task.steps, task.halt, task.measure
        self._task = task
        self._reader = reader
        self._dealer = dealer
        self._given = given
        self._weight = weight

    def batch(self, step: int) -> Batch:
        """The other task's packs on each rank, then those of the demonstrations of ``step``."""
        own = self._task.batch(step)
        packs = self._dealer.packs(pack_sequences, self._given(step))
        tokens = sum(pack.targets.numel() for pack in packs)
        for pack in packs:
            pack.imitation = tokens / self._weight
        theirs = self._dealer(packs, tokens)
        return Batch([mine + more for mine, more in zip(own.ranks, theirs.ranks, strict=True)], own.count)

    def items(self, pack: Pack) -> int:
        """Candidates, or demonstrations."""
        return pack.steps

    def loss(self, pack: Pack, count: int) -> tuple[Tensor, Tensor]:
        """The pack's share of the loss, and log π of its items."""
        if pack.imitation is None:
            return self._task.loss(pack, count)
        out = self._reader(pack, normalizer=pack.imitation, objective="cross_entropy")
        return out.loss, out.step_logps

    def metrics(self, packs: Sequence[Pack], values: Tensor) -> dict[str, float]:
        """The other task's, and the mean probability of a whole demonstration."""
        parts = list(zip(packs, values.split([pack.steps for pack in packs]), strict=True))
        own = [(pack, part) for pack, part in parts if pack.imitation is None]
        demonstrated = torch.cat([part for pack, part in parts if pack.imitation is not None])
        found = self._task.metrics([pack for pack, _ in own], torch.cat([part for _, part in own]))
        return found | {"demonstration_probability": demonstrated.exp().mean().item()}
