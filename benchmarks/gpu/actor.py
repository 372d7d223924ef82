"""A step of the actor at real sizes: step trees against one sequence a pair in variable-length packs with Liger."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from step_tree import SHAPES, compare, disagreements, generated_trees

from .sections import Setup

CASES = {"0.5B": {"problems": 2, "trunks": 6}, "1.5B": {"problems": 2, "trunks": 4}}
DRY = {"trunks": 1, "trunk_tokens": 80, "candidates": 2, "kept": 1.0}


def rows(setup: Setup) -> Iterator[dict]:
    """One row a peer and shape: pairs a second, MFU, the shares of a step.

    AssertionError, after the last of them, where peers computed different losses.
    """
    wrong = []
    for shape, size in ({"tiny": {"problems": 1} | DRY} if setup.dry else CASES).items():
        late = list(setup.in_time(f"actor, {shape}"))
        yield from late
        if not late:
            trees = generated_trees(0, vocabulary=SHAPES[shape].vocab_size, **size)
            found = compare(shape, "generated", trees, setup.device, 1 if setup.dry else 3, names=["flat", "tree"])
            liger = setup.device.type == "cuda" and find_spec("liger_kernel") is not None  # as models.loading decides
            yield from (row | {"suite": "gpu_actor", "liger": liger} for row in found)
            wrong += disagreements(found)
    if wrong:
        raise AssertionError("; ".join(wrong))
