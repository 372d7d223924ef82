"""The trees that a stage trains on: one file beside its checkpoints, which all ranks map into memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from dapo_fast.data.mapped import MappedTrees
from dapo_fast.data.store import write_columns
from dapo_fast.train.parallel import World

TREES = "trees.arrow"


@contextlib.contextmanager
def open_trees(store: Path, directory: Path, world: World) -> Iterator[MappedTrees]:
    """The trees of ``store``, from one file in the stage's ``directory`` that every rank maps into memory.

    Within the block there is the file, and so there is the directory.
    """
    path = directory / TREES

    try:
        world.from_first(lambda: write_columns(store, path))
        yield MappedTrees(path)
    finally:
        if world.rank == 0:
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                directory.rmdir()  # of a stage that got no further
