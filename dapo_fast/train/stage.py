"""What sft, critic and actor share around the loop: building a model for this world, and finishing a stage."""

from __future__ import annotations

import functools
import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch.distributed.fsdp import register_fsdp_forward_method
from transformers import GenerationMixin, PreTrainedModel

from dapo_fast.config import ModelSettings, OptimSettings, ParallelSettings
from dapo_fast.data.dealing import Ranks, deal
from dapo_fast.data.pack import ROW_BLOCK, Pack, pad_lengths
from dapo_fast.errors import InputError
from dapo_fast.models.attention import choose_backend, requested_backend
from dapo_fast.models.checks import check_reading, reading_error
from dapo_fast.models.context import check_shared, shares, try_shared
from dapo_fast.models.loading import (
    causal_lm_skeleton,
    load_causal_lm,
    load_value_model,
    use_liger,
    value_model_skeleton,
)
from dapo_fast.models.padded import reads_padded
from dapo_fast.models.readpath import PolicyReader, ValueReader
from dapo_fast.models.tensor import check_divided, divide
from dapo_fast.rundir import read_metrics, read_state, write_json
from dapo_fast.state import Done
from dapo_fast.train.blocks import prepare_blocks
from dapo_fast.train.export import export
from dapo_fast.train.loop import Batch
from dapo_fast.train.parallel import World, reshard, shard
from dapo_fast.train.trees import TREES
from dapo_fast.train.weights import add_lora, has_adapters, load_sharded, reset_adapters, trained_from

log = logging.getLogger("dapo_fast.train")

Reader = TypeVar("Reader", PolicyReader, ValueReader)
Item = TypeVar("Item")


def policy_reader(
    directory: Path, settings: OptimSettings, model: ModelSettings, parallel: ParallelSettings, world: World
) -> PolicyReader:
    """The policy in ``directory`` as a trainable reader, laid over the processes of ``world``.

    An earlier training that computed in less than fp32 has left its fp32 weights (``weights.trained_from``).
    """
    directory = trained_from(directory, world, adapting=settings.lora_rank > 0)
    if world.mesh is None:
        policy = load_causal_lm(directory, world.device, torch.float32, model.attention)
        return _dress(PolicyReader(policy), settings, parallel, world, None)
    skeleton = causal_lm_skeleton(directory, model.attention)
    return _dress(PolicyReader(skeleton), settings, parallel, world, directory)


def value_reader(
    directory: Path,
    init: str,
    settings: OptimSettings,
    model: ModelSettings,
    parallel: ParallelSettings,
    world: World,
    seed: int,
) -> ValueReader:
    """A value model as a trainable reader; ``init`` as in ``load_value_model``."""
    if world.mesh is None or init == "scratch":
        # Random weights are made whole on every rank and sharded afterwards: nobody trains a large model from them.
        where = world.device if world.mesh is None else torch.device("cpu")
        value_model = load_value_model(directory, where, torch.float32, model.attention, init, seed)
        return _dress(ValueReader(value_model), settings, parallel, world, None)
    skeleton = value_model_skeleton(directory, model.attention)
    return _dress(ValueReader(skeleton), settings, parallel, world, directory, fresh_head=init == "causal_lm")


def saved_value_reader(directory: Path, model: ModelSettings, parallel: ParallelSettings, world: World) -> ValueReader:
    """A critic that was trained, to read values with: held in what it computes in, since nothing is added to it."""
    if world.mesh is None:
        return ValueReader(load_value_model(directory, world.device, world.dtype, model.attention))
    reader = ValueReader(value_model_skeleton(directory, model.attention))
    reader.requires_grad_(False)
    return _dress(reader, OptimSettings(), parallel, world, directory)


def _dress(
    reader: Reader,
    settings: OptimSettings,
    parallel: ParallelSettings,
    world: World,
    source: Path | None,
    fresh_head: bool = False,
) -> Reader:
    """LoRA, checkpointing, compile, sharding; then the weights of ``source`` if the reader is on the meta device."""
    model = reader.model
    if world.context is not None:
        check_shared(model)
        try_shared(model, world.device)
        reader.context = world.context
    if world.mesh is not None:
        use_liger(model, world.device)
    if settings.lora_rank:
        add_lora(model, settings)
    if world.mesh is not None:
        for parameter in model.parameters():
            if not parameter.requires_grad:
                # Nothing is ever added to a frozen weight: what it computes in is precise enough to hold it.
                parameter.data = parameter.data.to(world.dtype)
    if world.tensor is not None:
        check_divided(model, world.tensor.size(), settings)
        divide(model, world.tensor)
        reader.vocabulary = world.tensor.get_group()
    prepare_blocks(model, parallel)
    shard(reader, model, world, parallel)
    if source is not None:
        offloaded = parallel.cpu_offload and world.device.type == "cuda"
        buffers = [(module, name, b) for module in model.modules() for name, b in module.named_buffers(recurse=False)]
        reader.to_empty(device=torch.device("cpu") if offloaded else world.device)
        for module, name, computed in buffers:
            setattr(module, name, computed.to(world.device))
        load_sharded(model, source, world, fresh_head)
        if fresh_head:
            for parameter in model.score.parameters():
                torch.nn.init.zeros_(parameter)
    if settings.lora_rank:
        reset_adapters(model)
    if source is not None:
        _try_reading(reader, source, world)
    return reader


@torch.no_grad()
def _try_reading(reader: PolicyReader | ValueReader, source: Path, world: World) -> None:
    """``check_reading`` of a sharded model, whose weights are whole within a forward of its root only."""
    reader.reading_error = functools.partial(reading_error, reader.model)
    register_fsdp_forward_method(reader, "reading_error")

    def error() -> float:
        found = world.broadcast(reader.reading_error())
        reshard(reader)
        return found

    check_reading(reader.model, str(source), world.dtype, error)
    del reader.reading_error


# Tokens of a pack below which a step takes no less time: a GPU reads weights (or waits for them from other ranks) for
# about as long as it computes a thousand tokens or two, a core is busy with a few rows.
BUSY_TOKENS = {"cuda": 2048, "cpu": 64}


def _is_dense(model: PreTrainedModel, world: World) -> bool:
    """Whether trees are read with a mask that grows with the square of their tokens."""
    backend = choose_backend(requested_backend(model), world.device, flat=False, shared=world.sharing > 1)
    return backend == "dense"


class Dealer:
    """Cuts what a step reads into packs that fill the ranks of this world, and deals them."""

    def __init__(self, world: World, model: PreTrainedModel, pack_tokens: int, longest: int = 0) -> None:
        """Of a pack, or where ranks share packs of each one's share, tokens at most.

        Args:
            pack_tokens: Of any.
            longest: Of a tree with long trunks, where that is more.
        """
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
        self._said = False

    def packs(self, pack: Callable[..., list[Pack]], *what: Any) -> list[Pack]:
        """What ``pack`` (one of ``data.packing``) makes of ``what``."""
        packs = pack(*what, self._most, self._lengths, ranks=self._ranks)
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


def finished(directory: Path, digest: str) -> dict[str, Any] | None:
    """The summary of a stage that is done, or None.

    Raises:
        InputError: it was done with other settings.
    """
    path = directory / "done.json"
    if not path.exists():
        return None
    summary = read_state(path, Done)
    if summary["digest"] != digest:
        raise InputError(f"{path}: made with other settings; use a new run directory")
    # Of a process killed as it was dropping them.
    shutil.rmtree(directory / "checkpoints", ignore_errors=True)
    (directory / TREES).unlink(missing_ok=True)
    return summary


def finish(
    directory: Path, digest: str, model: PreTrainedModel, source: Path, world: World, summary: dict[str, Any]
) -> dict[str, Any]:
    """Export the model to ``directory/model``, write ``done.json``, and drop the checkpoints, which nobody needs now.

    A policy keeps its fp32 weights, unless it was adapters that were trained: the next iteration goes on from them.

    Args:
        source: The policy that this one was, or whose tokens a critic reads.

    Returns:
        What ``done.json`` holds: digest, steps, the last step's metrics, ``summary``, and for a policy the share of its
        weights that ``changed``.
    """
    policy = isinstance(model, GenerationMixin)
    # Behind adapters weights are held in what is computed in (``_dress``): there is nothing more precise to keep.
    master = policy and not has_adapters(model)
    changed = export(model, directory / "model", source, world.dtype, world, master)
    if policy:
        summary = summary | {"changed": changed}
        kind = str(world.dtype).removeprefix("torch.")
        log.info("%s: %.1f%% of the weights have changed, as %s", directory / "model", 100 * changed, kind)
    result: dict[str, Any] = {}
    if world.rank == 0:
        metrics = directory / "metrics.jsonl"
        rows = read_metrics(metrics)
        if not rows:
            raise InputError(f"{metrics}: holds no step, though the training is done")
        result = {"digest": digest, "last": rows[-1]} | summary
        write_json(directory / "done.json", result)
        if (directory / "checkpoints").exists():  # a short run has none
            shutil.rmtree(directory / "checkpoints")
        log.info("%s: done", directory / "model")
    return world.broadcast(result)
