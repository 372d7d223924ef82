"""The hub's names and layouts of weights, where they are not the model's: transformers renames and merges as it loads.

The hub keeps every expert by itself; a model holds those of a layer in one tensor. What transformers knows of a family
(its weight conversions) is used here tensor by tensor, so that no process needs the whole model.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    Transpose,
    WeightConverter,
    dot_natural_key,
    rename_source_key,
    revert_weight_conversion,
)

from dapo_fast.models.files import Stored

Open = Callable[[Path], Any]  # a safetensors file, opened once: of experts there are thousands in one


class Source(Protocol):
    """Where a tensor of the model is read from."""

    shape: tuple[int, ...]
    names: list[str]  # what it is made of, as the files name it

    def rows(self, part: slice) -> Tensor:
        """Some of its rows."""


class Plain:
    """A tensor that the files hold as it is."""

    def __init__(self, name: str, stored: Stored, opened: Open) -> None:
        self.names, self.shape = [name], stored.shape
        self._file, self._open = stored.file, opened

    def rows(self, part: slice) -> Tensor:
        held = self._open(self._file).get_slice(self.names[0])
        return held[part] if self.shape else held[...]


class Converted:
    """A tensor that ``converter`` makes of several in the files, or of a part of one.

    Attributes:
        name: The model's.
    """

    def __init__(self, name: str, converter: WeightConverter, model: PreTrainedModel, opened: Open) -> None:
        self.name, self.names = name, []
        self._first = name  # of what is made of the same tensors
        self._converter, self._model, self._open = converter, model, opened
        self._held: dict[str, list[tuple[str, Stored]]] = {}

    def add(self, pattern: str, name: str, stored: Stored) -> None:
        """``name`` belongs to it, as ``pattern`` of the converter says."""
        self._held.setdefault(pattern, []).append((name, stored))
        self.names.append(name)

    @functools.cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Of all that is made of the same tensors, by the model's names."""
        held = {p: [torch.empty(s.shape, device="meta") for _, s in parts] for p, parts in self._held.items()}
        return {name: tuple(made.shape) for name, made in self._convert(held).items()}

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shapes[self.name]

    def all_made(self) -> dict[str, Converted]:
        """What the converter makes of the same tensors, itself among them: more where it splits one."""
        made = {name: copy.copy(self) for name in self._shapes} if len(self._converter.target_patterns) > 1 else {}
        for name, other in made.items():
            other.name = name
        return made or {self.name: self}

    @property
    def _by_rows(self) -> bool:
        """Whether a row is made of one tensor of each pattern: an expert is."""
        first, *later = self._converter.operations
        return (
            isinstance(first, MergeModulelist)
            and first.dim == 0
            and all(
                (isinstance(op, Concatenate) and op.dim) or (isinstance(op, Transpose) and op.dim0 and op.dim1)
                for op in later
            )
        )

    def rows(self, part: slice) -> Tensor:
        mine = part if self._by_rows else slice(None)
        read = {
            pattern: [self._open(stored.file).get_tensor(name) for name, stored in held[mine]]
            for pattern, held in self._held.items()
        }
        if not all(read.values()):  # a rank that owns no row
            return torch.empty((0, *self.shape[1:]))
        made = self._convert(read)[self.name]
        return made if self._by_rows else made[part]

    def _convert(self, tensors: Mapping[str, list[Tensor]]) -> dict[str, Tensor]:
        converter = copy.deepcopy(self._converter)
        for pattern, parts in tensors.items():
            for number, part in enumerate(parts):
                converter.add_tensor(self._first, f"{pattern} {number}", pattern, part)
        made = converter.convert(self._first, model=self._model, config=self._model.config)
        return {name: tensor[0] if isinstance(tensor, list) else tensor for name, tensor in made.items()}


def sources(model: PreTrainedModel, names: Collection[str], stored: Mapping[str, Stored]) -> dict[str, Source]:
    """Every tensor that the files hold of ``model``, by the model's name, or by the file's where the model has none.

    Args:
        names: Of the model's tensors, all names of those that are tied.
    """
    transforms = get_model_conversion_mapping(model)
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    renamings = [transform for transform in transforms if not isinstance(transform, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    opened = functools.cache(functools.partial(safe_open, framework="pt"))
    known: dict[str, Any] = dict.fromkeys(names, True)
    found: dict[str, Source] = {}
    for name in sorted(stored, key=dot_natural_key):
        own, pattern = name, None
        if name not in known:
            own, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, known)
        if own not in known:
            found[name] = Plain(name, stored[name], opened)
        elif pattern is None:
            found[own] = Plain(name, stored[name], opened)
        else:
            merged = found.setdefault(own, Converted(own, by_pattern[pattern], model, opened))
            merged.add(pattern, name, stored[name])
    for source in [source for source in found.values() if isinstance(source, Converted)]:
        found |= source.all_made()
    return found


def as_stored(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """What the hub holds of each of the model's ``tensors``, by the model's name: {its names there: tensors}.

    Where a family's files merge several tensors of the model, all stay as the model has them: transformers reads both.
    """
    whole = revert_weight_conversion(model, dict(tensors))
    parts = {name: revert_weight_conversion(model, {name: tensor}) for name, tensor in tensors.items()}
    shapes = [(name, part.shape) for held in parts.values() for name, part in held.items()]
    alike = len(shapes) == len(whole) and all(name in whole and whole[name].shape == shape for name, shape in shapes)
    return parts if alike else {name: {name: tensor} for name, tensor in tensors.items()}
