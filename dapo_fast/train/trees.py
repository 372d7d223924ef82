"""The trees that a stage trains on: one file beside its checkpoints, which all ranks map into memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from dapo_fast.data.mapped import MappedTrees
from dapo_fast.data.store import write_columns
from dapo_fast.errors import InputError
from dapo_fast.train.parallel import World

TREES = "trees.arrow"


@contextlib.contextmanager
def open_trees(store: Path, directory: Path, world: World) -> Iterator[MappedTrees]:
    """The trees of ``store``, from one file in the stage's ``directory`` that every rank maps into memory.

    Within the block there is the file, and so there is the directory.
    """
    path = directory / TREES

    def write() -> str | None:
        try:
            write_columns(store, path)
        except InputError as error:
            return str(error)
        return None

    try:
        # Nobody waits for a rank that has left: what is wrong with the trees is said to all.
        error = world.broadcast(write() if world.rank == 0 else None)
        if error is not None:
            raise InputError(error)
        yield MappedTrees(path)
    finally:
        if world.rank == 0:
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                directory.rmdir()  # of a stage that got no further
