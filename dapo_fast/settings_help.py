"""Every setting with its default and what it means, read off ``config``: the list that ``--help`` ends with."""

from __future__ import annotations

import inspect
import json
import re
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from dapo_fast.config import Config, Section

_COMMENTED = re.compile(r"^    (\w+): .*?  # (.*)$", re.MULTILINE)
_WIDTH = 42


def settings_help() -> str:
    """One line a setting, ``section.key=default`` and its meaning, section by section."""
    lines = ["settings, with their defaults (SECTION.KEY=VALUE, or a YAML file of sections):", ""]
    sections = [(name, kind) for name in Config.model_fields if (kind := section_of(name)) is not None]
    lines += _of(Config, "")
    for name, kind in sections:
        lines += ["", f"{name}: {inspect.getdoc(kind).splitlines()[0]}", *_of(kind, f"{name}.")]
    return "\n".join(lines) + "\n"


def section_of(name: str) -> type[BaseModel] | None:
    """The class of the section ``name`` of a config; None for a setting that stands alone."""
    kind = Config.model_fields[name].annotation
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def meanings(kind: type[BaseModel]) -> dict[str, str]:
    """Setting → what the comment beside it says, and its choices."""
    said: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if issubclass(base, Section):
            said |= dict(_COMMENTED.findall(inspect.getsource(base)))
    for key, field in kind.model_fields.items():
        if choices := _choices(field.annotation):
            said[key] = "; ".join(filter(None, [" | ".join(choices), said.get(key)]))
    return said


def _of(kind: type[BaseModel], prefix: str) -> list[str]:
    said = meanings(kind)
    lines = []
    for key, field in kind.model_fields.items():
        if kind is Config and section_of(key) is not None:
            continue
        default = field.get_default(call_default_factory=True)
        setting = f"  {prefix}{key}={default if isinstance(default, str) else json.dumps(default)}"
        lines.append(f"{setting:<{_WIDTH}} {said.get(key, '')}".rstrip())
    return lines


def _choices(annotation: Any) -> list[str]:
    if get_origin(annotation) is Literal:
        return [str(choice) for choice in get_args(annotation)]
    return []
