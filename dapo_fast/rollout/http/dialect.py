"""What a server understands, and that it is the policy's: found out before anything is sampled."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from dapo_fast.errors import InputError
from dapo_fast.rollout.engine import SamplingParams
from dapo_fast.rollout.http.client import Client, KeyRefusedError, ServerError
from dapo_fast.rollout.loading import PROBE

log = logging.getLogger("dapo_fast.rollout.http")

_NEUTRAL = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}  # undoes a server's defaults of its own


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

    def body(
        self, model: str, prompt: list | str, params: SamplingParams, max_tokens: int, n: int, seed: int
    ) -> dict[str, Any]:
        """The request for ``n`` samples of ``prompt``, which is in the dialect already."""
        body: dict[str, Any] = {
            "model": model,
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "seed": seed,
        }
        if n > 1:
            body["n"] = n
        if self.ids_out:
            body |= _NEUTRAL | {"return_token_ids": True}
        return body


def common(dialects: list[Dialect]) -> Dialect:
    """One dialect for all: what the least able server understands."""
    return Dialect(*(all(getattr(d, name) for d in dialects) for name in ("ids_in", "ids_out", "many")))


class Probe:
    """Asks one server what it can do.

    Raises, from every method:
        InputError: the server is not there, refuses completions, or tokenizes otherwise than the policy.
    """

    def __init__(self, client: Client, url: str, tokenizer: PreTrainedTokenizerBase, model: str | None) -> None:
        """``model`` None takes the first that the server lists."""
        self.client = client
        self.url = url
        self.tokenizer = tokenizer
        self.ids: list[int] = tokenizer(PROBE)["input_ids"]
        self._listed = self._models(needed=model is None)
        self.model = model or str(self._listed[0]["id"])

    def context(self) -> int | None:
        """Most tokens of prompt and response together, where the server says so (vLLM, SGLang)."""
        own = next((entry for entry in self._listed if entry.get("id") == self.model), {})
        length = own.get("max_model_len")
        return length if type(length) is int and length > 0 else None

    def dialect(self) -> Dialect:
        """What it understands; its tokenizer is compared on the way."""
        # Seeds are tried last: a server that dies of one should have answered everything else by then.
        dialect, answer = self._tried()
        if dialect.ids_out and not isinstance(answer["choices"][0].get("token_ids"), list):
            dialect = Dialect(dialect.ids_in, False)
        if not dialect.ids_out:
            log.warning(
                "%s does not return token ids: samples are tokenized here, and the tokens trained on may not be those "
                "sampled. vLLM 0.10.2 and SGLang of July 2026, or newer, return them",
                self.url,
            )
        self._compare_tokenizers(dialect)
        two = self._ask(self._body(dialect, n=2))
        dialect = Dialect(dialect.ids_in, dialect.ids_out, two is not None and len(two["choices"]) == 2)
        if self.client.settings.seed == "auto" and self.client.seeds:
            self._try_seeds(dialect)
        return dialect

    def _tried(self) -> tuple[Dialect, dict]:
        for ids_in, ids_out in ((True, True), (True, False), (False, False)):
            dialect = Dialect(ids_in, ids_out)
            answer = self._ask(self._body(dialect))
            if answer is not None:
                return dialect, answer
        names = ", ".join(str(entry.get("id")) for entry in self._listed) or "none"
        raise ServerError(
            f"{self.url}: refuses completions of {self.model!r} from token ids and from text alike (it lists {names})"
        )

    def _try_seeds(self, dialect: Dialect) -> None:
        """One seeded request with several prompts: what kills vLLM's CPU engine. ``client.seeds`` says how it went."""
        one = self.ids if dialect.ids_in else PROBE
        for prompt in ([one, one, one], one):
            body = self._body(dialect, n=2 if dialect.many else 1) | {"prompt": prompt, "seed": 1, "max_tokens": 4}
            if self._ask(body, seed_in_doubt=True) is not None:
                return
        self.client.seeds = False
        log.warning("%s: refuses seeded requests: they carry none, and sampling CANNOT be repeated", self.url)

    def _body(self, dialect: Dialect, n: int = 1) -> dict[str, Any]:
        prompt = self.ids if dialect.ids_in else PROBE
        body = dialect.body(self.model, prompt, SamplingParams(n, 1), 1, n, 0)
        del body["seed"]
        return body

    def _ask(self, body: dict, seed_in_doubt: bool = False) -> dict | None:
        """An answer with choices; None where the server refuses what the body asks for."""

        def read(answer: Any) -> dict | None:
            usable = isinstance(answer, dict) and isinstance(answer.get("choices"), list) and answer["choices"]
            return answer if usable else None

        try:
            return self.client.ask(body, read, url=self.url, seed_in_doubt=seed_in_doubt)
        except KeyRefusedError:
            raise
        except ServerError as error:
            if not error.refused:
                raise
            log.debug("%s refuses a probe: %s", self.url, error)
            return None

    def _models(self, needed: bool) -> list[dict]:
        def read(answer: Any) -> list[dict]:
            listed = answer.get("data") if isinstance(answer, dict) else None
            return [entry for entry in listed or [] if isinstance(entry, dict) and "id" in entry]

        try:
            listed = self.client.ask(None, read, url=self.url, path="/v1/models")
        except ServerError as error:
            if needed or not error.refused:
                raise
            listed = []
        if needed and not listed:
            raise ServerError(f"{self.url}/v1/models: no list of models; set engine.model_name")
        return listed

    # Its tokenizer ----------------------------------------------------------------------------------------------

    def _compare_tokenizers(self, dialect: Dialect) -> None:
        ours = self.tokenizer(PROBE, add_special_tokens=False)["input_ids"]
        theirs = self._tokenized()
        if theirs is None and dialect.ids_out:
            answer = self._ask(self._body(dialect) | {"prompt": PROBE})
            theirs = answer["choices"][0].get("prompt_token_ids") if answer else None
            if theirs == self.ids:
                return
        if theirs is None and not dialect.ids_in:
            answer = self._ask(self._body(dialect))
            count = ((answer or {}).get("usage") or {}).get("prompt_tokens")
            if count is not None and count not in (len(ours), len(self.ids)):
                raise InputError(f"{self.url}: its tokenizer makes {count} tokens of a probe text, ours {len(ours)}")
        if theirs is None:
            log.warning("%s cannot say how it tokenizes: that its tokenizer is the policy's was NOT checked", self.url)
        elif theirs != ours:
            where = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), min(len(ours), len(theirs)))
            raise InputError(
                f"{self.url}: its tokenizer is not the policy's: of a probe text they differ from token {where} on "
                f"({theirs[where : where + 4]} there, {ours[where : where + 4]} here)"
            )

    def _tokenized(self) -> list[int] | None:
        body = {"model": self.model, "prompt": PROBE, "add_special_tokens": False}

        def read(answer: Any) -> list[int] | None:
            tokens = answer.get("tokens") if isinstance(answer, dict) else None
            return tokens if isinstance(tokens, list) else None

        try:
            return self.client.ask(body, read, url=self.url, path="/tokenize")
        except KeyRefusedError:
            raise
        except ServerError:  # not there, or broken: the tokenizer is compared otherwise
            return None
