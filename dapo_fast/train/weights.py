"""Weights in and out of Hugging Face directories, shard by shard, and LoRA.

Reading into a sharded model, every rank reads its own rows; writing one, rank 0 holds one output file at a time. No
process ever holds the whole model.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard
from transformers import PreTrainedModel

from dapo_fast.config import OptimSettings
from dapo_fast.errors import InputError
from dapo_fast.models.files import (
    Stored,
    ignored_in_files,
    is_finite,
    not_finite,
    refuse,
    stored_tensors,
    tied_groups,
)
from dapo_fast.rundir import sync
from dapo_fast.train.parallel import World

log = logging.getLogger("dapo_fast.train")

SHARD_BYTES = 5 * 2**30
_ADAPTER = "default"


def add_lora(model: nn.Module, settings: OptimSettings) -> None:
    """Freeze ``model`` and put rank-``settings.lora_rank`` adapters (peft) beside its blocks' linear layers, in place.

    A value head stays trainable: there is nothing pre-trained in it to adapt.

    Raises:
        InputError: peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise InputError("lora_rank: needs peft (pip install 'dapo-fast[lora]')") from error
    layers = {name.rsplit(".", 1)[-1] for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=0.0,
        target_modules=sorted(layers - {"lm_head", "score"}),
    )
    inject_adapter_in_model(config, model, adapter_name=_ADAPTER)
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
            _fill(parameter, torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))
        elif ".lora_B." in name:
            nn.init.zeros_(parameter)


def _fill(tensor: Tensor, whole: Any) -> bool:
    """Copy into ``tensor`` the rows of ``whole`` (anything that takes a slice of rows) that this rank owns.

    Returns:
        Whether all of them are finite.
    """
    with torch.no_grad():
        if isinstance(tensor, DTensor):
            start, stop = owned_rows(tensor)
            tensor = tensor.to_local()
            tensor.copy_(whole[start:stop])
        else:
            tensor.copy_(whole[...])
        return is_finite(tensor)


def load_sharded(model: PreTrainedModel, directory: Path, world: World, fresh_head: bool = False) -> None:
    """Fill parameters and persistent buffers of ``model``, each rank reading the rows it owns; adapters stay.

    Args:
        fresh_head: The head may be missing, and is then left as it is.

    Raises:
        InputError: on every rank, where the files are not this model (``models.files.refuse``) or a value that any rank
            reads is not finite.
    """
    stored = stored_tensors(directory)
    state: dict[str, Tensor] = {}
    for group, parameter in tied_groups(model):
        names = [name.replace(".base_layer.", ".") for name in group if ".lora_" not in name]
        if names:
            state[next((name for name in names if name in stored), names[0])] = parameter
    state |= stored_buffers(model)
    _compare(model, state, directory, stored, fresh_head)
    problem = None
    by_file: dict[Path, list[str]] = {}
    for name in state.keys() & stored.keys():
        by_file.setdefault(stored[name].file, []).append(name)
    for path in sorted(by_file):
        with safe_open(path, framework="pt") as file:
            for name in sorted(by_file[path]):
                if not _fill(state[name], file.get_slice(name)):
                    problem = problem or not_finite(directory, stored, name)
    # Each rank saw its own rows: one that raised alone would leave the others in a collective.
    found = [p for p in world.gather(problem) if p is not None]
    if found:
        raise InputError(found[0])


def _compare(
    model: PreTrainedModel, state: dict[str, Tensor], directory: Path, stored: dict[str, Stored], fresh_head: bool
) -> None:
    """``refuse`` what the headers of the files say already."""
    names = {name.replace(".base_layer.", ".") for name in model.state_dict() if ".lora_" not in name}
    ignored = ignored_in_files(model)
    shapes = {n: (stored[n].shape, tuple(state[n].shape)) for n in state.keys() & stored.keys()}
    refuse(
        model,
        state,
        directory,
        stored,
        state.keys() - stored.keys(),
        {name for name in stored.keys() - names if not ignored(name)},
        {name: pair for name, pair in shapes.items() if pair[0] != pair[1]},
        fresh_head,
    )


def owned_rows(parameter: DTensor) -> tuple[int, int]:
    """First and one past the last row that this rank owns of a parameter sharded by rows: FSDP2's even chunks."""
    mesh, placements = parameter.device_mesh, parameter.placements
    axis = next(i for i, placement in enumerate(placements) if isinstance(placement, Shard))
    rows, ranks = parameter.shape[0], mesh.size(axis)
    chunk = -(-rows // ranks)
    start = min(rows, chunk * mesh.get_local_rank(axis))
    return start, min(rows, start + chunk)


def full_weights(model: nn.Module) -> Iterator[tuple[str, Tensor, Callable[[], Tensor]]]:
    """(name, tensor, a function that gives the whole of it) for all that ``state_dict()`` holds, adapters merged.

    The function is a collective: all ranks call it, in the same order. A parameter that is tied comes once.
    """
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            continue
        if name.endswith(".base_layer.weight"):
            layer = model.get_submodule(name.removesuffix(".base_layer.weight"))
            yield name.replace(".base_layer.", "."), parameter, lambda p=parameter, m=layer: _merged(p, m)
        else:
            yield name.replace(".base_layer.", "."), parameter, lambda p=parameter: _whole(p)
    for name, buffer in stored_buffers(model).items():
        yield name, buffer, lambda b=buffer: _whole(b)


def stored_buffers(model: nn.Module) -> dict[str, Tensor]:
    """The persistent buffers of ``model``, which a model's files hold as they hold parameters."""
    stored = model.state_dict().keys()
    return {name.replace(".base_layer.", "."): b for name, b in model.named_buffers() if name in stored}


def _whole(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _merged(weight: Tensor, layer: nn.Module) -> Tensor:
    down, up = _whole(layer.lora_A[_ADAPTER].weight), _whole(layer.lora_B[_ADAPTER].weight)
    return _whole(weight).float() + layer.scaling[_ADAPTER] * (up.float() @ down.float())


MASTER = "master"  # within a model's directory: its weights in fp32


def export(
    model: nn.Module, directory: Path, source: Path, dtype: torch.dtype, world: World, master: bool = False
) -> float:
    """Write ``model`` as a Hugging Face directory: parameters in ``dtype``, buffers as they are, config, tokenizer.

    It appears whole or not at all.

    Args:
        source: Directory whose tokenizer (and whatever else is not weights or config) comes along.
        master: Whether ``directory/master`` holds the weights in fp32 too, where ``dtype`` is less: updates of 1e-7 are
            lost in bf16.

    Returns:
        The share of the weights written that differ from ``source``'s; of a ``source`` without weights, 1.
    """
    temporary = directory.with_name(directory.name + ".tmp")
    if world.rank == 0:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    changes = _Changes(source, world)
    _write(model, temporary, dtype, world, changes.count)
    if master and dtype != torch.float32:
        _write(model, temporary / MASTER, torch.float32, world, lambda *_: None)
    if world.rank == 0:
        _copy_others(source, temporary)
        if directory.exists():
            shutil.rmtree(directory)
        # Next the checkpoints go: a model that is not on the disk yet, and is lost with the power, would be the last.
        for path in (*temporary.rglob("*"), temporary):
            sync(path)
        os.replace(temporary, directory)
        sync(directory.parent)
    world.barrier()
    return changes.share()


class _Changes:
    """Counts weights that are not those of another model, each rank some rows of every tensor."""

    def __init__(self, source: Path, world: World) -> None:
        self._before = stored_tensors(source) if any(source.glob("*.safetensors")) else {}
        self._world = world
        self._counts = torch.zeros(2, dtype=torch.float64, device=world.device)  # changed, all

    def count(self, name: str, whole: Tensor, dtype: torch.dtype) -> None:
        """Compare ``whole``, as it is written in ``dtype``, with the tensor of that name."""
        before = self._before.get(name)
        if before is None or before.shape != tuple(whole.shape) or not whole.ndim:
            return
        rows = -(-whole.shape[0] // self._world.size)
        mine = slice(rows * self._world.rank, rows * (self._world.rank + 1))
        with safe_open(before.file, framework="pt") as file:
            new, old = whole[mine].to("cpu", dtype), file.get_slice(name)[mine].to(dtype)
        self._counts += torch.tensor([int((new != old).sum()), new.numel()], device=self._counts.device)

    def share(self) -> float:
        """What has changed of all that was compared, over all ranks."""
        changed, total = self._world.all_sum(self._counts).tolist()
        return changed / total if total else 1.0


def _write(
    model: nn.Module,
    directory: Path,
    dtype: torch.dtype,
    world: World,
    see: Callable[[str, Tensor, torch.dtype], None],
) -> None:
    """Weights and config into ``directory``; ``see`` is shown every parameter whole."""
    if world.rank == 0:
        directory.mkdir(exist_ok=True)
    tensors: dict[str, Callable[[], Tensor]] = {}
    shapes: dict[str, Tensor] = {}
    for name, tensor, whole in full_weights(model):
        # A buffer is a mask, a count or a bias that the family keeps in fp32: not to be rounded with the weights.
        kept = dtype if isinstance(tensor, nn.Parameter) else tensor.dtype
        tensors[name], shapes[name] = whole, torch.empty(tensor.shape, dtype=kept, device="meta")
    plan = split_state_dict_into_shards_factory(
        shapes,
        get_storage_size=lambda tensor: tensor.numel() * tensor.element_size(),
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=SHARD_BYTES,
    )
    for file, names in plan.filename_to_tensors.items():
        held: dict[str, Tensor] = {}
        for name in names:
            whole = tensors[name]()
            if shapes[name].dtype == dtype:
                see(name, whole, dtype)
            if world.rank == 0:
                held[name] = whole.to(device="cpu", dtype=shapes[name].dtype).contiguous()
            del whole
        if world.rank == 0:
            save_file(held, directory / file, metadata={"format": "pt"})
            sync(directory / file)
        # Who ran ahead would wait for all files in one collective, or stop at its time-out: so for one file at a time.
        world.barrier()
    if world.rank == 0:
        if plan.is_sharded:
            index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
            (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
        save_config(model, directory, dtype)


def trained_from(directory: Path, world: World, adapting: bool) -> Path:
    """Where training reads the model in ``directory``: its fp32 weights, if it has them and is to train them itself.

    Rank 0 looks for all: on a file system of several nodes not every one need see them yet.

    Args:
        adapting: It is adapters that are trained, and the weights behind them may be held in less than fp32.
    """
    master = directory / MASTER
    if not world.broadcast(master.is_dir()):
        return directory
    if adapting:
        log.info("%s: adapters are trained on the weights as exported, not on the fp32 ones in %s", directory, MASTER)
        return directory
    log.info("%s: training goes on from its fp32 weights", directory)
    return master


def save_config(model: nn.Module, directory: Path, dtype: torch.dtype) -> None:
    """``config.json`` (and ``generation_config.json``) of a model, as of weights stored in ``dtype``."""
    config = type(model.config).from_dict(model.config.to_dict())
    config.dtype = dtype
    config.architectures = [type(model).__name__]
    config.save_pretrained(directory)
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        generation.save_pretrained(directory)


def _copy_others(source: Path, target: Path) -> None:
    # What a model directory has beside weights and config: the tokenizer's files, a chat template, a licence.
    weights = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".index.json")
    for path in sorted(source.iterdir()):
        if path.is_file() and not path.name.endswith(weights) and not (target / path.name).exists():
            shutil.copyfile(path, target / path.name)
