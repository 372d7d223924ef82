"""What an answer of a server must look like, and the sample that a choice of it is.

An answer that is malformed is worth another attempt. One that is well formed and cannot be true (a token that the
policy does not have, more tokens than were asked for, another prompt) is an error at once: that server samples from
something else.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from dapo_fast.rollout.http.client import RetryableError, ServerError


@dataclass(frozen=True)
class Asked:
    """What an answer is held against.

    Attributes:
        n: Choices.
        max_tokens: Most tokens of each.
        prompt: Its token ids, where they were sent.
        ids: Whether choices come as token ids.
        vocabulary: Number of the policy's tokens.
    """

    n: int
    max_tokens: int
    prompt: list[int] | None
    ids: bool
    vocabulary: int


def read_choices(answer: Any, asked: Asked) -> list[dict]:
    """The choices of an answer, in order.

    Raises:
        RetryableError: malformed, or not all of it.
        ServerError: cannot be an answer to what was asked.
    """
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or len(choices) != asked.n:
        raise RetryableError(f"an answer without {asked.n} choices")
    for choice in choices:
        if not isinstance(choice, dict) or not isinstance(choice.get("text"), str):
            raise RetryableError("a choice without text")
        reason = choice.get("finish_reason")
        if reason not in ("stop", "length"):
            raise RetryableError(f"a sample that ended by {reason!r}")
        if asked.ids:
            _check_ids(choice, asked)
        if reason == "length" and not (choice["token_ids"] if asked.ids else choice["text"]):
            raise RetryableError("an empty sample that did not end")
    order = [choice.get("index", place) for place, choice in enumerate(choices)]
    if sorted(order) != list(range(asked.n)):
        raise RetryableError(f"choices numbered {order}")
    return [choices[order.index(place)] for place in range(asked.n)]


def _check_ids(choice: dict, asked: Asked) -> None:
    ids = choice.get("token_ids")
    if not isinstance(ids, list):
        raise RetryableError("a sample without token ids")
    for token in ids:
        if type(token) is not int or not 0 <= token < asked.vocabulary:
            raise ServerError(
                f"a server answers with token id {token!r}, and the policy has tokens 0 to {asked.vocabulary - 1}: "
                "it serves another model"
            )
    if len(ids) > asked.max_tokens:
        raise ServerError(f"a server answers with {len(ids)} tokens where at most {asked.max_tokens} were asked for")
    told = choice.get("prompt_token_ids")
    if asked.prompt is not None and isinstance(told, list) and told != asked.prompt:
        raise ServerError(
            f"a server has changed a prompt of {len(asked.prompt)} tokens into {len(told)} others before it sampled"
        )


def end_of(choice: dict, ids: list[int], end_ids: Collection[int], own: int) -> list[int] | None:
    """``ids`` up to and with its first end token; None where no end token was sampled.

    ``finish_reason`` "stop" alone is not one: a server may have stop words of its own, and then names in
    ``stop_reason`` (SGLang: ``matched_stop``) what it stopped at; it is null after the end token ``own``.
    """
    for place, token in enumerate(ids):
        if token in end_ids:
            return ids[: place + 1]
    if choice["finish_reason"] == "stop":
        reason = choice.get("stop_reason", choice.get("matched_stop"))
        if reason is None:
            return [*ids, own]
        if type(reason) is int and reason in end_ids:
            return [*ids, reason]
    return None
