"""What the files of a model directory hold, and whether that is the model: names, shapes, types and finite values.

Every path that loads a model asks here, so that a file is right or wrong whichever way it is read. A tensor that is
missing would train as random numbers, and one that has no place is the weight of another model.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from dapo_fast.errors import InputError, blaming, first_line, refuse_pipe
from dapo_fast.models.checks import PROVED
from dapo_fast.sums import check_model

FLOATING = ("F64", "F32", "F16", "BF16")
_ROWS = 4096  # of two tied matrices, compared at a time
_FILES = ["config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json"]


@dataclass(frozen=True)
class Stored:
    """One tensor of a safetensors file, as the file's header has it."""

    file: Path
    dtype: str  # as safetensors names it: "F32", "BF16", "I8"
    shape: tuple[int, ...]


def stored_tensors(source: str | Path) -> dict[str, Stored]:
    """Name → tensor in the safetensors files of a model directory or hub id; reads their headers only.

    Raises:
        InputError: no safetensors there, an index or a file that cannot be read, or a tensor that two files hold.
    """
    directory = Path(source)
    if not directory.is_dir():
        try:
            directory = Path(snapshot_download(str(source), allow_patterns=_FILES))
        except (OSError, ValueError) as error:
            raise InputError(f"{source}: not a readable model directory ({first_line(error)})") from error
    found: dict[str, Stored] = {}
    for path in _weight_files(directory):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - it is no mapping
                    if name in found:
                        raise InputError(f"{path}: holds {name}, and {found[name].file.name} does so too")
                    part = file.get_slice(name)
                    found[name] = Stored(path, part.get_dtype(), tuple(part.get_shape()))
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path}: not a readable safetensors file ({first_line(error)})") from error
    return found


def _weight_files(directory: Path) -> list[Path]:
    """The files that transformers would read: one of the plain name, else those that the index names."""
    single = directory / "model.safetensors"
    index = directory / "model.safetensors.index.json"
    if single.exists():
        refuse_pipe(single)
        return [single]
    if not index.exists():
        raise InputError(f"{directory}: no model.safetensors here; weights of other formats are not read")
    with blaming(index, "not an index of safetensors files"):
        files = sorted({directory / file for file in json.loads(index.read_text())["weight_map"].values()})
    for file in files:
        if not file.is_file():
            raise InputError(f"{file}: missing, though {index.name} names it")
    return files


def tied_groups(model: nn.Module) -> list[tuple[list[str], nn.Parameter]]:
    """Every parameter with all its names, in the model's order; more than one where it is tied."""
    groups: dict[int, tuple[list[str], nn.Parameter]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), ([], parameter))[0].append(name)
    return list(groups.values())


def untied_in_files(model: nn.Module, stored: Mapping[str, Stored]) -> tuple[str, str] | None:
    """Two names of one parameter of ``model`` of which the files hold different values, or None."""
    for names, _ in tied_groups(model):
        held = [name for name in names if name in stored]
        for other in held[1:]:
            if not _same_values(held[0], other, stored):
                return held[0], other
    return None


def _same_values(first: str, second: str, stored: Mapping[str, Stored]) -> bool:
    a, b = stored[first], stored[second]
    if a.shape != b.shape:
        return False
    with safe_open(a.file, framework="pt") as one, safe_open(b.file, framework="pt") as other:
        left, right = one.get_slice(first), other.get_slice(second)
        return all(
            torch.equal(left[start : start + _ROWS].float(), right[start : start + _ROWS].float())
            for start in range(0, a.shape[0], _ROWS)
        )


def read_pretrained(auto: Any, source: str | Path, fresh_head: bool = False, **options: Any) -> PreTrainedModel:
    """``auto.from_pretrained(source, **options)``, every tensor of which comes from the files.

    Args:
        auto: One of transformers' ``AutoModel…`` classes.
        fresh_head: The head on the backbone may be new, and the files may hold the head of a causal LM.

    Raises:
        InputError: as ``check_model``, ``stored_tensors`` and ``refuse``, or a value is not finite.
    """
    check_model(source, weights=True)
    stored = stored_tensors(source)
    with blaming(source, "not a readable model directory"), _quiet():
        # Mismatches are collected, like the rest, instead of raised as a table of several lines.
        model, info = auto.from_pretrained(
            source, output_loading_info=True, ignore_mismatched_sizes=True, use_safetensors=True, **options
        )
    state = model.state_dict()
    mismatched = {name: (tuple(has), tuple(wants)) for name, has, wants in info["mismatched_keys"]}
    refuse(model, state, source, stored, info["missing_keys"], info["unexpected_keys"], mismatched, fresh_head)
    _restore(model, state, stored)
    for name, tensor in state.items():
        if not is_finite(tensor):
            raise InputError(not_finite(source, stored, name))
    return model


@torch.no_grad()
def _restore(model: PreTrainedModel, state: Mapping[str, Tensor], stored: Mapping[str, Stored]) -> None:
    """Have ``model`` hold what its files do: some families' initial values are written over what was read.

    Youtu's padding row and Zaya's last router bias are; the families of ``PROVED`` have none.
    """
    from dapo_fast.models.hub import Plain, sources  # late: it reads files with this module

    if model.config.model_type in PROVED:
        return
    for name, read in sources(model, state.keys(), stored).items():
        if isinstance(read, Plain) and name in state:
            state[name].copy_(read.rows(slice(None)))


def refuse(
    model: PreTrainedModel,
    state: Mapping[str, Tensor],
    source: str | Path,
    stored: Mapping[str, Stored],
    missing: Iterable[str],
    unexpected: Iterable[str],
    mismatched: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]],
    fresh_head: bool,
) -> None:
    """Refuse files that are not the model's.

    Args:
        state: The model's tensors by name, on any device.
        missing, unexpected: Names that only the model, or only the files, have.
        mismatched: Name → shape in the files, shape in the model.
        fresh_head: As in ``read_pretrained``.

    Raises:
        InputError: names the file, a tensor and what is wrong with it.
    """
    missing = sorted(name for name in missing if not (fresh_head and _of_head(model, name)))
    unexpected = set(unexpected)
    if fresh_head and unexpected:
        unexpected -= _head_of_causal_lm(model)
    for name, (has, wants) in sorted(mismatched.items()):
        raise InputError(f"{_file(source, stored, name)}: {name} has shape {has}, the model wants {wants}")
    if missing:
        raise InputError(f"{source}: no tensor {missing[0]}{_more(missing)} in its safetensors")
    if unexpected:
        name = sorted(unexpected)[0]
        raise InputError(
            f"{_file(source, stored, name)}: {name}{_more(unexpected)} has no place in a {type(model).__name__} of "
            "this config"
        )
    ignored = ignored_in_files(model)
    counts = _names(model, {name: tensor for name, tensor in state.items() if not tensor.is_floating_point()})
    for name, tensor in stored.items():
        if tensor.dtype in FLOATING or ignored(name) or name in counts:
            continue
        raise InputError(f"{tensor.file}: {name} is {tensor.dtype}: quantised weights cannot be trained or read")


def ignored_in_files(model: PreTrainedModel) -> Callable[[str], bool]:
    """Whether a name in the files is one that transformers leaves out, such as buffers of older releases."""
    patterns = [*(model._keys_to_ignore_on_load_unexpected or ()), r"rotary_emb\.inv_freq", r"(^|\.)position_ids$"]
    pattern = re.compile("|".join(f"({p})" for p in patterns))
    return lambda name: pattern.search(name) is not None


def is_finite(tensor: Tensor) -> bool:
    """Whether every value is; one pass that allocates nothing."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    return all(math.isfinite(bound) for bound in torch.aminmax(tensor.detach()))


def not_finite(source: str | Path, stored: Mapping[str, Stored], name: str) -> str:
    """What to say of a tensor with such a value."""
    return f"{_file(source, stored, name)}: {name} holds values that are not finite"


def _file(source: str | Path, stored: Mapping[str, Stored], name: str) -> str | Path:
    return stored[name].file if name in stored else source


def _more(names: Collection[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _of_head(model: PreTrainedModel, name: str) -> bool:
    return not name.startswith(model.base_model_prefix + ".")


def _head_of_causal_lm(model: PreTrainedModel) -> set[str]:
    """Names, its own and the hub's, of what the causal LM of ``model``'s config has on its backbone."""
    with torch.device("meta"):
        causal_lm = AutoModelForCausalLM.from_config(model.config)
    return _names(causal_lm, {name: t for name, t in causal_lm.state_dict().items() if _of_head(causal_lm, name)})


def _names(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> set[str]:
    """The names of ``tensors`` of ``model``, and those that the hub's files have for them."""
    from dapo_fast.models.hub import as_stored  # late: it reads files with this module

    shapes = {name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta") for name, tensor in tensors.items()}
    return shapes.keys() | {name for parts in as_stored(model, shapes).values() for name in parts}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # What transformers warns of while it loads is an error here, said in one line.
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)
