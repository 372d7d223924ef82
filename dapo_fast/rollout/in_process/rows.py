"""Rows being decoded and their memory: trunks' keys and values once, and each row's own."""

from __future__ import annotations

import numpy as np
import torch
from transformers import PreTrainedModel

from dapo_fast.rollout.engine import SamplingParams
from dapo_fast.rollout.in_process.forward import Decode, forward
from dapo_fast.rollout.in_process.prefixes import Job, Prefix
from dapo_fast.rollout.in_process.slots import Slots


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


class Rows(Slots):
    """Rows being decoded: slots with the keys and values of their own tokens in buffers."""

    def __init__(self, capacity: int, budget: int, trunks: Trunks, like: Prefix, logprobs: bool) -> None:
        super().__init__(capacity, budget, logprobs)
        layers, _, heads, _ = like.keys.shape
        self.length = budget  # the prompt's last token is fed as the row's first, the last one drawn never
        self.trunks = trunks
        self.device = like.keys.device
        self.kv = tuple(
            torch.zeros((layers, capacity, heads, budget, x.shape[-1]), dtype=x.dtype, device=x.device)
            for x in (like.keys, like.values)
        )
        self.prefixes: list[Prefix | None] = [None] * capacity
        self.cached = np.zeros(capacity, dtype=np.int64)  # tokens of the prefix that are this row's prompt

    def admits(self, prefix: Prefix) -> bool:
        """Whether a sample that starts from ``prefix`` finds room."""
        held = prefix.slot is not None or self.trunks.count < self.trunks.capacity
        return self.count < self.capacity and held

    def admit(self, job: Job, prefix: Prefix, prompt: list[int], budget: int) -> None:
        """Start ``job`` from the keys and values of its prompt but the last token's."""
        if prefix.slot is None:
            self.trunks.hold(prefix)
        slot = self.take(job, prompt, budget)
        self.prefixes[slot] = prefix
        self.cached[slot] = len(prompt) - 1

    def remove(self, slot: int) -> None:
        """Close the gap at ``slot`` with the last row."""
        prefix = self.prefixes[slot]
        prefix.waiting -= 1
        if not prefix.waiting:
            self.trunks.release(prefix)
        end = self.leave(slot)
        if slot == end:
            return
        written = int(self.drawn[end])
        for buffer in self.kv:
            buffer[:, slot, :, :written] = buffer[:, end, :, :written]
        self.prefixes[slot] = self.prefixes[end]
        self.cached[slot] = self.cached[end]

    def step(self, model: PreTrainedModel, params: SamplingParams, end_ids: list[int]) -> np.ndarray:
        """Draw one token for every row; says which rows ended, by an end token or their budget."""
        active = slice(0, self.count)
        position = torch.from_numpy(self.cached[active] + self.drawn[active]).to(self.device)
        last = torch.from_numpy(self.last[active].copy()).to(self.device)
        logits = forward(model, last[:, None], position[:, None], Decode(self))[:, -1]
        return self.extend(logits, params, end_ids)
