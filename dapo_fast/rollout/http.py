"""Sampling through OpenAI-compatible servers: vLLM, SGLang, `transformers serve`.

Prompts go out as token ids and samples come back as token ids where a server can (vLLM and SGLang: "return_token_ids");
where it cannot, text is tokenized here, and that is said loudly, since the tokens trained on are then not certainly the
tokens sampled. What a server can do, and that its tokenizer is ours, is found out before anything is sampled.

A server that fails is asked again, later, or another one is: nothing is lost but time, until the retries are spent.
"""

from __future__ import annotations

import email.utils
import hashlib
import logging
import os
import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
from transformers import GenerationConfig

from dapo_fast.config import EngineSettings
from dapo_fast.errors import InputError
from dapo_fast.rollout.engine import Progress, Sample, SamplingParams
from dapo_fast.rollout.loading import load_tokenizer
from dapo_fast.rollout.steps import Splitter

log = logging.getLogger("dapo_fast.rollout.http")

KEY_VARIABLES = ("DAPO_FAST_API_KEY", "OPENAI_API_KEY")
PROBE = "Let x = 12345.678;\n\n  then \\frac{x}{2} ≈ 6172.84 — naïve café, 数学 🙂\tend.\n"

_RETRIED = {408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529}
_FIRST_WAIT = 0.5  # seconds before the first retry; doubles
_LONGEST_WAIT = 60.0
_LONGEST_ASKED_WAIT = 600.0  # of what a server's Retry-After may ask for
_DOWN_SECONDS = 5.0  # a server that failed is avoided for so long, if there is another
_NEUTRAL = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}  # undoes a server's defaults of its own


class ServerError(InputError):
    """A server that refuses a request, or fails until the retries are spent."""


class _RetryableError(Exception):
    """A failure that another attempt may not meet."""

    def __init__(self, message: str, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after


@dataclass(frozen=True)
class Dialect:
    """What a server understands.

    Attributes:
        ids_in: Prompts as token ids; otherwise as text.
        ids_out: Samples as token ids, and sampling parameters beyond OpenAI's; otherwise text.
        many: Several samples of a prompt by one request.
    """

    ids_in: bool = True
    ids_out: bool = True
    many: bool = True


class HttpEngine:
    """Samples through the servers at ``settings.urls``, each with up to ``settings.concurrency`` requests in flight.

    Args:
        settings: ``urls`` with or without ``/v1``; ``model_name`` None takes the first model that a server lists;
            ``retries`` and ``timeout_s`` are of each request. The API key, if any, is read from the environment.
        model_dir: Hugging Face directory of the policy: its tokenizer must be the servers'.

    Raises:
        InputError: a server does not answer, refuses, or tokenizes otherwise than ``model_dir``.
    """

    def __init__(self, settings: EngineSettings, model_dir: str | Path) -> None:
        self.settings = settings
        self.tokenizer = load_tokenizer(model_dir)
        self.end_ids = _end_ids(model_dir, self.tokenizer.eos_token_id)
        key = next((os.environ[name] for name in KEY_VARIABLES if os.environ.get(name)), None)
        logging.getLogger("httpx").setLevel(logging.WARNING)
        self._client = httpx.Client(
            timeout=httpx.Timeout(settings.timeout_s, connect=min(30.0, settings.timeout_s)),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
            headers={"Authorization": f"Bearer {key}"} if key else {},
        )
        self._stop = threading.Event()
        self._pool = _Servers([url.rstrip("/").removesuffix("/v1") for url in settings.urls])
        self.model_name = settings.model_name or self._first_model()
        dialects = {url: self._probe(url) for url in self._pool.urls}
        # One dialect for all: what the least able server understands.
        self.dialect = Dialect(*(all(getattr(d, f) for d in dialects.values()) for f in ("ids_in", "ids_out", "many")))
        self.retokenized = 0
        log.info("sampling %s through %s: %s", self.model_name, ", ".join(self._pool.urls), self.dialect)

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
        if any(not prompt for prompt in prompts):
            raise InputError("prompts: an empty one; a model needs at least one token")
        budgets = params.budgets(len(prompts))
        many = self.dialect.many
        bodies = [
            (index, self._body(list(prompt), params, budgets[index], f"{index}/{part}", params.n if many else 1))
            for index, prompt in enumerate(prompts)
            for part in range(1 if many else params.n)
        ]
        splitter = Splitter(self.tokenizer, params.stop) if params.stop is not None else None
        before = self.retokenized
        samples: list[dict[int, list[Sample]]] = [{} for _ in prompts]
        for number, choices in self._all([body for _, body in bodies], progress):
            index = bodies[number][0]
            samples[index][number] = [self._sample(choice, splitter) for choice in choices]
        if self.retokenized > before:
            log.warning(
                "%d samples came back as text and were tokenized here: their tokens may not be those sampled",
                self.retokenized - before,
            )
        return [[s for number in sorted(parts) for s in parts[number]] for parts in samples]

    # Requests ---------------------------------------------------------------------------------------------------

    def _body(self, prompt: list[int], params: SamplingParams, budget: int, name: str, n: int) -> dict[str, Any]:
        seed = int.from_bytes(hashlib.sha256(f"{params.seed}/{name}".encode()).digest()[:4], "big") >> 1
        body: dict[str, Any] = {
            "model": self.model_name,
            "prompt": prompt if self.dialect.ids_in else self._as_text(prompt),
            "max_tokens": budget,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "seed": seed,
        }
        if n > 1:
            body["n"] = n
        if self.dialect.ids_out:
            body |= _NEUTRAL | {"return_token_ids": True}
        return body

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

    def _all(self, bodies: list[dict], progress: Progress | None) -> Any:
        """(number, choices) of every body, as they come."""
        self._stop.clear()
        workers = max(1, min(len(bodies), self.settings.concurrency * len(self._pool.urls)))
        executor = ThreadPoolExecutor(workers, thread_name_prefix="rollout")
        pending: dict[Future, int] = {executor.submit(self._complete, body): i for i, body in enumerate(bodies)}
        try:
            while pending:
                done, _ = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    choices = future.result()
                    yield pending.pop(future), choices
                    if progress is not None:
                        progress(len(choices))
        finally:
            self._stop.set()
            executor.shutdown(wait=True, cancel_futures=True)

    def _complete(self, body: dict) -> list[dict]:
        """The choices of one request, asked for until they come whole."""
        for attempt in range(self.settings.retries + 1):
            with self._pool.least_busy(self.settings.concurrency) as server:
                try:
                    return _choices(self._post(f"{server.url}/v1/completions", body), body.get("n", 1))
                except _RetryableError as error:
                    failure = error
                    server.failed()
            if attempt == self.settings.retries:
                break
            pause = failure.after
            if pause is None:
                pause = min(_LONGEST_WAIT, _FIRST_WAIT * 2**attempt) * random.uniform(0.5, 1.0)
            log.warning("%s: %s; again in %.1f s (%d of %d)", server.url, failure, pause, attempt + 1, self._retries)
            if self._stop.wait(pause):
                raise ServerError("sampling was given up")
        raise ServerError(
            f"{server.url}: {failure}; given up after {self._retries} retries. Start the server again and repeat the "
            "command: what was collected so far is kept"
        )

    @property
    def _retries(self) -> int:
        return self.settings.retries

    def _post(self, url: str, body: dict) -> Any:
        try:
            response = self._client.post(url, json=body)
        except httpx.TimeoutException as error:
            raise _RetryableError(f"no answer in {self.settings.timeout_s:g} s") from error
        except httpx.TransportError as error:
            raise _RetryableError(f"{type(error).__name__}: {error}") from error
        if response.status_code in _RETRIED:
            raise _RetryableError(f"HTTP {response.status_code}", _retry_after(response))
        _refuse(response, url)
        try:
            return response.json()
        except ValueError as error:
            raise _RetryableError("an answer that is not JSON") from error

    # Answers ----------------------------------------------------------------------------------------------------

    def _sample(self, choice: dict, splitter: Splitter | None) -> Sample:
        ended = choice.get("finish_reason") == "stop"
        ids = choice.get("token_ids") if self.dialect.ids_out else None
        if ids is None:
            self.retokenized += 1
            ids = self.tokenizer(choice["text"], add_special_tokens=False)["input_ids"]
        ids = list(ids)
        if ended and (not ids or ids[-1] not in self.end_ids):
            reason = choice.get("stop_reason")  # vLLM names an end token other than the tokenizer's own
            ids.append(reason if reason in self.end_ids else self.tokenizer.eos_token_id)
        if splitter is not None:
            ids = ids[: splitter.first(ids)]
        text = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return Sample(ids, text, ids[-1] in self.end_ids)

    # Before anything is sampled ---------------------------------------------------------------------------------

    def _first_model(self) -> str:
        url = f"{self._pool.urls[0]}/v1/models"
        try:
            response = self._client.get(url)
            _refuse(response, url)
            return str(response.json()["data"][0]["id"])
        except (httpx.TransportError, ValueError, LookupError, TypeError) as error:
            raise ServerError(f"{url}: no list of models ({error}); is the server up? Else set model_name") from error

    def _probe(self, url: str) -> Dialect:
        """What the server at ``url`` understands; its tokenizer is compared on the way."""
        ids = self.tokenizer(PROBE)["input_ids"]
        self.dialect = Dialect()
        params = SamplingParams(n=2, max_tokens=1)
        answer = None
        for ids_in, ids_out in ((True, True), (True, False), (False, False)):
            self.dialect = Dialect(ids_in, ids_out)
            body = self._body(ids, params, 1, "probe", 1)
            if not ids_in:
                body["prompt"] = PROBE
            answer = self._ask(url, body)
            if answer is not None:
                break
        if answer is None:
            raise ServerError(f"{url}: refuses completions of {self.model_name!r} from token ids and from text alike")
        dialect = self.dialect
        if dialect.ids_out and not isinstance(answer["choices"][0].get("token_ids"), list):
            dialect = replace(dialect, ids_out=False)
        if not dialect.ids_out:
            log.warning(
                "%s does not return token ids: samples are tokenized here, and the tokens trained on may not be those "
                "sampled. vLLM 0.10.2 and SGLang of July 2026, or newer, return them",
                url,
            )
        self._compare_tokenizers(url, dialect)
        two = self._ask(url, body | {"n": 2})
        return replace(dialect, many=two is not None and len(two["choices"]) == 2)

    def _ask(self, url: str, body: dict) -> dict | None:
        """An answer with choices; None where the server refuses what the body asks for."""
        for attempt in range(self.settings.retries + 1):
            try:
                answer = self._post(f"{url}/v1/completions", body)
            except _RetryableError as error:
                if attempt == self.settings.retries:
                    raise ServerError(f"{url}: {error}; is it a completions server, and is it up?") from error
                self._stop.wait(error.after or min(_LONGEST_WAIT, _FIRST_WAIT * 2**attempt))
                continue
            except ServerError as error:
                if isinstance(error, _KeyError):
                    raise
                log.debug("%s refuses a probe: %s", url, error)
                return None
            usable = isinstance(answer, dict) and isinstance(answer.get("choices"), list) and answer["choices"]
            return answer if usable else None
        return None

    def _compare_tokenizers(self, url: str, dialect: Dialect) -> None:
        ours = self.tokenizer(PROBE, add_special_tokens=False)["input_ids"]
        theirs = self._tokenized_by(url)
        if theirs is None and dialect.ids_out:
            answer = self._ask(url, self._body(ours, SamplingParams(1, 1), 1, "probe", 1) | {"prompt": PROBE})
            theirs = answer["choices"][0].get("prompt_token_ids") if answer else None
            if theirs == self.tokenizer(PROBE)["input_ids"]:
                return
        if theirs is None and not dialect.ids_in:
            answer = self._ask(url, self._body(ours, SamplingParams(1, 1), 1, "probe", 1) | {"prompt": PROBE})
            count = ((answer or {}).get("usage") or {}).get("prompt_tokens")
            if count is not None and count not in (len(ours), len(self.tokenizer(PROBE)["input_ids"])):
                raise InputError(f"{url}: its tokenizer makes {count} tokens of a probe text, ours {len(ours)}")
        if theirs is None:
            log.warning("%s cannot say how it tokenizes: that its tokenizer is the policy's was NOT checked", url)
        elif theirs != ours:
            where = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), min(len(ours), len(theirs)))
            raise InputError(
                f"{url}: its tokenizer is not the policy's: of a probe text they differ from token {where} on "
                f"({theirs[where : where + 4]} there, {ours[where : where + 4]} here)"
            )

    def _tokenized_by(self, url: str) -> list[int] | None:
        body = {"model": self.model_name, "prompt": PROBE, "add_special_tokens": False}
        try:
            tokens = self._post(f"{url}/tokenize", body)["tokens"]
        except (_RetryableError, ServerError, LookupError, TypeError):
            return None
        return tokens if isinstance(tokens, list) else None


class _KeyError(ServerError):
    """A server that wants another API key."""


def _refuse(response: httpx.Response, url: str) -> None:
    """Raise what an unsuccessful ``response`` says."""
    if response.status_code in (401, 403):
        raise _KeyError(f"{url}: HTTP {response.status_code}; set {' or '.join(KEY_VARIABLES)} to its API key")
    if not response.is_success:
        raise ServerError(f"{url}: HTTP {response.status_code}: {response.text[:300]}")


def _choices(answer: Any, wanted: int) -> list[dict]:
    """The ``wanted`` choices of an answer, in order; a malformed answer is worth another attempt."""
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or len(choices) != wanted:
        raise _RetryableError(f"an answer without {wanted} choices")
    for choice in choices:
        if not isinstance(choice, dict) or not isinstance(choice.get("text"), str):
            raise _RetryableError("a choice without text")
        if not choice["text"] and not choice.get("token_ids") and choice.get("finish_reason") != "stop":
            raise _RetryableError("an empty sample that did not end")
        if choice.get("finish_reason") not in ("stop", "length"):
            raise _RetryableError(f"a sample that ended by {choice.get('finish_reason')!r}")
    return sorted(choices, key=lambda choice: choice.get("index", 0))


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds that a server asks to wait."""
    text = response.headers.get("Retry-After", "").strip()
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
        except ValueError:
            return None
    return min(max(seconds, 0.0), _LONGEST_ASKED_WAIT)


def _end_ids(model_dir: str | Path, own: int) -> set[int]:
    """End tokens of the policy: the generation config's, if there is one, and the tokenizer's."""
    try:
        configured = GenerationConfig.from_pretrained(model_dir).eos_token_id
    except (OSError, ValueError):
        configured = None
    return {own, *(configured if isinstance(configured, (list, tuple)) else [])} | (
        {configured} if isinstance(configured, int) else set()
    )


# ------------------------------------------------------------------------------------------------ which server


class _Server:
    """One server and the requests in flight to it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.busy = 0
        self.down_until = 0.0

    def failed(self) -> None:
        self.down_until = time.monotonic() + _DOWN_SECONDS


class _Servers:
    """Lends the least busy server, one that failed just now last."""

    def __init__(self, urls: list[str]) -> None:
        self.urls = urls
        self._servers = [_Server(url) for url in urls]
        self._free = threading.Condition()

    def least_busy(self, limit: int) -> _Loan:
        with self._free:
            while True:
                now = time.monotonic()
                open_ = [server for server in self._servers if server.busy < limit]
                if open_:
                    server = min(open_, key=lambda s: (s.down_until > now, s.busy))
                    server.busy += 1
                    return _Loan(server, self._free)
                self._free.wait()


class _Loan:
    """A server while one request uses it."""

    def __init__(self, server: _Server, free: threading.Condition) -> None:
        self._server = server
        self._free = free

    def __enter__(self) -> _Server:
        return self._server

    def __exit__(self, *_: object) -> None:
        with self._free:
            self._server.busy -= 1
            self._free.notify()
