"""The fused loss at the shapes of four models: over chunk sizes, and against the floor and whoever is installed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial

from fused_loss import PEERS, Peer, Problem, described, make_problem, ours, ours_with_shared_rows, run_shape, why_not
from roofline import GPU_SHAPES, epilogue_passes, expected_ratio, shared_passes
from torch import Tensor

from .sections import Setup

CHUNK_ROWS = (1024, 2048, 4096)
ROUNDS = 5
LIMIT = 2e-2  # largest difference between our chunk sizes, relative to the largest value


def rows(setup: Setup) -> Iterator[dict]:
    """One row a peer, chunk size and shape, as soon as it is measured; not of the compiled naive loss, which takes
    longer to compile than all the rest to run.

    AssertionError, after the last of them, where our own rows differ by more than ``LIMIT``.
    """
    sizes = (8,) if setup.dry else CHUNK_ROWS
    variants = {
        f"dapo-fast, chunks of {n}": Peer(
            partial(ours, chunk_rows=n), "dapo-fast", expected=partial(expected_ratio, chunk_rows=n)
        )
        for n in sizes
    }
    shared, epilogue = (partial(expected_ratio, counted=counted) for counted in (shared_passes, epilogue_passes))
    variants["dapo-fast, shared rows"] = Peer(ours_with_shared_rows, "dapo-fast", "shared rows", expected=shared)
    variants["dapo-fast, epilogue"] = Peer(with_epilogue, "dapo-fast", expected=epilogue)
    peers = {name: peer for name, peer in PEERS.items() if "compile" not in name}
    if setup.dry:
        peers = {name: peers[name] for name in ("dapo-fast", "naive")}
    peers |= variants
    wrong = []
    for shape in [(64, 16, 53)] if setup.dry else GPU_SHAPES:
        problem = None
        for name, peer in peers.items():
            late = list(setup.in_time("fused loss, N={} H={} V={}, {}".format(*shape, name)))
            yield from late
            if late:
                continue
            if reason := why_not(peer, setup.device.type):
                yield described(shape, setup.device.type, name, peer) | {"unavailable": reason}
                continue
            problem = problem or make_problem(shape, setup.device.type)
            row = _row(shape, name, peer, problem, setup)
            yield row
            difference = row.get("difference_from_ours", 0.0)
            if name.startswith("dapo-fast") and not difference <= LIMIT:  # NaN is wrong as well
                wrong.append(f"{name} at {row['case']}")
    if wrong:
        raise AssertionError(f"differs from the default: {'; '.join(wrong)}")


def with_epilogue(p: Problem) -> Tensor:
    """Ours with the logits' product that leaves exponentials: what is to become the default where it is faster."""
    os.environ["DAPO_KERNELS_EPILOGUE"] = "1"
    try:
        return ours(p)
    finally:
        del os.environ["DAPO_KERNELS_EPILOGUE"]


def _row(shape: tuple[int, int, int], name: str, peer: Peer, problem: Problem, setup: Setup) -> dict:
    """One peer beside our default alone: known before the next one can hang, or the time is up."""
    both = {"dapo-fast": PEERS["dapo-fast"]} | {name: peer}
    rounds = 1 if setup.dry else ROUNDS
    return run_shape(shape, setup.device.type, rounds, peaks=False, peers=both, problem=problem)[-1]
