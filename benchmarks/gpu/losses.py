"""The fused loss at the shapes of four models: over chunk sizes, and against the floor and whoever is installed."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from fused_loss import PEERS, Peer, ours, run_shape
from roofline import GPU_SHAPES

from .sections import Setup

CHUNK_ROWS = (1024, 2048, 4096)
ROUNDS = 5
LIMIT = 2e-2  # largest difference between our chunk sizes, relative to the largest value


def rows(setup: Setup) -> Iterator[dict]:
    """One row a peer, chunk size and shape. Compiling the naive loss would take longer than all the rest.

    AssertionError, after the last of them, where our own rows differ by more than ``LIMIT``.
    """
    sizes = (8,) if setup.dry else CHUNK_ROWS
    chunked = {f"dapo-fast, chunks of {n}": Peer(partial(ours, chunk_rows=n), "dapo-fast") for n in sizes}
    peers = {name: peer for name, peer in PEERS.items() if "compile" not in name}
    if setup.dry:
        peers = {name: peers[name] for name in ("dapo-fast", "naive")}
    peers |= chunked
    wrong = []
    for shape in [(64, 16, 53)] if setup.dry else GPU_SHAPES:
        late = list(setup.in_time("fused loss, N={} H={} V={}".format(*shape)))
        found = late or run_shape(shape, setup.device.type, 1 if setup.dry else ROUNDS, peaks=False, peers=peers)
        yield from found
        ours_only = [row for row in found if row["peer"].startswith("dapo-fast") and "difference_from_ours" in row]
        wrong += [f"{r['peer']} at {r['case']}" for r in ours_only if not r["difference_from_ours"] <= LIMIT]
    if wrong:
        raise AssertionError(f"differs from the default: {'; '.join(wrong)}")
