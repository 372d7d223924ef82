"""A model as a reader that is trained, or only read: loaded, adapted and laid over the processes of a world."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch.distributed.fsdp import register_fsdp_forward_method

from dapo_fast.config import ModelSettings, OptimSettings, ParallelSettings
from dapo_fast.errors import InputError
from dapo_fast.models.checks import check_reading, reading_error
from dapo_fast.models.context import check_shared, try_shared
from dapo_fast.models.loading import (
    causal_lm_skeleton,
    load_causal_lm,
    load_value_model,
    use_liger,
    value_model_skeleton,
)
from dapo_fast.models.readpath import PolicyReader, ValueReader
from dapo_fast.models.tensor import check_divided, divide
from dapo_fast.train.blocks import prepare_blocks
from dapo_fast.train.parallel import World, reshard, shard
from dapo_fast.train.weights import add_lora, load_sharded, reset_adapters, trained_from

Reader = TypeVar("Reader", PolicyReader, ValueReader)


def policy_reader(
    directory: Path, settings: OptimSettings, model: ModelSettings, parallel: ParallelSettings, world: World
) -> PolicyReader:
    """The policy in ``directory`` as a trainable reader, laid over the processes of ``world``.

    An earlier training that computed in less than fp32 has left its fp32 weights (``weights.trained_from``).
    """
    directory = trained_from(directory, world, adapting=settings.lora_rank > 0)
    if world.mesh is None:
        policy = load_causal_lm(directory, world.device, torch.float32, model.attention)
        return _prepare_reader(PolicyReader(policy), settings, parallel, world, None)
    skeleton = causal_lm_skeleton(directory, model.attention)
    return _prepare_reader(PolicyReader(skeleton), settings, parallel, world, directory)


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
        return _prepare_reader(ValueReader(value_model), settings, parallel, world, None)
    skeleton = value_model_skeleton(directory, model.attention)
    return _prepare_reader(ValueReader(skeleton), settings, parallel, world, directory, fresh_head=init == "causal_lm")


def saved_value_reader(directory: Path, model: ModelSettings, parallel: ParallelSettings, world: World) -> ValueReader:
    """A critic that was trained, to read values with: held in what it computes in, since nothing is added to it."""
    if world.mesh is None:
        return ValueReader(load_value_model(directory, world.device, world.dtype, model.attention))
    reader = ValueReader(value_model_skeleton(directory, model.attention))
    reader.requires_grad_(False)
    return _prepare_reader(reader, OptimSettings(), parallel, world, directory)


def _prepare_reader(
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


def _outcome(reading_error: Callable[[], float]) -> float | str:
    """What it gives, or the message of its InputError: for one rank to say it to all."""
    try:
        return reading_error()
    except InputError as error:
        return str(error)


@torch.no_grad()
def _try_reading(reader: PolicyReader | ValueReader, source: Path, world: World) -> None:
    """``check_reading`` of a sharded model, whose weights are whole within a forward of its root only."""
    reader.reading_error = functools.partial(reading_error, reader.model)
    register_fsdp_forward_method(reader, "reading_error")

    def error() -> float:
        found = world.broadcast(_outcome(reader.reading_error))
        reshard(reader)
        if isinstance(found, str):
            raise InputError(found)
        return found

    check_reading(reader.model, str(source), world.dtype, error)
    del reader.reading_error
