"""What a chosen optimizer step does: torch.profiler's trace and, on CUDA, the history of the allocator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import profile

from dapo_fast.train.parallel import World

_EVENTS = 1_000_000  # of the allocator that a snapshot keeps, the newest: more than a step of many packs makes


@contextmanager
def profiled(directory: Path, step: int, wanted: bool, world: World) -> Iterator[None]:
    """Trace the block where it is ``wanted``, on every rank: ``directory/profile/step-STEP-rank-RANK.json.gz``.

    The trace is for chrome://tracing, Perfetto or TensorBoard. Beside it, on CUDA, a ``.pickle`` of what was allocated
    and by whom, for https://pytorch.org/memory_viz.
    """
    if not wanted:
        yield
        return
    path = directory / "profile" / f"step-{step}-rank-{world.rank}"
    path.parent.mkdir(parents=True, exist_ok=True)
    cuda = world.device.type == "cuda"
    if cuda:
        torch.cuda.memory._record_memory_history(max_entries=_EVENTS)
    try:
        with profile(record_shapes=True, profile_memory=True) as trace:
            yield
        trace.export_chrome_trace(f"{path}.json.gz")
        if cuda:
            torch.cuda.memory._dump_snapshot(f"{path}.pickle")
    finally:
        if cuda:
            torch.cuda.memory._record_memory_history(enabled=None)
