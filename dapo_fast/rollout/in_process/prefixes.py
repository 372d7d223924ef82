"""Samples that wait to be started: every prompt that begins another starts from that one's keys and values."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dapo_fast.rollout.in_process.forward import Prefill, forward

PREFILL_TOKENS = 16384  # padded tokens of one prefill batch


@dataclass
class Job:
    """One sample to draw."""

    prompt: int
    sample: int
    key: int


@dataclass
class Prefix:
    """Keys and values of a longest prompt, and the samples that start from some part of it.

    Attributes:
        keys, values: (layers, tokens, heads, size); None once ``Trunks`` holds them.
        length: Tokens.
        waiting: Samples that have not ended yet.
        slot: Where it lies in ``Trunks``; None: not there yet.
    """

    keys: Tensor | None
    values: Tensor | None
    length: int
    waiting: int
    slot: int | None = None


class Queue:
    """Samples still to be started, with the prefix that each starts from."""

    def __init__(self, model: PreTrainedModel, prompts: list[list[int]], jobs: list[list[Job]]) -> None:
        self.model = model
        self.prompts = prompts
        self.jobs = jobs
        self.ready: deque[tuple[Job, Prefix]] = deque()
        self.prefilled = 0
        groups = sorted(prefix_groups(prompts), key=lambda group: -len(prompts[group[0]]))
        self.groups = len(groups)
        self.longest = len(prompts[groups[0][0]])
        self._batches = self._plan(groups)

    def _plan(self, groups: list[tuple[int, list[int]]]) -> Iterator[list[tuple[int, list[int]]]]:
        """Batches of (longest prompt, the prompts that it begins with), of similar length."""
        start = 0
        while start < len(groups):
            size = max(1, PREFILL_TOKENS // len(self.prompts[groups[start][0]]))
            yield groups[start : start + size]
            start += size

    def prefill_next(self) -> bool:
        """Compute the next batch of longest prompts and line up their samples; False when there is none."""
        batch = next(self._batches, None)
        if batch is None:
            return False
        longest = [self.prompts[index] for index, _ in batch]
        ids = torch.zeros((len(batch), len(longest[0])), dtype=torch.int64)
        for row, prompt in enumerate(longest):
            ids[row, : len(prompt)] = torch.tensor(prompt)
        prefill = Prefill()
        forward(self.model, ids.to(self.model.device), None, prefill)
        keys, values = prefill.result()
        self.prefilled += sum(map(len, longest))
        for row, (_, members) in enumerate(batch):
            length = len(longest[row])
            jobs = [job for member in members for job in self.jobs[member]]
            prefix = Prefix(keys[:, row, :length], values[:, row, :length], length, len(jobs))
            self.ready.extend((job, prefix) for job in jobs)
        return True


def prefix_groups(prompts: Sequence[Sequence[int]]) -> list[tuple[int, list[int]]]:
    """(index of a longest prompt, indices of all prompts that begin it, itself included), covering every prompt once.

    Members are in order of length.
    """
    order = sorted(range(len(prompts)), key=lambda i: prompts[i])
    groups: list[tuple[int, list[int]]] = []
    # In sorted order what a prompt begins comes right after it, so walking backwards its longest is already open.
    for index in reversed(order):
        prompt = prompts[index]
        if groups and prompts[groups[-1][0]][: len(prompt)] == prompt:
            groups[-1][1].append(index)
        else:
            groups.append((index, [index]))
    return [(longest, members[::-1]) for longest, members in groups]
