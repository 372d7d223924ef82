"""A run directory: where each stage lives, and the rule that results of different settings never mix."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import yaml
from pydantic import BaseModel, ValidationError

from dapo_fast import state
from dapo_fast.checked import check_last_line, with_last_line, with_sum, without_sum
from dapo_fast.config import Config, load_config, wrong_keys
from dapo_fast.errors import InputError, blaming, refuse_pipe
from dapo_fast.hashing import digest
from dapo_fast.published import published

# Settings that move work around or bound its size, and leave the mathematics as it is: they may change between a kill
# and the resume, a batch of another pack size still being the same batch.
_FREE = {"save_every", "keep_checkpoints", "pack_tokens", "longest_pack", "attention", "device"}
# What a stage leaves before it has a result: to other settings it goes, and what is said of the past stays.
_PREPARED = {"stage.json", "claim.json", "timing.json", "start", "trees.arrow"}
_SAID = {"config.yaml", "run.log", "server.log", "server.pid", ".lock", "tensorboard"}


def write_json(path: Path, value: Any) -> None:
    """Publish JSON atomically, with its sum: a reader sees the whole file or the one before."""
    with published(path) as file:
        file.write(json.dumps(with_sum(value), indent=1).encode())


def read_text(path: Path) -> str:
    """The text of a file that is there; InputError names one that is no text, or a pipe, which nobody may ever fill."""
    refuse_pipe(path)
    with blaming(path):
        return path.read_text(encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a file that ``write_json`` made; InputError names one that is not JSON, or is damaged."""
    text = read_text(path)
    with blaming(path):
        return without_sum(json.loads(text), path)


def read_state(path: Path, shape: type[BaseModel] | None = None) -> dict[str, Any]:
    """The JSON object in ``path``; InputError names the file, and the keys that do not fit ``shape``."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise InputError(f"{path}: not a JSON object")
    return _fitting(path, shape, value) if shape else value


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a results.json, one an iteration; InputError where it holds anything else."""
    rows = read_json(path)
    if not isinstance(rows, list):
        raise InputError(f"{path}: not a list of one row an iteration")
    return [_fitting(path, state.Row, row) for row in rows]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, one an optimizer step; none where it is not there.

    The last line of a run in flight may be half written, and is left out; InputError names any other that is no step.
    """
    return read_lines(path, state.Step) if path.exists() else []


def read_lines(path: Path, shape: type[BaseModel]) -> list[dict[str, Any]]:
    """The whole lines of a file of JSON lines; InputError names one that does not fit ``shape``."""
    rows = []
    for number, line in enumerate(read_text(path).split("\n")[:-1], 1):
        where = f"{path}, line {number}"
        with blaming(where, "not JSON"):
            row = without_sum(json.loads(line), where)
        rows.append(_fitting(where, shape, row))
    return rows


def _fitting(path: Path | str, shape: type[BaseModel], value: Any) -> Any:
    try:
        shape.model_validate(value)
    except ValidationError as error:
        raise InputError(f"{path}: not what a stage writes there ({wrong_keys(error)})") from error
    return value


def add_seconds(directory: Path, seconds: float) -> None:
    """Add to the time that a stage's work has taken, over all processes that did some of it: ``timing.json``."""
    write_json(directory / "timing.json", {"seconds": seconds_of(directory) + seconds})


def seconds_of(directory: Path) -> float:
    """What ``add_seconds`` has added up; 0 where nothing was."""
    path = directory / "timing.json"
    return float(read_state(path, state.Timing)["seconds"]) if path.exists() else 0.0


def check_run_path(path: str | Path) -> Path:
    """``path``, if a directory can have that name; an empty one would be the directory that one happens to be in."""
    text = str(path)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = ""
    if not text.strip() or "\0" in text:
        raise InputError(f"run directory {str(path)!r}: not the name of a directory")
    return Path(path)


def saved_config(path: Path, overrides: list[str] | None = None) -> Config:
    """The settings that ``save_config`` wrote to ``path``; InputError where they are damaged."""
    check_last_line(read_text(path), path)
    return load_config(path, None, overrides)


class RunDirectory:
    """One run: its config, its lock, and the directories of its stages.

    Layout: ``config.yaml``, ``run.log``, ``results.json``, ``sft/``, ``iterN/{collect,critic,advantages,actor,
    evaluate}/``; ``iter0/evaluate`` measures the policy before the first iteration.
    """

    def __init__(self, path: str | Path, config: Config | None) -> None:
        """Open ``path``; ``config`` None takes the one saved there.

        Raises:
            InputError: no config is given and none, or no valid one, is saved.
        """
        self.path = check_run_path(path)
        config = self.saved() if config is None else config
        if config is None:
            raise InputError(f"{self.path}: no config.yaml here; start the run with --config FILE or --preset NAME")
        self.config = config
        self._lock: IO[str] | None = None

    def saved(self) -> Config | None:
        """The settings that ``save_config`` wrote; None where it did not."""
        path = self.path / "config.yaml"
        return saved_config(path) if path.exists() else None

    def save_config(self) -> None:
        """Write the settings in force to ``config.yaml``."""
        self.path.mkdir(parents=True, exist_ok=True)
        text = with_last_line(yaml.safe_dump(self.config.model_dump(mode="json"), sort_keys=False))
        with published(self.path / "config.yaml") as file:
            file.write(text.encode())

    def lock(self) -> None:
        """Hold the directory until this process ends; InputError if another process does."""
        for name in (".lock", "run.log"):
            refuse_pipe(self.path / name)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.path / ".lock", "w")  # noqa: SIM115 - held for the life of the process
        except OSError as error:
            raise InputError(f"{self.path}: cannot be used as a run directory ({error.strerror})") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock = None
            raise InputError(f"{self.path}: another process is working in this run directory") from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory within the block, unless it is held already."""
        if self._lock is not None:
            yield
            return
        self.lock()
        try:
            yield
        finally:
            if self._lock is not None:
                self._lock.close()
            self._lock = None

    def held(self) -> list[int]:
        """The file descriptor of the lock, if it is held: a process that inherits it holds the directory too."""
        return [self._lock.fileno()] if self._lock else []

    def stage(self, iteration: int, name: str) -> Path:
        """Where stage ``name`` of ``iteration`` keeps its files."""
        return self.path / "sft" if name == "sft" else self.path / f"iter{iteration}" / name

    def claim(self, directory: Path, settings: dict[str, Any]) -> str:
        """Bind ``directory`` to ``settings`` and return their digest; a claim without results binds nobody.

        Raises:
            InputError: the directory holds results of other settings; names the keys that differ.
        """
        self.check(directory, settings)
        if self.changed(directory, settings) != []:
            for name in _PREPARED:
                left = directory / name
                shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
            write_json(directory / "stage.json", {"digest": _digest(settings), "settings": _claimed(settings)})
        return _digest(settings)

    def check(self, directory: Path, settings: dict[str, Any]) -> None:
        """Raise what ``claim`` would, and leave everything as it is."""
        changed = self.changed(directory, settings)
        if changed and _has_results(directory):
            raise InputError(
                f"{directory}: holds results of other settings: {', '.join(changed)}; "
                "use a new run directory, or put the settings back"
            )

    def changed(self, directory: Path, settings: dict[str, Any]) -> list[str] | None:
        """In which keys ``settings`` differ from those that ``directory`` is claimed for; None where it is not."""
        path = directory / "stage.json"
        if not path.exists():
            return None
        before = read_state(path, state.Claim)["settings"]
        return [f"{key} ({old!r}, now {new!r})" for key, old, new in _differences(before, _claimed(settings))]


def _digest(settings: dict[str, Any]) -> str:
    return digest(_claimed(settings))


def _claimed(settings: dict[str, Any]) -> dict[str, Any]:
    return _without_free(json.loads(json.dumps(settings)))


def _has_results(directory: Path) -> bool:
    for path in directory.rglob("*"):
        parts = path.relative_to(directory).parts
        unfinished = parts[0] in _PREPARED | _SAID or any(part.endswith(".tmp") for part in parts)
        if not unfinished and path.is_file() and path.stat().st_size:
            return True
    return False


def _without_free(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_free(v) for k, v in value.items() if k not in _FREE}
    return value


def _differences(before: Any, now: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted(before.keys() | now.keys())
        return [d for k in keys for d in _differences(before.get(k), now.get(k), f"{key}.{k}".lstrip("."))]
    return [] if before == now else [(key, before, now)]
