"""Sampling from a model whose state cannot be shared or forked: samples of prompts of one length, token by token.

All rows of a batch stand at the same token, so that none is padded, and each reads its own prompt. What the model keeps
is transformers' business; where decoding with it does not give what reading the whole sequence does, the whole sequence
is read for every token. Rows that have ended stay in the batch, unread, until all have.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from dapo_fast.rollout.engine import SamplingParams
from dapo_fast.rollout.in_process.prefixes import PREFILL_TOKENS, Job
from dapo_fast.rollout.in_process.slots import Slots

log = logging.getLogger("dapo_fast.rollout.in_process")

_KEPT = ("past_key_values", "cache_params")  # what families call what they keep from token to token


class Sequences:
    """A batch of sequences of one length (rows, tokens), read to their last token as they grow."""

    def __init__(self, model: PreTrainedModel, ids: Tensor, cached: bool) -> None:
        self.ids = ids
        self._model = model
        self._cached = cached
        self.kept: dict[str, object] = {}

    def logits(self) -> Tensor:
        """(rows, vocabulary): what follows the last token."""
        ids = self.ids[:, -1:] if self.kept else self.ids
        out = self._model(input_ids=ids, use_cache=self._cached, logits_to_keep=1, **self.kept)
        if self._cached:
            self.kept = {name: out[name] for name in _KEPT if out.get(name) is not None}
        return out.logits[:, -1]

    def append(self, tokens: Tensor) -> None:
        """The next token of every row (rows,)."""
        self.ids = torch.cat([self.ids, tokens[:, None]], 1)


@torch.inference_mode()
def decodes_right(model: PreTrainedModel) -> bool:
    """Whether ``model`` decodes token by token what it reads at once; says so where it does not."""
    ids = torch.tensor([[1, 2, 3, 4, 5, 6, 4, 6, 5], [3, 6, 4, 5, 5, 1, 2, 4, 3]], device=model.device)
    limit = 1e-4 if model.dtype == torch.float32 else 0.05
    try:
        rows, error = Sequences(model, ids[:, :4], cached=True), 0.0
        for end in range(4, ids.shape[1]):
            expected = Sequences(model, ids[:, :end], cached=False).logits()
            error = max(error, ((rows.logits() - expected).norm() / expected.norm()).item())
            rows.append(ids[:, end])
        if not rows.kept:
            error = float("inf")  # RecurrentGemma keeps it to itself
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError):
        error = float("inf")  # a cache of another kind
    if not error <= limit:
        log.warning(
            "%s: decoding from transformers' cache is not what reading whole sequences gives (off by %.1e), so every "
            "token reads its whole sequence: slow; a server (engine.kind: http) is faster",
            type(model).__name__,
            error,
        )
        return False
    return True


def batches(prompts: Sequence[Sequence[int]], n: int, most: int) -> Iterator[list[tuple[int, int]]]:
    """(prompt, sample) of ``n`` samples a prompt, those of prompts of one length together, ``most`` at a time."""
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, prompt in enumerate(prompts):
        by_length[len(prompt)].append(index)
    for length in sorted(by_length, reverse=True):
        members = [(index, sample) for index in by_length[length] for sample in range(n)]
        rows = max(1, min(most, PREFILL_TOKENS // length))
        for start in range(0, len(members), rows):
            yield members[start : start + rows]


class Lockstep(Slots):
    """One batch being decoded."""

    def __init__(self, sequences: Sequences, budget: int, logprobs: bool) -> None:
        super().__init__(len(sequences.ids), budget, logprobs)
        self._sequences = sequences
        self._row = np.arange(self.capacity)  # of the batch, that each slot reads

    def admit(self, job: Job, prompt: list[int], budget: int) -> None:
        """Start ``job``, the batch's next row."""
        self.take(job, prompt, budget)

    def remove(self, slot: int) -> None:
        """Close the gap at ``slot`` with the last sample."""
        self._row[slot] = self._row[self.leave(slot)]

    def step(self, model: PreTrainedModel, params: SamplingParams, end_ids: list[int]) -> np.ndarray:
        """Draw one token for every sample; says which ended, by an end token or their budget."""
        rows = torch.from_numpy(self._row[: self.count].copy()).to(model.device)
        ended = self.extend(self._sequences.logits()[rows], params, end_ids)
        tokens = self._sequences.ids[:, -1].clone()  # of rows that have ended: any
        tokens[rows] = torch.from_numpy(self.last[: self.count].copy()).to(model.device)
        self._sequences.append(tokens)
        return ended
