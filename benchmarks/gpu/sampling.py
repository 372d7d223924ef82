"""In-process sampling of every state of a response against ``transformers.generate``."""

from __future__ import annotations

from collections.abc import Iterator

from rollout import states, tiny_config
from step_tree import SHAPES

from .sections import Setup


def rows(setup: Setup) -> Iterator[dict]:
    """One row: tokens a second of both."""
    if setup.dry:
        yield states(tiny_config(32, 1), 2, 1, setup.device, count=2)
    else:
        yield states(SHAPES["0.5B"], 16, 3, setup.device, count=4)
