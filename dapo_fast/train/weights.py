"""Weights out of Hugging Face directories into a sharded model, each rank reading its own rows; and LoRA."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from dapo_fast.config import OptimSettings
from dapo_fast.errors import InputError, blaming, reason
from dapo_fast.models.files import (
    ignored_in_files,
    is_finite,
    not_finite,
    refuse,
    stored_tensors,
    tied_groups,
)
from dapo_fast.models.hub import Source, sources
from dapo_fast.rundir import read_state
from dapo_fast.state import Sums
from dapo_fast.sums import SUMS, damaged, damaged_model
from dapo_fast.train.parallel import World

log = logging.getLogger("dapo_fast.train")

ADAPTER = "default"
MASTER = "master"  # within a model's directory: its weights in fp32
EXPORTED = f"../{SUMS}"  # among their sums: that of the sums of the model that they are of


def add_lora(model: nn.Module, settings: OptimSettings) -> None:
    """Freeze ``model`` and put rank-``settings.lora_rank`` adapters (peft) beside its linear layers, in place.

    Routed experts, one tensor a layer, stay frozen, and so do a head, routers that are tensors of their own, and the
    ``dt_proj`` of Mamba, whose weight is read without the layer.

    A value head stays trainable: there is nothing pre-trained in it to adapt.

    Raises:
        InputError: peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise InputError("lora_rank: needs peft (pip install 'dapo-fast[lora]')") from error
    # Without a config: for some families peft would adapt the routed experts instead of the layers that are named.
    held = nn.ModuleDict({"model": model})
    # By whole names: the last part of one may be a number, and that of other modules too.
    layers = [name for name, module in held.named_modules() if isinstance(module, nn.Linear)]
    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=0.0,
        target_modules=[name for name in layers if name.rpartition(".")[2] not in ("lm_head", "score", "dt_proj")],
    )
    inject_adapter_in_model(config, held, adapter_name=ADAPTER)
    if hasattr(model, "score"):
        model.score.requires_grad_(True)


def has_adapters(model: nn.Module) -> bool:
    """Whether ``add_lora`` has been there."""
    return any(".lora_" in name for name, _ in model.named_parameters())


def reset_adapters(model: nn.Module) -> None:
    """Start values of every adapter: A uniform in ±1/√(inputs), drawn from its name alone, and B zero."""
    for name, parameter in model.named_parameters():
        if ".lora_A." in name:
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            bound = parameter.shape[1] ** -0.5
            drawn = torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator)
            _fill(parameter, drawn.__getitem__)
        elif ".lora_B." in name:
            nn.init.zeros_(parameter)


def _fill(tensor: Tensor, rows: Callable[[slice], Tensor]) -> bool:
    """Copy into ``tensor`` the part of the whole that this rank owns; ``rows`` gives a slice of its rows.

    Returns:
        Whether all of them are finite.
    """
    with torch.no_grad():
        if isinstance(tensor, DTensor):
            first, *others = owned(tensor)
            tensor = tensor.to_local()
            tensor.copy_(rows(first)[(slice(None), *others)])
        else:
            tensor.copy_(rows(slice(None)))
        return is_finite(tensor)


def load_sharded(model: PreTrainedModel, directory: Path, world: World, fresh_head: bool = False) -> None:
    """Fill parameters and persistent buffers of ``model``, each rank reading the rows it owns; adapters stay.

    Args:
        fresh_head: The head may be missing, and is then left as it is.

    Raises:
        InputError: on every rank, where the files are not this model (``models.files.refuse``) or a value that any rank
            reads is not finite.
    """
    problem = damaged_model(directory, True, world.part)
    matched = match_files(model, directory, fresh_head)
    for tensor, source in (matched[name] for name in sorted(matched)):
        if not _fill(tensor, source.rows):
            problem = problem or not_finite(directory, stored_tensors(directory), source.names[0])
    # Each rank saw its own rows: one that raised alone would leave the others in a collective.
    found = [p for p in world.gather(problem) if p is not None]
    if found:
        raise InputError(found[0])


def match_files(model: PreTrainedModel, directory: Path, fresh_head: bool = False) -> dict[str, tuple[Tensor, Source]]:
    """Every tensor of ``model`` and where it is read from, by its name; reads the files' headers only.

    Args:
        model: On any device.

    Raises:
        InputError: as ``models.files.refuse``.
    """
    stored = stored_tensors(directory)
    own = {name.replace(".base_layer.", ".") for name in model.state_dict() if ".lora_" not in name}
    with blaming(directory, f"not the tensors of a {type(model).__name__}"):
        held = sources(model, own, stored)
    state: dict[str, Tensor] = {}
    for group, parameter in tied_groups(model):
        names = [name.replace(".base_layer.", ".") for name in group if ".lora_" not in name]
        if names:
            state[next((name for name in names if name in held), names[0])] = parameter
    state |= stored_buffers(model)
    both, ignored = state.keys() & held.keys(), ignored_in_files(model)
    with blaming(directory, f"not the experts of a {type(model).__name__}"):
        shapes = {name: (held[name].shape, tuple(state[name].shape)) for name in both}
    refuse(
        model,
        state,
        directory,
        stored,
        state.keys() - held.keys(),
        {name for name in held.keys() - own if not ignored(name)},
        {name: pair for name, pair in shapes.items() if pair[0] != pair[1]},
        fresh_head,
    )
    return {name: (state[name], held[name]) for name in both}


def stored_buffers(model: nn.Module) -> dict[str, Tensor]:
    """The persistent buffers of ``model``, which a model's files hold as they hold parameters."""
    stored = model.state_dict().keys()
    return {name.replace(".base_layer.", "."): b for name, b in model.named_buffers() if name in stored}


def owned(parameter: DTensor) -> tuple[slice, ...]:
    """What this rank owns of a parameter, by dimension: even chunks, of the mesh's last axis first, as FSDP2 does."""
    mesh = parameter.device_mesh
    parts = [slice(0, size) for size in parameter.shape]
    for axis, placement in reversed(list(enumerate(parameter.placements))):
        if not placement.is_replicate():
            part = parts[placement.dim]
            chunk = -(-(part.stop - part.start) // mesh.size(axis))
            start = min(part.stop, part.start + chunk * mesh.get_local_rank(axis))
            parts[placement.dim] = slice(start, min(part.stop, start + chunk))
    return tuple(parts)


def trained_from(directory: Path, world: World, adapting: bool) -> Path:
    """Where training reads the model in ``directory``: its fp32 weights, if it has them and is to train them itself.

    Rank 0 looks for all: on a file system of several nodes not every one need see them yet.

    Args:
        adapting: It is adapters that are trained, and the weights behind them may be held in less than fp32.

    Raises:
        InputError: on every rank, where the fp32 weights are not those of the model, or the model is damaged.
    """
    master = directory / MASTER
    if not world.broadcast(master.is_dir()):
        return directory
    if adapting:
        log.info("%s: adapters are trained on the weights as exported, not on the fp32 ones in %s", directory, MASTER)
        return directory
    problem = (stale_master(directory) if world.rank == 0 else None) or damaged_model(directory, True, world.part)
    found = [p for p in world.gather(problem) if p is not None]
    if found:
        raise InputError(found[0])
    log.info("%s: training goes on from its fp32 weights", directory)
    return master


def stale_master(directory: Path) -> str | None:
    """Why the fp32 weights in a model's ``directory`` are not those of the model, in one line; None where they are."""
    master = directory / MASTER
    try:
        of = read_state(master / SUMS, Sums)[EXPORTED] if (master / SUMS).exists() else None
    except (InputError, KeyError) as error:
        return f"{master / SUMS}: not the sums of fp32 weights ({reason(error)})"
    if of is None or damaged(master, {EXPORTED: of}) is not None:
        return f"{master}: not the fp32 weights of the model beside them; remove them to train on from the model itself"
    return None
