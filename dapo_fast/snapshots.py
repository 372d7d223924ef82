"""Models of the hub: ``org/name`` or ``org/name@revision``, wherever a model's directory is taken.

A directory that is there is meant where there is one. Cache, token and offline mode are those of ``huggingface_hub``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from dapo_fast.errors import InputError, reason

_ID = re.compile(r"\w[\w.-]{,95}/\w[\w.-]{,95}(@[\w./-]{1,200})?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_WEIGHTS = ["*.safetensors"]
# What is not read: weights in formats that are refused, and those of other libraries.
_OTHERS = ["*.bin", "*.pt", "*.pth", "*.gguf", "*.onnx", "*.h5", "*.msgpack", "*.ot", "original/*", "onnx/*"]


def of_the_hub(name: str | Path) -> bool:
    """Whether ``name`` is that of a model of the hub, as far as one can tell without asking: no such file is here."""
    return _ID.fullmatch(str(name)) is not None and not Path(name).exists()


def model_directory(setting: str, name: str | Path, weights: bool = True) -> Path:
    """The directory that ``name`` is, or that the model of the hub with that name is in once it is fetched.

    Args:
        setting: What the message of an error begins with.
        weights: Whether files of weights are to be there too.

    Raises:
        InputError: it is not on the hub, or cannot be had from there.
    """
    return _fetched(setting, str(name), weights) if of_the_hub(name) else Path(name)


@cache
def _fetched(setting: str, name: str, weights: bool) -> Path:
    from huggingface_hub import snapshot_download

    repository, _, revision = name.partition("@")
    ignored = _OTHERS if weights else _OTHERS + _WEIGHTS
    with _asking(setting, name):
        return Path(snapshot_download(repository, revision=revision or None, ignore_patterns=ignored))


def origin(directory: Path) -> tuple[str, str | None]:
    """Name and commit of the model of the hub that a directory of its cache holds; of any other its path, and None."""
    *_, repository, snapshots, commit = ("", "", *directory.parts)
    if snapshots != "snapshots" or not repository.startswith("models--"):
        return str(directory), None
    return repository.removeprefix("models--").replace("--", "/"), commit


def cached(name: str) -> Path:
    """Where ``name`` is, if it is here; nothing is fetched."""
    from huggingface_hub import try_to_load_from_cache

    repository, _, revision = name.partition("@")
    found = try_to_load_from_cache(repository, "config.json", revision=revision or None) if of_the_hub(name) else None
    return Path(found).parent if isinstance(found, str) else Path(name)


def pinned(setting: str, name: str, before: str | None = None) -> str:
    """``name`` with the commit that it stands for, or ``before``, of the same model, where it names no revision.

    Raises:
        InputError: as ``model_directory``; of the model only its config.json is fetched.
    """
    repository, _, revision = name.partition("@")
    if not of_the_hub(name) or _COMMIT.fullmatch(revision):
        return name
    if before is not None and not revision and before.startswith(f"{repository}@"):
        return before
    from huggingface_hub import hf_hub_download

    with _asking(setting, name):
        file = hf_hub_download(repository, "config.json", revision=revision or None)
    return f"{repository}@{Path(file).parent.name}"


@contextmanager
def _asking(setting: str, name: str) -> Iterator[None]:
    from huggingface_hub import errors

    said = {  # the first that fits
        errors.GatedRepoError: "is gated: accept its terms on the hub, and set HF_TOKEN",
        errors.RepositoryNotFoundError: "is not there (or is private: set HF_TOKEN)",
        errors.RevisionNotFoundError: "has no such revision",
        errors.LocalEntryNotFoundError: "is not in the cache, and the hub cannot be reached",
        errors.EntryNotFoundError: "has no config.json",
    }
    try:
        yield
    except Exception as error:
        # Its client raises a dozen unrelated types, those of two libraries for HTTP among them.
        why = next((text for kind, text in said.items() if isinstance(error, kind)), f"cannot be had: {reason(error)}")
        raise InputError(f"{setting} {name}: no such directory, and as a model of the hub it {why}") from error
