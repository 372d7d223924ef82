"""What every sample that is being decoded has, whatever the model keeps of it: slots 0 to ``count``, without gaps."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dapo_fast.rollout.engine import SamplingParams
from dapo_fast.rollout.in_process.draw import draw, stream_uniforms
from dapo_fast.rollout.in_process.prefixes import Job


class Slots:
    """Samples side by side: their jobs, their tokens and what bounds them."""

    def __init__(self, capacity: int, budget: int, logprobs: bool) -> None:
        self.capacity = capacity
        self.count = 0
        self.jobs: list[Job | None] = [None] * capacity
        self.keys = np.zeros(capacity, dtype=np.uint64)
        self.last = np.zeros(capacity, dtype=np.int64)  # the token to feed
        self.drawn = np.zeros(capacity, dtype=np.int64)
        self.budget = np.zeros(capacity, dtype=np.int64)
        self.tokens = np.zeros((capacity, budget), dtype=np.int64)
        self.logprobs = np.zeros((capacity, budget), dtype=np.float32) if logprobs else None

    def take(self, job: Job, prompt: list[int], budget: int) -> int:
        """The slot that ``job`` starts in."""
        slot = self.count
        self.count += 1
        self.jobs[slot] = job
        self.keys[slot] = job.key
        self.last[slot] = prompt[-1]
        self.drawn[slot] = 0
        self.budget[slot] = budget
        return slot

    def leave(self, slot: int) -> int:
        """Close the gap at ``slot`` with the last sample; the slot that this one was in."""
        self.count -= 1
        end = self.count
        self.jobs[slot] = self.jobs[end]
        for state in (self.keys, self.last, self.drawn, self.budget, self.tokens):
            state[slot] = state[end]
        if self.logprobs is not None:
            self.logprobs[slot] = self.logprobs[end]
        return end

    def sampled(self, slot: int) -> list[int]:
        """Tokens drawn so far."""
        return self.tokens[slot, : self.drawn[slot]].tolist()

    def extend(self, logits: Tensor, params: SamplingParams, end_ids: list[int]) -> np.ndarray:
        """Draw one token for every sample from ``logits`` (count, vocabulary).

        Returns:
            Which samples ended, by an end token or their budget.
        """
        active = slice(0, self.count)
        uniform = stream_uniforms(self.keys[active], self.drawn[active])
        token, logprob = draw(logits, torch.from_numpy(uniform), params)
        drawn = token.cpu().numpy()
        rows = np.arange(self.count)
        self.tokens[rows, self.drawn[active]] = drawn
        if self.logprobs is not None:
            self.logprobs[rows, self.drawn[active]] = logprob.cpu().numpy()
        self.last[active] = drawn
        self.drawn[active] += 1
        return np.isin(drawn, end_ids) | (self.drawn[active] >= self.budget[active])
