"""dapo-fast: Direct Advantage-Based Policy Optimization (arXiv 2412.18279) on step trees."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dapo_fast.api import DAPO
    from dapo_fast.config import Config, load_config

__version__ = "0.1.0"
__all__ = ["DAPO", "Config", "load_config"]

_HOMES = {"DAPO": "dapo_fast.api", "Config": "dapo_fast.config", "load_config": "dapo_fast.config"}


def __getattr__(name: str) -> Any:
    # Late, so that a part of the package costs no more than itself.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
