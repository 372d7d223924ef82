"""What a step reads: packs dealt over the ranks, batches by step number, and values of all packs on every rank."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import torch
from transformers import PreTrainedModel

from dapo_fast.config import OptimSettings
from dapo_fast.data.dealing import Ranks, deal
from dapo_fast.data.pack import ROW_BLOCK, Pack, pad_lengths
from dapo_fast.errors import InputError
from dapo_fast.models.attention import choose_backend, requested_backend
from dapo_fast.models.context import shares
from dapo_fast.models.padded import reads_padded
from dapo_fast.models.readpath import PolicyReader, ValueReader
from dapo_fast.train.loop import Batch
from dapo_fast.train.parallel import World, reshard

log = logging.getLogger("dapo_fast.train")

Item = TypeVar("Item")

# Tokens of a pack below which a step takes no less time: a GPU reads weights (or waits for them from other ranks) for
# about as long as it computes a thousand tokens or two, a core is busy with a few rows.
BUSY_TOKENS = {"cuda": 2048, "cpu": 64}


def _is_dense(model: PreTrainedModel, world: World) -> bool:
    """Whether trees are read with a mask that grows with the square of their tokens."""
    backend = choose_backend(requested_backend(model), world.device, flat=False, shared=world.sharing > 1)
    return backend == "dense"


class Dealer:
    """Cuts what a step reads into packs that fill the ranks of this world, and deals them."""

    def __init__(
        self, world: World, model: PreTrainedModel, pack_tokens: int, longest: int = 0, source: object = "trees"
    ) -> None:
        """Deal to the ranks of ``world`` what ``model`` is trained on.

        Args:
            pack_tokens: Most tokens of a pack; where ranks share packs, of each one's share of it.
            longest: Most tokens of the pack of a tree with long trunks, where that is more.
            source: What errors call the place that all this is from.
        """
        self._source = source
        sharing = self._sharing = world.sharing
        self._block = ROW_BLOCK[world.device.type]
        self._most = pack_tokens * sharing
        config = model.config.get_text_config()
        if reads_padded(config) or _is_dense(model, world):
            longest = 0
        longest = min(world.gather(longest)) * sharing
        self._lengths = pad_lengths(self._most, world.device, sharing, longest)
        busy = min(pack_tokens, BUSY_TOKENS[world.device.type]) * sharing
        self._ranks = Ranks(world.readers // sharing, busy, config.hidden_size, reads_padded(config), longest)
        self._words = config.vocab_size
        self._said = False

    def packs(self, pack: Callable[..., list[Pack]], *what: Any) -> list[Pack]:
        """What ``pack`` (one of ``data.packing``) makes of ``what``.

        Raises:
            InputError: a token that the model does not know.
        """
        packs = pack(*what, self._most, self._lengths, ranks=self._ranks)
        largest = max((int(ids.max()) for p in packs for ids in (p.input_ids, p.targets) if ids.numel()), default=0)
        if largest >= self._words:
            raise InputError(f"{self._source}: token {largest}, where the model's vocabulary has {self._words}")
        long = [p.tokens for p in packs if p.tokens > self._most]
        if long and not self._said:
            self._said = True
            log.log(
                logging.INFO if max(long) <= self._ranks.longest else logging.WARNING,
                "long trunks: %d of %d packs are over the %d tokens of pack_tokens, the longest has %d where %d are "
                "counted to fit: packs grow with what their trees repeat, and a path is never divided; said once",
                len(long),
                len(packs),
                self._most,
                max(long),
                max(self._most, self._ranks.longest),
            )
        return packs

    def __call__(self, packs: Sequence[Pack], count: int) -> Batch:
        """``packs`` over the ranks, their loss to be divided by ``count``."""
        ranks = deal(packs, self._ranks, self._lengths)
        if self._sharing > 1:
            divided = [[shares(pack, self._sharing, self._block) for pack in dealt] for dealt in ranks]
            ranks = [[parts[member] for parts in dealt] for dealt in divided for member in range(self._sharing)]
        return Batch(ranks, count)


class Epochs(Generic[Item]):
    """Batches by step number: epoch after epoch, each in its own order."""

    def __init__(self, batches_of: Callable[[int], list[Item]]) -> None:
        self._batches_of = batches_of
        self._batches: list[Item] = []
        self._epochs = 0
        self.per_epoch = len(self._grow())

    def _grow(self) -> list[Item]:
        new = self._batches_of(self._epochs)
        self._epochs += 1
        self._batches += new
        return new

    def steps(self, settings: OptimSettings) -> int:
        """How many optimizer steps the settings ask for."""
        return settings.steps or settings.epochs * self.per_epoch

    def __getitem__(self, step: int) -> Item:
        while step >= len(self._batches):
            self._grow()
        return self._batches[step]


def read_values(
    reader: PolicyReader | ValueReader, batch: Batch, world: World, read: Callable[[Pack], torch.Tensor]
) -> torch.Tensor:
    """What ``read`` gives for every pack of ``batch``, in the order of ``batch.packs``, on every rank; fp32, CPU.

    Args:
        read: Pack on the device → one value an item, without gradients: ``reader.step_logps`` or ``reader.values``.
    """
    width = [pack.steps if isinstance(reader, PolicyReader) else pack.value_rows.numel() for pack in batch.packs]
    values = torch.zeros(sum(width), dtype=torch.float32, device=world.device)
    mine = batch.ranks[world.reader]
    place = sum(width[: world.reader * len(mine)])
    for pack in mine:
        found = read(pack.to(world.device, non_blocking=True))
        if world.counts:
            values[place : place + found.numel()] = found
        place += found.numel()
    reshard(reader)
    return world.all_sum(values).cpu()
