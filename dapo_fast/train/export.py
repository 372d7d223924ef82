"""Weights out of a model into a Hugging Face directory, a file at a time, under the names that the hub uses."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from dapo_fast.errors import InputError, blaming
from dapo_fast.models.files import Stored, stored_tensors
from dapo_fast.models.hub import as_stored, sources
from dapo_fast.published import sync
from dapo_fast.sums import SUMS, file_sum, write_sums
from dapo_fast.train.adapters import ADAPTERS, export_adapters, gathered
from dapo_fast.train.parallel import World
from dapo_fast.train.weights import ADAPTER, EXPORTED, MASTER, has_adapters, stored_buffers

SHARD_BYTES = 5 * 2**30


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
            yield name.replace(".base_layer.", "."), parameter, lambda p=parameter: gathered(p)
    for name, buffer in stored_buffers(model).items():
        yield name, buffer, lambda b=buffer: gathered(b)


def _merged(weight: Tensor, layer: nn.Module) -> Tensor:
    down, up = gathered(layer.lora_A[ADAPTER].weight), gathered(layer.lora_B[ADAPTER].weight)
    return gathered(weight).float() + layer.scaling[ADAPTER] * (up.float() @ down.float())


def export(
    model: nn.Module, directory: Path, source: Path, dtype: torch.dtype, world: World, master: bool = False
) -> float:
    """Write ``model`` as a Hugging Face directory: parameters in ``dtype``, buffers as they are, config, tokenizer.

    It appears whole or not at all. Of a policy with adapters, ``directory/adapter`` holds these alone too.

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
    sums = _write(model, temporary, dtype, world, changes.count)
    if world.rank == 0:
        _copy_others(source, temporary)
        write_sums(temporary, sums)
    if has_adapters(model) and not hasattr(model, "score"):  # a critic's head is no adapter
        export_adapters(model, temporary / ADAPTERS, source, world)
    if master and dtype != torch.float32:
        sums = _write(model, temporary / MASTER, torch.float32, world, lambda *_: None)
        if world.rank == 0:
            # They belong to those weights and to no others.
            write_sums(temporary / MASTER, sums | {EXPORTED: file_sum(temporary / SUMS)})
    if world.rank == 0:
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
) -> dict[str, list[int]]:
    """Weights and config into ``directory``; ``see`` is shown every parameter whole. Rank 0 gets the weights' sums."""
    if world.rank == 0:
        directory.mkdir(exist_ok=True)
    tensors = {name: whole for name, _, whole in full_weights(model)}
    shapes = _shapes(model, dtype)
    layout = as_stored(model, shapes)
    owner = {name: own for own, parts in layout.items() for name in parts}
    plan = split_state_dict_into_shards_factory(
        {name: part for parts in layout.values() for name, part in parts.items()},
        get_storage_size=lambda tensor: tensor.numel() * tensor.element_size(),
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=SHARD_BYTES,
    )
    sums: dict[str, list[int]] = {}
    parts: dict[str, Tensor] = {}  # of the tensor at hand, which may go on in the next file
    for file, names in plan.filename_to_tensors.items():
        held: dict[str, Tensor] = {}
        for name in names:
            own = owner[name]
            if name not in parts:
                whole = tensors[own]()
                parts = {own: whole} if layout[own].keys() == {own} else as_stored(model, {own: whole})[own]
            if shapes[own].dtype == dtype:
                see(name, parts[name], dtype)
            if world.rank == 0:
                # A copy: what is cut out of one tensor would be written as one memory.
                held[name] = parts[name].to(device="cpu", dtype=shapes[own].dtype, copy=True).contiguous()
        if world.rank == 0:
            save_file(held, directory / file, metadata={"format": "pt"})
            sync(directory / file)
            sums[file] = file_sum(directory / file)
        # Who ran ahead would wait for all files in one collective, or stop at its time-out: so for one file at a time.
        world.barrier()
    if world.rank == 0:
        if plan.is_sharded:
            index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
            (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
        save_config(model, directory, dtype)
    return sums


def _shapes(model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """What ``full_weights`` names, on the meta device, in the types that are written."""
    shapes: dict[str, Tensor] = {}
    for name, tensor, _ in full_weights(model):
        # A buffer is a mask, a count or a bias that the family keeps in fp32: not to be rounded with the weights.
        kept = dtype if isinstance(tensor, nn.Parameter) else tensor.dtype
        shapes[name] = torch.empty(tensor.shape, dtype=kept, device="meta")
    return shapes


def check_export(model: PreTrainedModel, source: Path) -> None:
    """InputError, naming ``source``, where not all that training exports of ``model`` would be read from its files.

    Args:
        model: On any device: names and shapes are compared.
    """
    shapes = _shapes(model, torch.float32)
    with blaming(source, f"a {type(model).__name__} that cannot be exported"):
        parts = {name: part for held in as_stored(model, shapes).values() for name, part in held.items()}
        stored = {name: Stored(source, "F32", tuple(part.shape)) for name, part in parts.items()}
        read = {name: held.shape for name, held in sources(model, shapes.keys(), stored).items()}
    lost = sorted(name for name, tensor in shapes.items() if read.get(name) != tuple(tensor.shape))
    if lost:
        raise InputError(f"{source}: {lost[0]} of a {type(model).__name__} would not be read from what is exported")


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
    weights = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".onnx_data", ".ot")
    not_these = (*weights, ".index.json", SUMS)
    for path in sorted(source.iterdir()):
        if path.is_file() and not path.name.endswith(not_these) and not (target / path.name).exists():
            shutil.copyfile(path, target / path.name)
