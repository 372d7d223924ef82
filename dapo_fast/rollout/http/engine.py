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
from dapo_fast.models.variants import context_length
from dapo_fast.rollout.engine import Progress, Sample, SamplingParams, Undecoded
from dapo_fast.rollout.http.answers import Asked, end_of, read_choices
from dapo_fast.rollout.http.client import Client, ServerError
from dapo_fast.rollout.http.dialect import Probe, common
from dapo_fast.rollout.loading import end_tokens, load_tokenizer, within_context
from dapo_fast.rollout.server import Server
from dapo_fast.rollout.steps import Splitter
from dapo_fast.rollout.text import text_of

log = logging.getLogger("dapo_fast.rollout.http")

STEP_TOKENS = 32  # of a request for a first step: about what a line has; what comes after the step is thrown away


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
        self.end_ids = end_tokens(_configured_end(model_dir), self.tokenizer, model_dir)
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
        self.context = min(n for n in (*lengths, context_length(config)) if n)
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
        """``params.n`` samples of each prompt. See ``SamplingParams``.

        Where ``stop`` is set, samples are asked for a few tokens at a time until their first step is whole (a server's
        own stop words know nothing of steps); through text alone they are sampled whole and cut here.

        Raises:
            ServerError: a request was refused, or failed ``retries`` times over.
        """
        if params.logprobs:
            raise InputError("logprobs: the HTTP engine does not return them; use the in-process engine")
        budgets = within_context(prompts, params.budgets(len(prompts)), self.context)
        before = self.retokenized
        if params.stop is None:
            samples = self._complete(prompts, budgets, params, params.n, "", progress)
        else:
            samples = self._first_steps(prompts, budgets, params, progress)
        if self.retokenized > before:
            log.warning(
                "%d samples came back as text and were tokenized here: their tokens may not be those sampled",
                self.retokenized - before,
            )
        return [[self._sample(ids) for ids in of_prompt] for of_prompt in samples]

    def _complete(
        self,
        prompts: Sequence[Sequence[int]],
        budgets: list[int],
        params: SamplingParams,
        n: int,
        name: str,
        progress: Progress | None,
    ) -> list[list[list[int]]]:
        """Token ids of ``n`` samples of each prompt; ``name`` tells this call's seeds from those of others."""
        parts, each = (1, n) if self.dialect.many else (n, 1)
        order = [(index, part) for index in range(len(prompts)) for part in range(parts)]
        bodies = [self._body(list(prompts[i]), params, budgets[i], f"{name}{i}/{p}", each) for i, p in order]

        def read(answer: Any, number: int) -> list[dict]:
            index, _ = order[number]
            sent = list(prompts[index]) if self.dialect.ids_in else None
            return read_choices(answer, Asked(each, budgets[index], sent, self.dialect.ids_out, self._vocabulary))

        samples: list[list[list[list[int]]]] = [[[]] * parts for _ in prompts]
        workers = self.settings.concurrency * len(self._client.servers.urls)
        for number, choices in self._client.ask_all(bodies, read, workers):
            index, part = order[number]
            samples[index][part] = [self._ids(choice) for choice in choices]
            if progress is not None:
                progress(len(choices))
        return [[ids for part in of_prompt for ids in part] for of_prompt in samples]

    def _first_steps(
        self, prompts: Sequence[Sequence[int]], budgets: list[int], params: SamplingParams, progress: Progress | None
    ) -> list[list[list[int]]]:
        """As ``_complete``, with every sample cut after its first step."""
        splitter = Splitter(self.tokenizer, params.stop or "")
        if not (self.dialect.ids_in and self.dialect.ids_out):
            whole = self._complete(prompts, budgets, params, params.n, "", progress)
            return [[ids[: splitter.first(ids)] for ids in of_prompt] for of_prompt in whole]
        samples: list[list[list[int]]] = [[[] for _ in range(params.n)] for _ in prompts]
        rows = [(index, number) for index in range(len(prompts)) for number in range(params.n)]
        call = 0
        while rows:
            left = [budgets[i] - len(samples[i][j]) for i, j in rows]
            if call == 0:
                added = self._complete(prompts, [min(b, STEP_TOKENS) for b in budgets], params, params.n, "", None)
                new = [added[i][j] for i, j in rows]
            else:
                so_far = [[*prompts[i], *samples[i][j]] for i, j in rows]
                room = [min(tokens, STEP_TOKENS) for tokens in left]
                new = [ids for (ids,) in self._complete(so_far, room, params, 1, f"{call}/", None)]
            open_rows = []
            for (i, j), ids, tokens in zip(rows, new, left, strict=True):
                samples[i][j] += ids
                first = splitter.whole_first(samples[i][j], over=ids[-1] in self.end_ids or len(ids) >= tokens)
                if first is None:
                    open_rows.append((i, j))
                else:
                    samples[i][j] = samples[i][j][:first]
            if progress is not None:
                progress(len(rows) - len(open_rows))
            rows, call = open_rows, call + 1
        return samples

    def _body(self, prompt: list[int], params: SamplingParams, budget: int, name: str, n: int) -> dict[str, Any]:
        seed = int.from_bytes(hashlib.sha256(f"{params.seed}/{name}".encode()).digest()[:4], "big") >> 1
        words = prompt if self.dialect.ids_in else self._as_text(prompt)
        return self.dialect.body(str(self.model_name), words, params, budget, n, seed)

    def _as_text(self, prompt: list[int]) -> str:
        """The text that a server turns into ``prompt``; a prompt that has none is an error."""
        text = text_of(self.tokenizer, prompt, special=True)
        bos = self.tokenizer.bos_token
        for candidate in (text, text.removeprefix(bos) if bos else text):
            if self.tokenizer(candidate)["input_ids"] == prompt:
                return candidate
        raise ServerError(
            "the servers take prompts as text only, and a prompt's tokens do not survive the way through text; "
            "use a server that takes token ids (vLLM, SGLang)"
        )

    def _ids(self, choice: dict) -> list[int]:
        """The tokens of a choice, up to and with its end token."""
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
        return ids

    def _sample(self, ids: list[int]) -> Sample:
        return Undecoded(ids, ids[-1] in self.end_ids, self.tokenizer)


def _text_config(model_dir: str | Path) -> Any:
    try:
        return AutoConfig.from_pretrained(model_dir).get_text_config()
    except (OSError, ValueError) as error:
        raise InputError(f"{model_dir}: not a readable model directory ({error})") from error


def _configured_end(model_dir: str | Path) -> Any:
    """``eos_token_id`` of the policy's generation config, whatever it is; None where there is no such file."""
    try:
        return GenerationConfig.from_pretrained(model_dir).eos_token_id
    except (OSError, ValueError):
        return None
