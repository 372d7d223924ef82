"""What is a sum over tokens, whatever the packs: each token's share of those that a batch's packs hold of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dapo_fast.data.pack import Pack
from dapo_fast.splitmix import GOLDEN, mixed


def token_shares(packs: Sequence[Pack]) -> list[Tensor]:
    """``(T,)`` fp32 of each pack: one over the times that ``packs`` hold the token at that place of its tree.

    A prefix is read again in every pack that goes on from it. Padding has no share, so that all shares together are
    the tokens of the batch's trees, each once, however they are packed.
    """
    paths = [_paths(pack) for pack in packs]
    _, place, times = np.unique(np.concatenate(paths), return_inverse=True, return_counts=True)
    shares = np.split((1 / times[place]).astype(np.float32), np.cumsum([path.size for path in paths])[:-1])
    padded = [torch.zeros(pack.length) for pack in packs]
    for row, share in zip(padded, shares, strict=True):
        row[: share.size] = torch.from_numpy(share)
    return padded


def _paths(pack: Pack) -> np.ndarray:
    """``(pack.tokens,)`` uint64: a hash of each token's tree and of all tokens down to it."""
    ids, depths = (x[: pack.tokens].numpy().astype(np.uint64) for x in (pack.input_ids, pack.position_ids))
    terms = mixed((ids << np.uint64(32) | depths) + GOLDEN)
    runs = pack.runs[pack.runs[:, 0] < pack.tokens].numpy()
    # What is read from a trie says whose it is.
    rows = torch.cat([pack.hidden_rows[pack.cu_steps[:-1].long()], pack.value_rows]).numpy()
    trees = torch.cat([pack.step_keys[:, 0], pack.value_keys[:, 0]]).numpy()
    roots = runs[runs[:, 2] < 0, 0]
    tree_of = dict(zip(roots[np.searchsorted(roots, rows, side="right") - 1].tolist(), trees.tolist(), strict=True))
    paths = np.empty_like(terms)
    for start, length, parent in runs.tolist():  # a parent's comes before those that hang on it
        if parent < 0:
            above = mixed(~np.array([tree_of[start]], dtype=np.uint64) + GOLDEN)
        else:
            above = paths[parent : parent + 1]
        paths[start : start + length] = above + np.cumsum(terms[start : start + length])
    return paths
