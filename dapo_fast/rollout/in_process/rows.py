"""Rows being decoded and their memory: trunks' keys and values once, and each row's own."""

from __future__ import annotations

import numpy as np
import torch
from transformers import PreTrainedModel

from dapo_fast.rollout.engine import SamplingParams
from dapo_fast.rollout.in_process.draw import draw, stream_uniforms
from dapo_fast.rollout.in_process.forward import Decode, forward
from dapo_fast.rollout.in_process.prefixes import Job, Prefix


class Trunks:
    """Keys and values of the prefixes in use, each once, in slots 0 to ``count``."""

    def __init__(self, capacity: int, length: int, like: Prefix) -> None:
        layers, _, heads, _ = like.keys.shape
        self.capacity = capacity
        self.count = 0
        self.held: list[Prefix] = []
        # Zeros, since what a mask hides still enters a sum, times nought: it must be finite.
        self.keys, self.values = (
            torch.zeros((layers, capacity, heads, length, x.shape[-1]), dtype=x.dtype, device=x.device)
            for x in (like.keys, like.values)
        )

    def hold(self, prefix: Prefix) -> None:
        prefix.slot = self.count
        self.count += 1
        self.held.append(prefix)
        self.keys[:, prefix.slot, :, : prefix.length] = prefix.keys.transpose(1, 2)
        self.values[:, prefix.slot, :, : prefix.length] = prefix.values.transpose(1, 2)
        prefix.keys = prefix.values = None

    def release(self, prefix: Prefix) -> None:
        """Give up a slot; the last prefix moves into it."""
        self.count -= 1
        last = self.held.pop()
        if last is prefix:
            return
        self.held[prefix.slot] = last
        for buffer in (self.keys, self.values):
            buffer[:, prefix.slot, :, : last.length] = buffer[:, last.slot, :, : last.length]
        last.slot = prefix.slot


class Rows:
    """Rows being decoded: slots 0 to ``count`` of buffers of the keys and values of their own tokens."""

    def __init__(self, capacity: int, budget: int, trunks: Trunks, like: Prefix, logprobs: bool) -> None:
        layers, _, heads, _ = like.keys.shape
        self.capacity = capacity
        self.length = budget  # the prompt's last token is fed as the row's first, the last one drawn never
        self.trunks = trunks
        self.device = like.keys.device
        self.kv = tuple(
            torch.zeros((layers, capacity, heads, budget, x.shape[-1]), dtype=x.dtype, device=x.device)
            for x in (like.keys, like.values)
        )
        self.count = 0
        self.jobs: list[Job | None] = [None] * capacity
        self.prefixes: list[Prefix | None] = [None] * capacity
        self.keys = np.zeros(capacity, dtype=np.uint64)
        self.last = np.zeros(capacity, dtype=np.int64)  # the token to feed
        self.cached = np.zeros(capacity, dtype=np.int64)  # tokens of the prefix that are this row's prompt
        self.drawn = np.zeros(capacity, dtype=np.int64)
        self.budget = np.zeros(capacity, dtype=np.int64)
        self.tokens = np.zeros((capacity, budget), dtype=np.int64)
        self.logprobs = np.zeros((capacity, budget), dtype=np.float32) if logprobs else None

    def admits(self, prefix: Prefix) -> bool:
        """Whether a sample that starts from ``prefix`` finds room."""
        held = prefix.slot is not None or self.trunks.count < self.trunks.capacity
        return self.count < self.capacity and held

    def admit(self, job: Job, prefix: Prefix, prompt: list[int], budget: int) -> None:
        """Start ``job`` from the keys and values of its prompt but the last token's."""
        if prefix.slot is None:
            self.trunks.hold(prefix)
        slot = self.count
        self.count += 1
        self.jobs[slot] = job
        self.prefixes[slot] = prefix
        self.keys[slot] = job.key
        self.last[slot] = prompt[-1]
        self.cached[slot] = len(prompt) - 1
        self.drawn[slot] = 0
        self.budget[slot] = budget

    def remove(self, slot: int) -> None:
        """Close the gap at ``slot`` with the last row."""
        prefix = self.prefixes[slot]
        prefix.waiting -= 1
        if not prefix.waiting:
            self.trunks.release(prefix)
        self.count -= 1
        end = self.count
        if slot == end:
            return
        written = int(self.drawn[end])
        for buffer in self.kv:
            buffer[:, slot, :, :written] = buffer[:, end, :, :written]
        for owners in (self.jobs, self.prefixes):
            owners[slot] = owners[end]
        for state in (self.keys, self.last, self.cached, self.drawn, self.budget, self.tokens):
            state[slot] = state[end]
        if self.logprobs is not None:
            self.logprobs[slot] = self.logprobs[end]

    def sampled(self, slot: int) -> list[int]:
        """Tokens drawn so far."""
        return self.tokens[slot, : self.drawn[slot]].tolist()

    def step(self, model: PreTrainedModel, params: SamplingParams, end_ids: list[int]) -> np.ndarray:
        """Draw one token for every row; says which rows ended, by an end token or their budget."""
        active = slice(0, self.count)
        position = torch.from_numpy(self.cached[active] + self.drawn[active]).to(self.device)
        last = torch.from_numpy(self.last[active].copy()).to(self.device)
        logits = forward(model, last[:, None], position[:, None], Decode(self))[:, -1]
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
