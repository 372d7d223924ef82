"""Models that cannot read trees: a pack as a batch of sequences, one padded row each, nothing shared.

A recurrent state (Mamba, gated delta nets) and a short convolution run on from token to token of a row and know no
branches. A row of its own starts from nothing, and padding stands behind its tokens, where no causal model looks: what
is read is a plain batch, so this holds for every causal family and no kernel need know of it. It costs the sharing.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import torch
from torch import Tensor
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig, PreTrainedModel

from dapo_fast.data.pack import Pack
from dapo_fast.errors import InputError
from dapo_fast.models.variants import LAYER_TYPES

log = logging.getLogger("dapo_fast.models")

_LEAST = 2  # tokens of a row: some families take a single one for a step of decoding


def reads_padded(config: PreTrainedConfig) -> bool:
    """Whether a model of ``config`` reads padded rows: some layer mixes tokens otherwise than by attention, or counts
    them by their rows."""
    config = config.get_text_config()
    if getattr(config, "attn_temperature_tuning", False):  # Llama 4's queries, scaled by the row
        return True
    if set(getattr(config, "layer_types", None) or []) - set(LAYER_TYPES):
        return True
    family = type(config)
    return family in MODEL_FOR_CAUSAL_LM_MAPPING and bool(
        getattr(MODEL_FOR_CAUSAL_LM_MAPPING[family], "_is_stateful", False)
    )


def choose_padded(kind: str, requested: str) -> None:
    """Say, once for a family, that it is read so.

    Args:
        kind: Its ``model_type``.
        requested: ``ModelSettings.attention``.

    Raises:
        InputError: a backend for packs is demanded.
    """
    if requested != "auto":
        raise InputError(
            f"model.attention: {requested!r} reads packs, and a {kind} model reads one sequence a row; leave it 'auto'"
        )
    _say(kind)


@functools.cache
def _say(kind: str) -> None:
    log.info("%s cannot read trees: one padded row a sequence, no prefix shared, slower", kind)


def _places(pack: Pack) -> tuple[int, int, Tensor]:
    """Rows, their width, and where in the rows, laid end to end, each token of ``pack`` stands: (T,)."""
    first, parent = pack.runs[:, 0].long(), pack.runs[:, 2]
    begins = parent < 0
    if not bool((begins | (parent == first - 1)).all()):
        raise ValueError("pack: a tree, which this model cannot read; pack for Ranks(padded=True)")
    starts = first[begins]
    lengths = torch.diff(starts, append=torch.tensor([pack.length]))
    width = max(int(lengths.max()), _LEAST)
    shifts = torch.arange(lengths.numel()) * width - starts
    places = torch.arange(pack.length) + shifts.repeat_interleave(lengths)
    return lengths.numel(), width, places.to(pack.input_ids.device)


def padded_inputs(pack: Pack) -> dict[str, Any]:
    """Keyword arguments of a backbone's forward over the sequences of ``pack``, as (sequences, longest).

    No mask: causal layers see no padding, and of what padding makes nothing is read.
    """
    rows, width, places = _places(pack)
    ids = pack.input_ids.new_zeros(rows * width)
    return {"input_ids": ids.index_copy(0, places, pack.input_ids).view(rows, width), "use_cache": False}


def by_token(hidden: Tensor, pack: Pack) -> Tensor:
    """Hidden states (T, H) in the pack's order, of a pack read as one row or as padded rows."""
    if hidden.shape[:2] == (1, pack.length):
        return hidden[0]
    return hidden.flatten(0, 1).index_select(0, _places(pack)[2])


def padded_error(model: PreTrainedModel) -> float:
    """Relative difference of hidden states between two padded rows and the two sequences, each alone."""
    first, second = [1, 2, 3, 4, 5, 6, 4, 6, 5], [3, 6, 4, 5]
    rows = torch.tensor([first, second + [0] * (len(first) - len(second))], device=model.device)
    padded = model.base_model(input_ids=rows, use_cache=False).last_hidden_state
    error = 0.0
    for row, ids in zip(padded, (first, second), strict=True):
        alone = model.base_model(input_ids=torch.tensor([ids], device=model.device), use_cache=False)
        expected = alone.last_hidden_state[0]
        error = max(error, ((row[: len(ids)] - expected).norm() / expected.norm()).item())
    return error
