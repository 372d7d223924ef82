"""What samples: one small protocol, spoken by the in-process engine and by servers.

An engine samples from the policy as it is: temperature and nucleus are the only changes made to its distribution.
Penalties, top-k and the like in a model's generation config are ignored, since advantages are about the policy itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from transformers import PreTrainedTokenizerBase

from dapo_fast.errors import InputError
from dapo_fast.names import resolve
from dapo_fast.rollout.text import text_of

if TYPE_CHECKING:
    from dapo_fast.config import EngineSettings, ModelSettings
    from dapo_fast.rollout.server import Server

Progress = Callable[[int], None]  # called with the number of samples that just ended


@dataclass(frozen=True)
class SamplingParams:
    """How to sample.

    Attributes:
        n: Samples of each prompt.
        max_tokens: Most new tokens of a sample, the end token included; one number, or one for each prompt.
        temperature: Divides the logits; 0 is greedy.
        top_p: Smallest set of likeliest tokens whose probability reaches this; 1 is all of them.
        seed: Same prompts, parameters and seed: same samples (in-process; a server does what it can).
        stop: None, or a splitter of ``rollout.steps``: a sample ends once its first step is whole.
        logprobs: Also return the log-prob of each sampled token under the policy (temperature 1, no nucleus), nats.
    """

    n: int
    max_tokens: int | tuple[int, ...]
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    stop: str | None = None
    logprobs: bool = False

    def __post_init__(self) -> None:
        if self.n < 1:
            raise InputError(f"n: at least one sample, got {self.n}")
        if min(self.max_tokens if isinstance(self.max_tokens, tuple) else (self.max_tokens,), default=1) < 1:
            raise InputError("max_tokens: at least one token of every sample")
        if self.temperature < 0:
            raise InputError(f"temperature: not below 0, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p: above 0 and at most 1, got {self.top_p}")

    def budgets(self, prompts: int) -> list[int]:
        """Most new tokens of a sample, for each of ``prompts`` prompts."""
        if isinstance(self.max_tokens, int):
            return [self.max_tokens] * prompts
        if len(self.max_tokens) != prompts:
            raise InputError(f"max_tokens: {len(self.max_tokens)} numbers for {prompts} prompts")
        return list(self.max_tokens)


@dataclass(frozen=True)
class Sample:
    """One continuation of a prompt.

    Attributes:
        ids: Sampled token ids, the end token included where one was sampled.
        text: ``ids`` decoded without special tokens.
        finished: An end token was sampled; otherwise ``max_tokens`` cut it, or ``stop`` did.
        logprobs: One for each of ``ids``, where asked for.
    """

    ids: list[int]
    text: str
    finished: bool
    logprobs: list[float] | None = None


class Undecoded(Sample):
    """A sample whose ``text`` is made when it is first asked for: a collection never asks."""

    def __init__(
        self, ids: list[int], finished: bool, tokenizer: PreTrainedTokenizerBase, logprobs: list[float] | None = None
    ) -> None:
        self.__dict__.update(ids=ids, finished=finished, logprobs=logprobs, _tokenizer=tokenizer)  # it is frozen

    @cached_property
    def text(self) -> str:
        """``ids`` decoded without special tokens."""
        return text_of(self._tokenizer, self.ids)


class Engine(Protocol):
    """Samples continuations of token-id prompts. A run calls its ``close``, if it has one, when it is needed no more.

    Attributes:
        context: Most tokens of a prompt and its response together; a longer response is cut there.
    """

    tokenizer: PreTrainedTokenizerBase
    context: int

    def generate(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams, progress: Progress | None = None
    ) -> list[list[Sample]]:
        """``params.n`` samples of each prompt, in order."""
        ...


def make_engine(
    settings: EngineSettings,
    model_dir: str | Path,
    model: ModelSettings,
    server: Server | None = None,
    given: Mapping[str, Any] | None = None,
) -> Engine:
    """The engine that ``settings.kind`` names, for the policy in ``model_dir``.

    Args:
        server: What ``serving`` started.
        given: Functions of a policy's directory that a program gave, by name.

    Raises:
        InputError: a model that the in-process engine cannot sample from; a server that is not there or tokenizes
            otherwise; something else than an engine.
    """
    if settings.kind == "http":
        from dapo_fast.rollout.http import HttpEngine

        return HttpEngine(settings, model_dir, server)
    if settings.kind != "in_process":
        engine = resolve("engine.kind", settings.kind, given)(Path(model_dir))
        if missing := [name for name in ("tokenizer", "context", "generate") if not hasattr(engine, name)]:
            said = f"gave a {type(engine).__name__}, which has no {', '.join(missing)}"
            raise InputError(f"engine.kind {settings.kind}: {said}")
        return engine
    from dapo_fast.rollout.in_process import InProcessEngine

    return InProcessEngine.load(model_dir, model, settings.max_rows)
