"""A run goes on from the models of the hub that it began with: its settings hold their commits, ``org/name@commit``."""

from __future__ import annotations

from collections.abc import Callable

from dapo_fast.config import Config, merge
from dapo_fast.snapshots import of_the_hub, pinned


def models_of(config: Config) -> dict[str, str]:
    """Setting → model of the hub, of all that ``config`` names."""
    named = {"model.path": config.model.path, "critic.init": config.critic.init}
    for iteration, change in config.by_iteration.items():
        named[f"by_iteration.{iteration}.critic.init"] = (change.get("critic") or {}).get("init")
    return {setting: name for setting, name in named.items() if name is not None and of_the_hub(name)}


def pin(config: Config, saved: Callable[[], Config | None]) -> Config:
    """``config`` with the commit of every model of the hub.

    Args:
        saved: Gives the settings that the run had before, if it had any.
    """
    named = models_of(config)
    if not named:
        return config
    before = saved()
    known = {} if before is None else models_of(before)
    for setting, name in named.items():
        *sections, key = setting.split(".")
        change: dict = {key: pinned(setting, name, known.get(setting))}
        for section in reversed(sections):
            change = {int(section) if section.isdecimal() else section: change}
        config = Config.model_validate(merge(config.model_dump(), change))
    return config
