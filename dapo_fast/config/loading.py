"""A config from where its values are: a preset, a file over it, and overrides over both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dapo_fast.config.run import Config, merge, wrong_key
from dapo_fast.errors import InputError, blaming, one_line, refuse_pipe
from dapo_fast.plain_yaml import read_yaml

PRESET_DIRECTORY = Path(__file__).parents[1] / "presets"


def preset_names() -> list[str]:
    """Names that ``load_config(preset=…)`` takes."""
    return sorted(path.stem for path in PRESET_DIRECTORY.glob("*.yaml"))


def preset_values(name: str) -> dict:
    """What the preset sets, defaults left out; InputError names the presets that exist."""
    if name not in preset_names():
        raise InputError(f"--preset {name}: unknown; there are {', '.join(preset_names())}")
    return read_yaml((PRESET_DIRECTORY / f"{name}.yaml").read_text())


def load_config(
    path: str | Path | None = None, preset: str | None = None, overrides: list[str] | None = None
) -> Config:
    """Read a config: a preset, a YAML file over it, then ``section.key=value`` over both.

    Raises:
        InputError: naming the file or argument and every wrong key at once.
    """
    values = {} if preset is None else preset_values(preset)
    if path is not None:
        if not Path(path).is_relative_to("/dev/fd"):  # where a shell's <(…) is, which is filled for sure
            refuse_pipe(Path(path))
        with blaming(path, "not a readable YAML file"):
            loaded = read_yaml(Path(path).read_text(encoding="utf-8"))
        if not isinstance(loaded, dict):
            raise InputError(f"{path}: a config is a mapping of sections, this is {type(loaded).__name__}")
        values = merge(values, _numbered(loaded, str(path)))
    for override in overrides or []:
        values = merge(values, _numbered(_override(override), one_line(override)))
    source = str(path or preset or "config")
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        raise InputError(_blame(error, source, overrides or [])) from error
    config.check_whole(source)
    return config


def _numbered(values: dict, source: str) -> dict:
    """``by_iteration``'s keys as numbers, as the command line and quoted YAML have text: only equal keys merge."""
    changes = values.get("by_iteration")
    if not isinstance(changes, dict):
        return values
    numbered: dict[Any, Any] = {}
    for key, change in changes.items():
        number = int(key) if isinstance(key, str) and key.isdecimal() and len(key) < 20 else key
        if isinstance(number, bool) or not isinstance(number, int) or number in numbered:
            raise InputError(f"{source}: by_iteration.{key}: an iteration is a number, and is there once")
        numbered[number] = change
    return values | {"by_iteration": numbered}


def _override(text: str) -> dict:
    key, separator, value = text.partition("=")
    parts = key.split(".")
    if not separator or not all(parts):
        raise InputError(f"{one_line(text)}: an override is section.key=value")
    if len(parts) > 4:  # by_iteration.1.actor.lr
        raise InputError(f"{one_line(text)}: there is no setting that deep")
    with blaming(one_line(text), "value is not YAML"):
        result: Any = read_yaml(value)
    for part in reversed(parts):
        result = {part: result}
    return result


def _blame(error: ValidationError, source: str, overrides: list[str]) -> str:
    """Every wrong key, after the override that set it or else after ``source``."""
    found: dict[str, list[str]] = {}
    last = {text.partition("=")[0]: text for text in overrides}
    for wrong in error.errors():
        message, place = wrong_key(wrong), [str(part) for part in wrong["loc"]]
        guilty = [text for key, text in last.items() if _sets(key, place, message)]
        found.setdefault(", ".join(map(one_line, guilty)) or source, []).append(message)
    return "; ".join(f"{who}: {'; '.join(messages)}" for who, messages in found.items())


def _sets(key: str, place: list[str], message: str) -> bool:
    """Whether the override of ``key`` set what is wrong at ``place``; a section's message says which of its keys is."""
    parts = key.split(".")
    shared = min(len(parts), len(place))
    if len(place) > 1 or (place and len(parts) == 1):
        return parts[:shared] == place[:shared]
    return parts[:shared] == place[:shared] and (parts[-1] in message or key in message)
