"""Sampling in this process, on the CPU or one GPU: a batch that stays full.

Every sample is a row. A row that ends leaves at once and the next sample takes its place, so a step of decoding never
computes rows that are not wanted; each row is at its own position.

Prompts that begin other prompts (the states of one trunk) are not computed: the longest is prefilled once, its keys and
values are kept once, and every sample of every state attends to the part of them that is its prompt, all rows of a
trunk by one matrix product. A row keeps only the keys and values of its own tokens. Decoding reads memory more than it
computes, and a trunk is read once a step instead of once for each of its samples.

The random number behind a token is a function of (seed, prompt index, sample index, token index) alone, so samples do
not depend on which rows happen to share a batch, apart from rounding.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.masking_utils import sdpa_mask

from dapo_fast.errors import InputError
from dapo_fast.models.attention import check_plugged_in, check_supported, without_plan
from dapo_fast.models.dense import attend
from dapo_fast.models.loading import device_bytes, load_causal_lm, load_config_of, resolve_device
from dapo_fast.models.variants import PLAIN, Variant, variant_of
from dapo_fast.rollout.engine import Progress, Sample, SamplingParams
from dapo_fast.rollout.loading import load_tokenizer, within_context
from dapo_fast.rollout.steps import Splitter

if TYPE_CHECKING:
    from dapo_fast.config import ModelSettings

log = logging.getLogger("dapo_fast.rollout.in_process")

BF16_PARAMETERS = 10_000_000  # below, a CPU samples in fp32 whatever it can: casts would cost as much as they save
_ATTENTION = "dapo_rollout"
_PREFILL_TOKENS = 16384  # padded tokens of one prefill batch
_SAMPLING_ELEMENTS = 1 << 24  # logits turned into probabilities at a time, to bound memory at large vocabularies
_MEMORY_SHARE = {"cpu": 0.25, "cuda": 0.7}  # of the device's memory, for keys and values


class InProcessEngine:
    """Samples from a Hugging Face causal LM in this process.

    Args:
        model: Any decoder that takes its attention from transformers' attention interface and attends to everything
            before it, or to a window or chunk of it; a recurrent state is refused. Its attention implementation is
            replaced.
        tokenizer: Decodes samples; its end token ends them, as do those of ``model.generation_config``.
        max_rows: Most samples decoded side by side; less where their keys and values would not fit in memory.

    Raises:
        InputError: a model whose cache this engine cannot keep.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_rows: int = 512) -> None:
        check_supported(model.config, model.config.name_or_path or "model")
        check_plugged_in(model.eval(), model.config.name_or_path or "model")
        model.set_attn_implementation(_ATTENTION)
        self.model = model
        self._check_cache()
        self.tokenizer = tokenizer
        self.max_rows = max_rows
        self.end_ids = end_ids(model, tokenizer)
        self.context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 1 << 30
        self.generated_tokens = 0
        self.prefilled_tokens = 0

    @torch.inference_mode()
    def _check_cache(self) -> None:
        kept = _Prefill()
        _forward(self.model, torch.zeros((1, 1), dtype=torch.int64, device=self.model.device), None, kept)
        if not kept.alike:
            raise InputError(
                f"{self.model.config.name_or_path or 'model'}: {type(self.model).__name__} keeps keys and values of "
                "different sizes in different layers, which the in-process engine cannot; use engine.kind: http"
            )

    @classmethod
    def load(cls, directory: str | Path, settings: ModelSettings, max_rows: int = 512) -> InProcessEngine:
        """The engine for a Hugging Face directory. ``settings.dtype`` "auto": see ``sampling_dtype``."""
        tokenizer = load_tokenizer(directory)
        model = load_causal_lm(directory, settings.device, sampling_dtype(directory, settings))
        engine = cls(model, tokenizer, max_rows)
        log.info("in-process sampling on %s in %s, up to %d rows", model.device, model.dtype, max_rows)
        return engine

    @torch.inference_mode()
    def generate(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams, progress: Progress | None = None
    ) -> list[list[Sample]]:
        """``params.n`` samples of each prompt; deterministic. See ``SamplingParams``.

        Raises:
            InputError: an empty prompt, a token outside the vocabulary, or a prompt that fills the model's positions.
        """
        if not prompts:
            return []
        return _Generation(self, [list(p) for p in prompts], params, progress).run()


def sampling_dtype(directory: str | Path, settings: ModelSettings) -> str:
    """``settings.dtype``; where that is "auto", bfloat16 on a CPU that multiplies it, for models of some size.

    Decoding reads every weight for a token of each row: at 0.5 B parameters bf16 samples 2.7 times as fast on such a
    CPU, while training stays fp32 there. A rule, not a timed probe: a resumed run samples as the killed one did.
    """
    if settings.dtype != "auto" or resolve_device(settings.device).type != "cpu":
        return settings.dtype
    known = getattr(torch.cpu, "get_capabilities", dict)()  # older torch cannot say
    if not any(known.get(name) for name in ("amx_bf16", "avx512_bf16")):
        return settings.dtype
    config = load_config_of(directory)
    with torch.device("meta"):
        parameters = AutoModelForCausalLM.from_config(config).num_parameters()
    return "bfloat16" if parameters >= BF16_PARAMETERS else settings.dtype


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that end a response: the generation config's and the tokenizer's."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    found = set(configured if isinstance(configured, (list, tuple)) else [configured]) | {tokenizer.eos_token_id}
    return sorted(token for token in found if token is not None)


# --------------------------------------------------------------------------------------- which rows run when


@dataclass
class _Job:
    """One sample to draw."""

    prompt: int
    sample: int
    key: int


class _Generation:
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
        self.splitter = Splitter(engine.tokenizer, params.stop) if params.stop is not None else None
        self.results: list[list[Sample | None]] = [[None] * params.n for _ in prompts]
        self.texts: dict[tuple[int, ...], str] = {}

    def _check(self, budgets: list[int]) -> list[int]:
        vocabulary = self.model.get_input_embeddings().weight.shape[0]
        for index, prompt in enumerate(self.prompts):
            if prompt and (min(prompt) < 0 or max(prompt) >= vocabulary):
                raise InputError(f"prompt {index}: a token id outside the model's vocabulary of {vocabulary}")
        return within_context(self.prompts, budgets, self.engine.context)

    def run(self) -> list[list[Sample]]:
        queue = _Queue(self.model, self.prompts, self._jobs())
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
        return self.results  # type: ignore[return-value]

    def _jobs(self) -> list[list[_Job]]:
        n = self.params.n
        keys = stream_keys(self.params.seed, len(self.prompts), n)
        return [[_Job(i, j, keys[i][j]) for j in range(n)] for i in range(len(self.prompts))]

    def _allocate(self, queue: _Queue) -> _Rows:
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
        return _Rows(capacity, max(self.budgets), _Trunks(trunks(), queue.longest, like), like, self.params.logprobs)

    def _advance(self, rows: _Rows) -> None:
        """One token for every row; rows that end leave."""
        ended = rows.step(self.model, self.params, self.engine.end_ids)
        if self.splitter is not None:
            ended |= self._cut_at_step(rows, ended)
        self.engine.generated_tokens += rows.count
        slots = np.flatnonzero(ended)
        for slot in slots:
            self._finish(rows, int(slot))
        for slot in slots[::-1]:  # from the end, so that no row that is still to leave is moved
            rows.remove(int(slot))
        if self.progress is not None and len(slots):
            self.progress(len(slots))

    def _cut_at_step(self, rows: _Rows, ended: np.ndarray) -> np.ndarray:
        """Rows in which text has begun after the first step: the step is whole, the rest of it is dropped."""
        cut = np.zeros(rows.count, dtype=bool)
        for slot in range(rows.count):
            ids = rows.sampled(slot)
            first = self.splitter.split(ids)[0]
            if first < len(ids) and (ended[slot] or self._text(ids[first:]).strip()):
                rows.drawn[slot] = first
                cut[slot] = True
        return cut

    def _finish(self, rows: _Rows, slot: int) -> None:
        job = rows.jobs[slot]
        ids = rows.sampled(slot)
        logprobs = rows.logprobs[slot, : len(ids)].tolist() if rows.logprobs is not None else None
        sample = Sample(ids, self._text(ids), ids[-1] in self.engine.end_ids, logprobs)
        self.results[job.prompt][job.sample] = sample

    def _text(self, ids: list[int]) -> str:
        key = tuple(ids)
        text = self.texts.get(key)
        if text is None:
            decode = self.engine.tokenizer.decode
            text = decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            self.texts[key] = text
        return text


@dataclass
class _Prefix:
    """Keys and values of a longest prompt, and the samples that start from some part of it.

    Attributes:
        keys, values: (layers, tokens, heads, size); None once ``_Trunks`` holds them.
        length: Tokens.
        waiting: Samples that have not ended yet.
        slot: Where it lies in ``_Trunks``; None: not there yet.
    """

    keys: Tensor | None
    values: Tensor | None
    length: int
    waiting: int
    slot: int | None = None


class _Queue:
    """Samples still to be started, with the prefix that each starts from."""

    def __init__(self, model: PreTrainedModel, prompts: list[list[int]], jobs: list[list[_Job]]) -> None:
        self.model = model
        self.prompts = prompts
        self.jobs = jobs
        self.ready: deque[tuple[_Job, _Prefix]] = deque()
        self.prefilled = 0
        groups = sorted(prefix_groups(prompts), key=lambda group: -len(prompts[group[0]]))
        self.groups = len(groups)
        self.longest = len(prompts[groups[0][0]])
        self._batches = self._plan(groups)

    def _plan(self, groups: list[tuple[int, list[int]]]) -> Iterator[list[tuple[int, list[int]]]]:
        """Batches of (longest prompt, the prompts that it begins with), of similar length."""
        start = 0
        while start < len(groups):
            size = max(1, _PREFILL_TOKENS // len(self.prompts[groups[start][0]]))
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
        prefill = _Prefill()
        _forward(self.model, ids.to(self.model.device), None, prefill)
        keys, values = prefill.result()
        self.prefilled += sum(map(len, longest))
        for row, (_, members) in enumerate(batch):
            length = len(longest[row])
            jobs = [job for member in members for job in self.jobs[member]]
            prefix = _Prefix(keys[:, row, :length], values[:, row, :length], length, len(jobs))
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


def _memory(device: torch.device) -> float:
    return device_bytes(device) * _MEMORY_SHARE[device.type]


# --------------------------------------------------------------------------------------- the rows and their memory


class _Trunks:
    """Keys and values of the prefixes in use, each once, in slots 0 to ``count``."""

    def __init__(self, capacity: int, length: int, like: _Prefix) -> None:
        layers, _, heads, _ = like.keys.shape
        self.capacity = capacity
        self.count = 0
        self.held: list[_Prefix] = []
        # Zeros, since what a mask hides still enters a sum, times nought: it must be finite.
        self.keys, self.values = (
            torch.zeros((layers, capacity, heads, length, x.shape[-1]), dtype=x.dtype, device=x.device)
            for x in (like.keys, like.values)
        )

    def hold(self, prefix: _Prefix) -> None:
        prefix.slot = self.count
        self.count += 1
        self.held.append(prefix)
        self.keys[:, prefix.slot, :, : prefix.length] = prefix.keys.transpose(1, 2)
        self.values[:, prefix.slot, :, : prefix.length] = prefix.values.transpose(1, 2)
        prefix.keys = prefix.values = None

    def release(self, prefix: _Prefix) -> None:
        """Give up a slot; the last prefix moves into it."""
        self.count -= 1
        last = self.held.pop()
        if last is prefix:
            return
        self.held[prefix.slot] = last
        for buffer in (self.keys, self.values):
            buffer[:, prefix.slot, :, : last.length] = buffer[:, last.slot, :, : last.length]
        last.slot = prefix.slot


class _Rows:
    """Rows being decoded: slots 0 to ``count`` of buffers of the keys and values of their own tokens."""

    def __init__(self, capacity: int, budget: int, trunks: _Trunks, like: _Prefix, logprobs: bool) -> None:
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
        self.jobs: list[_Job | None] = [None] * capacity
        self.prefixes: list[_Prefix | None] = [None] * capacity
        self.keys = np.zeros(capacity, dtype=np.uint64)
        self.last = np.zeros(capacity, dtype=np.int64)  # the token to feed
        self.cached = np.zeros(capacity, dtype=np.int64)  # tokens of the prefix that are this row's prompt
        self.drawn = np.zeros(capacity, dtype=np.int64)
        self.budget = np.zeros(capacity, dtype=np.int64)
        self.tokens = np.zeros((capacity, budget), dtype=np.int64)
        self.logprobs = np.zeros((capacity, budget), dtype=np.float32) if logprobs else None

    def admits(self, prefix: _Prefix) -> bool:
        """Whether a sample that starts from ``prefix`` finds room."""
        held = prefix.slot is not None or self.trunks.count < self.trunks.capacity
        return self.count < self.capacity and held

    def admit(self, job: _Job, prefix: _Prefix, prompt: list[int], budget: int) -> None:
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
        logits = _forward(model, last[:, None], position[:, None], _Decode(self))[:, -1]
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


# --------------------------------------------------------------------------------------- the model's forward


class _Prefill:
    """Causal attention over a right-padded batch; keeps the keys and values. Padding comes after, so none is seen."""

    def __init__(self) -> None:
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        variant: Variant = PLAIN,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """``query`` (rows, Hq, T, D), ``key`` and ``value`` (rows, Hkv, T, D or Dv) → (rows, Hq, T, Dv)."""
        self._keys[layer], self._values[layer] = key.transpose(1, 2), value.transpose(1, 2)
        positions = torch.arange(query.shape[2], device=query.device)
        oldest = variant.oldest(positions)
        grouped = query.shape[1] != key.shape[1]
        if oldest is None and variant.softcap is None and sinks is None:
            return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=grouped)
        visible = positions[None, :] <= positions[:, None]
        if oldest is not None:
            visible = visible & (positions[None, :] >= oldest[:, None])
        return attend(query, key, value, scale, visible, variant.softcap, sinks)

    @property
    def alike(self) -> bool:
        """Whether the keys of all layers are of one size, and the values."""
        return all(len({x.shape for x in kept.values()}) == 1 for kept in (self._keys, self._values))

    def result(self) -> tuple[Tensor, Tensor]:
        """Keys and values: (layers, rows, tokens, heads, size) each."""
        layers = sorted(self._keys)
        return torch.stack([self._keys[i] for i in layers]), torch.stack([self._values[i] for i in layers])


class _Decode:
    """One query a row, against the row's part of its trunk and the row's own tokens.

    Rows are dealt to the trunks, as many places a trunk as the fullest one needs: ``place`` (trunks, places) says which
    row sits where, ``trunk`` and ``seat`` (rows,) where a row sits. An empty place computes row 0 once more, unread.
    """

    def __init__(self, rows: _Rows) -> None:
        self.rows = rows
        count, device = rows.count, rows.device
        cached, drawn = rows.cached[:count], rows.drawn[:count]
        trunk = np.fromiter((prefix.slot for prefix in rows.prefixes[:count]), dtype=np.int64, count=count)
        sizes = np.bincount(trunk, minlength=rows.trunks.count)
        order = np.argsort(trunk, kind="stable")
        seat = np.empty(count, dtype=np.int64)
        seat[order] = np.arange(count) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        place = np.zeros((rows.trunks.count, sizes.max()), dtype=np.int64)
        place[trunk, seat] = np.arange(count)
        self.trunk, self.seat, self.place = (torch.from_numpy(x).to(device) for x in (trunk, seat, place))
        self.prefix_width, self.own_width = int(cached.max()), int(drawn.max()) + 1
        heads = rows.kv[0].shape[2]
        first = (np.arange(count)[:, None] * heads + np.arange(heads)) * rows.length
        self.write = torch.from_numpy((first + drawn[:, None]).ravel()).to(device)
        unseen = np.concatenate(
            [np.arange(self.prefix_width) >= cached[:, None], np.arange(self.own_width) > drawn[:, None]], 1
        )
        self.unseen = {PLAIN: torch.from_numpy(unseen).to(device)[:, None, None]}
        depths = np.broadcast_to(np.arange(self.prefix_width), (count, self.prefix_width))
        self.depths = np.concatenate([depths, cached[:, None] + np.arange(self.own_width)], 1)  # of keys
        self.position = cached + drawn  # of queries

    def _unseen(self, variant: Variant) -> Tensor:
        """(rows, 1, 1, keys): what the query of a row does not see in layers of a kind."""
        variant = Variant(variant.window, variant.chunk)
        if variant not in self.unseen:
            oldest = variant.oldest(torch.from_numpy(self.position))
            unseen = self.unseen[PLAIN]
            if oldest is not None:
                above = torch.from_numpy(self.depths) < oldest[:, None]
                unseen = unseen | above.to(unseen.device)[:, None, None]
            self.unseen[variant] = unseen
        return self.unseen[variant]

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        variant: Variant = PLAIN,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """``query`` (rows, Hq, 1, D), ``key`` and ``value`` (rows, Hkv, 1, D) → (rows, Hq, 1, Dv)."""
        rows, heads, _, size = query.shape
        kv_heads = key.shape[1]
        own_keys, own_values = (
            self._own(buffer[layer], new) for buffer, new in zip(self.rows.kv, (key, value), strict=True)
        )
        # The queries of a key head stand side by side, so that grouped heads need no copies of keys.
        query = (query * scale).reshape(rows, kv_heads, heads // kv_heads, size)
        trunk_keys, trunk_values = (
            buffer[layer, : self.place.shape[0], :, : self.prefix_width]
            for buffer in (self.rows.trunks.keys, self.rows.trunks.values)
        )
        own_scores = torch.bmm(query.flatten(0, 1), own_keys.transpose(1, 2)).unflatten(0, (rows, kv_heads))
        scores = torch.cat([self._by_trunk(query, trunk_keys.transpose(2, 3)), own_scores], -1)
        if variant.softcap is not None:
            scores = variant.softcap * torch.tanh(scores / variant.softcap)
        scores = scores.float().masked_fill_(self._unseen(variant), float("-inf"))
        if sinks is not None:
            column = sinks.float().view(1, kv_heads, -1, 1).expand(*scores.shape[:3], 1)
            scores = torch.cat([scores, column], -1)
        weights = scores.softmax(-1)[..., : self.prefix_width + self.own_width].to(value.dtype)
        on_trunk, on_own = weights.split([self.prefix_width, self.own_width], -1)
        own = torch.bmm(on_own.flatten(0, 1), own_values).unflatten(0, (rows, kv_heads))
        return (self._by_trunk(on_trunk, trunk_values) + own).reshape(rows, heads, 1, -1)

    def _own(self, buffer: Tensor, new: Tensor) -> Tensor:
        """The rows' own keys or values with ``new`` written: (rows · heads, own width, size)."""
        buffer.view(-1, buffer.shape[-1]).index_copy_(0, self.write, new.flatten(0, 2))
        return buffer.view(-1, *buffer.shape[2:])[: new.shape[0] * new.shape[1], : self.own_width]

    def _by_trunk(self, left: Tensor, right: Tensor) -> Tensor:
        """``left`` (rows, heads, n, x) times its trunk's ``right`` (trunks, heads, x, y): (rows, heads, n, y)."""
        dealt = left[self.place].transpose(1, 2)  # trunks, heads, places, n, x
        product = torch.matmul(dealt.flatten(2, 3), right).unflatten(2, dealt.shape[2:4])
        return product[self.trunk, :, self.seat]


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    dapo_rollout: _Prefill | _Decode | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    if dapo_rollout is None:  # called by someone else
        return without_plan(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    variant = variant_of(module, kwargs)
    out = dapo_rollout.attend(module.layer_idx, query, key, value, scale, variant, kwargs.get("s_aux"))
    return out.transpose(1, 2), None


AttentionInterface.register(_ATTENTION, _attention)
AttentionMaskInterface.register(_ATTENTION, sdpa_mask)


def _forward(model: PreTrainedModel, ids: Tensor, positions: Tensor | None, attention: _Prefill | _Decode) -> Tensor:
    """Logits of the last column of ``ids``: (rows, 1, vocabulary)."""
    if positions is None:
        positions = torch.arange(ids.shape[1], device=ids.device)[None]
    return model(
        input_ids=ids,
        position_ids=positions,
        # A mask that is 4-D already: transformers passes it on and makes none of its own.
        attention_mask=torch.ones((1, 1, 1, 1), dtype=torch.bool, device=ids.device),
        use_cache=False,
        logits_to_keep=1,
        dapo_rollout=attention,
    ).logits


# --------------------------------------------------------------------------------------- drawing tokens


def draw(logits: Tensor, uniform: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor | None]:
    """One token a row by inverting the distribution function at ``uniform``.

    Args:
        logits: (rows, vocabulary), any float dtype.
        uniform: (rows,) float64 in [0, 1), on the CPU.

    Returns:
        Token ids (rows,) int64; and their log-probs (rows,) fp32 under the untempered policy, if asked for.
    """
    if params.temperature == 0:
        token = logits.argmax(-1)
    else:
        uniform = uniform.to(logits.device)
        size = max(1, _SAMPLING_ELEMENTS // logits.shape[-1])
        parts = zip(logits.split(size), uniform.split(size), strict=True)
        token = torch.cat([_invert(part, u, params) for part, u in parts])
    if not params.logprobs:
        return token, None
    logprob = torch.log_softmax(logits.float(), -1).gather(-1, token[:, None])[:, 0]
    return token, logprob


def _invert(logits: Tensor, uniform: Tensor, params: SamplingParams) -> Tensor:
    probability = torch.softmax(logits.float() / params.temperature, -1)
    if params.top_p < 1:
        ordered, index = probability.sort(-1, descending=True)
        before = ordered.cumsum(-1, dtype=torch.float64) - ordered
        probability = probability.scatter(-1, index, ordered.masked_fill(before >= params.top_p, 0))
    # In double precision, so that the tail of a large vocabulary is not lost to rounding.
    distribution = probability.cumsum(-1, dtype=torch.float64)
    total = distribution[:, -1:]
    if not bool(total.isfinite().all()):
        raise InputError("the model's logits are not finite")
    return torch.searchsorted(distribution, uniform[:, None] * total, right=True)[:, 0]


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(value: np.ndarray) -> np.ndarray:
    # SplitMix64's finaliser (Steele, Lea and Flood 2014): one 64-bit word to another, every bit depending on every bit.
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def stream_keys(seed: int, prompts: int, n: int) -> np.ndarray:
    """(prompts, n) uint64: the key of each sample's own stream of random numbers."""
    with np.errstate(over="ignore"):
        root = _mix(np.array([seed % (1 << 64)], dtype=np.uint64) + _GOLDEN)
        by_prompt = _mix(root + _GOLDEN * np.arange(1, prompts + 1, dtype=np.uint64))
        return _mix(by_prompt[:, None] + _GOLDEN * np.arange(1, n + 1, dtype=np.uint64)[None])


def stream_uniforms(keys: np.ndarray, counters: np.ndarray) -> np.ndarray:
    """Number ``counters`` of each stream: float64 in [0, 1), multiples of 2^-52."""
    with np.errstate(over="ignore"):
        words = _mix(keys + _GOLDEN * (counters.astype(np.uint64) + np.uint64(1)))
    return (words >> np.uint64(12)).astype(np.float64) * 2.0**-52
