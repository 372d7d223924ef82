"""The engine that samples through servers.

Prompts go out as token ids and samples come back as token ids where a server can (vLLM and SGLang: "return_token_ids");
where it cannot, text is tokenized here, and that is said loudly, since the tokens trained on are then not certainly the
tokens sampled. What a server can do, and that its tokenizer is ours, is found out before anything is sampled.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoConfig, GenerationConfig

from dapo_fast.config import EngineSettings
from dapo_fast.errors import InputError
from dapo_fast.rollout.engine import Progress, Sample, SamplingParams
from dapo_fast.rollout.http.answers import Asked, end_of, read_choices
from dapo_fast.rollout.http.client import Client, ServerError
from dapo_fast.rollout.http.dialect import Probe, common
from dapo_fast.rollout.loading import load_tokenizer, within_context
from dapo_fast.rollout.server import Server
from dapo_fast.rollout.steps import Splitter

log = logging.getLogger("dapo_fast.rollout.http")


class HttpEngine:
    """Samples through the servers at ``settings.urls``, each with up to ``settings.concurrency`` requests in flight.

    Args:
        settings: ``urls`` with or without ``/v1``; ``model_name`` None takes the first model that a server lists;
            ``retries`` and ``timeout_s`` are of each request. The API key, if any, is read from the environment.
        model_dir: Hugging Face directory of the policy: its tokenizer must be the servers'.
        server: What ``serving`` started behind the URLs, to be started again if it dies.

    Raises:
        InputError: a server does not answer, refuses, or tokenizes otherwise than ``model_dir``.
    """

    def __init__(self, settings: EngineSettings, model_dir: str | Path, server: Server | None = None) -> None:
        self.settings = settings
        self.tokenizer = load_tokenizer(model_dir)
        self.end_ids = _end_ids(model_dir, self.tokenizer.eos_token_id)
        self._client = Client(settings, server)
        self.model_name = settings.model_name
        dialects, lengths = [], []
        for url in self._client.servers.urls:
            probe = Probe(self._client, url, self.tokenizer, self.model_name)
            self.model_name = probe.model
            dialects.append(probe.dialect())
            lengths.append(probe.context())
        self.dialect = common(dialects)
        config = _text_config(model_dir)
        self._vocabulary = config.vocab_size
        self.context = min(n for n in (*lengths, getattr(config, "max_position_embeddings", None) or 1 << 30) if n)
        self.retokenized = 0
        if settings.seed is False:
            log.warning("engine.seed is false: requests carry no seed, and sampling CANNOT be repeated")
        log.info("sampling %s through %s: %s", self.model_name, ", ".join(self._client.servers.urls), self.dialect)

    @property
    def seeds(self) -> bool:
        """Whether the same prompts, parameters and seed are asked to give the same samples."""
        return self._client.seeds

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def generate(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams, progress: Progress | None = None
    ) -> list[list[Sample]]:
        """``params.n`` samples of each prompt. See ``SamplingParams``; ``stop`` is applied here, on whole samples.

        Raises:
            ServerError: a request was refused, or failed ``retries`` times over.
        """
        if params.logprobs:
            raise InputError("logprobs: the HTTP engine does not return them; use the in-process engine")
        budgets = within_context(prompts, params.budgets(len(prompts)), self.context)
        parts, n = (1, params.n) if self.dialect.many else (params.n, 1)
        order = [(index, part) for index in range(len(prompts)) for part in range(parts)]
        bodies = [self._body(list(prompts[i]), params, budgets[i], f"{i}/{part}", n) for i, part in order]

        def read(answer: Any, number: int) -> list[dict]:
            index, _ = order[number]
            sent = list(prompts[index]) if self.dialect.ids_in else None
            return read_choices(answer, Asked(n, budgets[index], sent, self.dialect.ids_out, self._vocabulary))

        splitter = Splitter(self.tokenizer, params.stop) if params.stop is not None else None
        before = self.retokenized
        samples: list[list[list[Sample]]] = [[[]] * parts for _ in prompts]
        workers = self.settings.concurrency * len(self._client.servers.urls)
        for number, choices in self._client.ask_all(bodies, read, workers):
            index, part = order[number]
            samples[index][part] = [self._sample(choice, splitter) for choice in choices]
            if progress is not None:
                progress(len(choices))
        if self.retokenized > before:
            log.warning(
                "%d samples came back as text and were tokenized here: their tokens may not be those sampled",
                self.retokenized - before,
            )
        return [[sample for part in of_prompt for sample in part] for of_prompt in samples]

    def _body(self, prompt: list[int], params: SamplingParams, budget: int, name: str, n: int) -> dict[str, Any]:
        seed = int.from_bytes(hashlib.sha256(f"{params.seed}/{name}".encode()).digest()[:4], "big") >> 1
        words = prompt if self.dialect.ids_in else self._as_text(prompt)
        return self.dialect.body(str(self.model_name), words, params, budget, n, seed)

    def _as_text(self, prompt: list[int]) -> str:
        """The text that a server turns into ``prompt``; a prompt that has none is an error."""
        text = self.tokenizer.decode(prompt, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        bos = self.tokenizer.bos_token
        for candidate in (text, text.removeprefix(bos) if bos else text):
            if self.tokenizer(candidate)["input_ids"] == prompt:
                return candidate
        raise ServerError(
            "the servers take prompts as text only, and a prompt's tokens do not survive the way through text; "
            "use a server that takes token ids (vLLM, SGLang)"
        )

    def _sample(self, choice: dict, splitter: Splitter | None) -> Sample:
        if self.dialect.ids_out:
            ids = list(choice["token_ids"])
        else:
            self.retokenized += 1
            ids = list(self.tokenizer(choice["text"], add_special_tokens=False)["input_ids"])
        ended = end_of(choice, ids, self.end_ids, self.tokenizer.eos_token_id)
        ids = ids if ended is None else ended
        if not ids:
            reason = choice.get("stop_reason", choice.get("matched_stop"))
            raise ServerError(f"a server ends samples at {reason!r}, which is no end token of the policy; set it off")
        if splitter is not None:
            ids = ids[: splitter.first(ids)]
        text = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return Sample(ids, text, ids[-1] in self.end_ids)


def _text_config(model_dir: str | Path) -> Any:
    try:
        return AutoConfig.from_pretrained(model_dir).get_text_config()
    except (OSError, ValueError) as error:
        raise InputError(f"{model_dir}: not a readable model directory ({error})") from error


def _end_ids(model_dir: str | Path, own: int) -> set[int]:
    """End tokens of the policy: the generation config's, if there is one, and the tokenizer's."""
    try:
        configured = GenerationConfig.from_pretrained(model_dir).eos_token_id
    except (OSError, ValueError):
        configured = None
    return {own, *(configured if isinstance(configured, (list, tuple)) else [])} | (
        {configured} if isinstance(configured, int) else set()
    )
