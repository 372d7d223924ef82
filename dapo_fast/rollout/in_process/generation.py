"""One call of ``generate``: the queue of samples and the rows being decoded."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import torch

from dapo_fast.errors import InputError
from dapo_fast.models.loading import device_bytes
from dapo_fast.rollout.engine import Progress, Sample, SamplingParams, Undecoded
from dapo_fast.rollout.in_process.draw import stream_keys
from dapo_fast.rollout.in_process.lockstep import Lockstep, Sequences, batches
from dapo_fast.rollout.in_process.prefixes import Job, Queue
from dapo_fast.rollout.in_process.rows import Rows, Trunks
from dapo_fast.rollout.in_process.stopping import Stopping
from dapo_fast.rollout.loading import within_context
from dapo_fast.rollout.steps import Splitter

if TYPE_CHECKING:
    from dapo_fast.rollout.in_process.engine import InProcessEngine

log = logging.getLogger("dapo_fast.rollout.in_process")

_MEMORY_SHARE = {"cpu": 0.25, "cuda": 0.7}  # of the device's memory, for keys and values


class Generation:
    """One call of ``generate``: the queue of samples and the rows being decoded."""

    def __init__(
        self, engine: InProcessEngine, prompts: list[list[int]], params: SamplingParams, progress: Progress | None
    ) -> None:
        self.engine = engine
        self.model = engine.model
        self.prompts = prompts
        self.params = params
        self.progress = progress
        self.device = engine.model.device
        self.budgets = self._check(params.budgets(len(prompts)))
        self.stopping = Stopping(Splitter(engine.tokenizer, params.stop)) if params.stop is not None else None
        self.results: list[list[Sample | None]] = [[None] * params.n for _ in prompts]

    def _check(self, budgets: list[int]) -> list[int]:
        vocabulary = self.model.get_input_embeddings().weight.shape[0]
        for index, prompt in enumerate(self.prompts):
            if prompt and (min(prompt) < 0 or max(prompt) >= vocabulary):
                raise InputError(f"prompt {index}: a token id outside the model's vocabulary of {vocabulary}")
        return within_context(self.prompts, budgets, self.engine.context)

    def run(self) -> list[list[Sample]]:
        if self.engine.apart:
            self._run_in_lockstep()
        else:
            self._run_from_prefixes()
        return self.results  # type: ignore[return-value]

    def _run_in_lockstep(self) -> None:
        jobs = self._jobs()
        for batch in batches(self.prompts, self.params.n, self.engine.max_rows):
            ids = torch.tensor([self.prompts[prompt] for prompt, _ in batch], device=self.device)
            sequences = Sequences(self.model, ids, self.engine.cached)
            rows = Lockstep(sequences, max(self.budgets[prompt] for prompt, _ in batch), self.params.logprobs)
            for prompt, sample in batch:
                rows.admit(jobs[prompt][sample], self.prompts[prompt], self.budgets[prompt])
            while rows.count:
                self._advance(rows)
            self.engine.prefilled_tokens += ids.numel()

    def _run_from_prefixes(self) -> None:
        queue = Queue(self.model, self.prompts, self._jobs())
        queue.prefill_next()
        rows = self._allocate(queue)
        while True:
            while queue.ready and rows.admits(queue.ready[0][1]):
                job, prefix = queue.ready.popleft()
                rows.admit(job, prefix, self.prompts[job.prompt], self.budgets[job.prompt])
            if not queue.ready and rows.count < rows.capacity and queue.prefill_next():
                continue
            if not rows.count:
                break
            self._advance(rows)
        self.engine.prefilled_tokens += queue.prefilled

    def _jobs(self) -> list[list[Job]]:
        n = self.params.n
        keys = stream_keys(self.params.seed, len(self.prompts), n)
        return [[Job(i, j, keys[i][j]) for j in range(n)] for i in range(len(self.prompts))]

    def _allocate(self, queue: Queue) -> Rows:
        like = queue.ready[0][1]
        token = like.keys[:, 0].numel() + like.values[:, 0].numel()
        prefix_bytes = queue.longest * token * like.keys.element_size()
        row_bytes = max(self.budgets) * token * like.keys.element_size()
        wanted = capacity = min(self.engine.max_rows, self.params.n * len(self.prompts))

        def trunks() -> int:
            # Twice as many as full batches need, so that a few late samples do not keep the next trunk out.
            return min(queue.groups, capacity, 2 * -(-capacity // self.params.n) + 1)

        while capacity > 1 and capacity * row_bytes + trunks() * prefix_bytes > _memory(self.device):
            capacity //= 2
        if capacity < wanted:
            log.warning("memory holds %d rows of up to %d new tokens, not %d", capacity, max(self.budgets), wanted)
        return Rows(capacity, max(self.budgets), Trunks(trunks(), queue.longest, like), like, self.params.logprobs)

    def _advance(self, rows: Rows | Lockstep) -> None:
        """One token for every row; rows that end leave."""
        ended = rows.step(self.model, self.params, self.engine.end_ids)
        if self.stopping is not None:
            ended |= self.stopping.cut(rows, ended)
        self.engine.generated_tokens += rows.count
        slots = np.flatnonzero(ended)
        for slot in slots:
            self._finish(rows, int(slot))
        for slot in slots[::-1]:  # from the end, so that no row that is still to leave is moved
            rows.remove(int(slot))
        if self.progress is not None and len(slots):
            self.progress(len(slots))

    def _finish(self, rows: Rows | Lockstep, slot: int) -> None:
        job = rows.jobs[slot]
        ids = rows.sampled(slot)
        logprobs = rows.logprobs[slot, : len(ids)].tolist() if rows.logprobs is not None else None
        sample = Undecoded(ids, ids[-1] in self.engine.end_ids, self.engine.tokenizer, logprobs)
        self.results[job.prompt][job.sample] = sample


def _memory(device: torch.device) -> float:
    return device_bytes(device) * _MEMORY_SHARE[device.type]
