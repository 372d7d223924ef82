"""Prompts as messages: what a chat model is told, turn by turn, checked where they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from dapo_fast.data.rows import Row, kind
from dapo_fast.errors import InputError

Messages = list[dict[str, Any]]

ROLES = ("system", "developer", "user", "assistant", "tool")


def prompt_of(row: Row, where: str) -> str | Messages:
    """The field "prompt": a text, or messages; what these hold beside role and content stays as it is.

    Raises:
        InputError: neither, naming ``where`` and the message that is wrong.
    """
    prompt = row["prompt"]
    if isinstance(prompt, str):
        return prompt
    if not isinstance(prompt, list):
        raise InputError(f"{where}: 'prompt' must be text or messages, not {kind(prompt)}")
    if not prompt:
        raise InputError(f"{where}: 'prompt' holds no message")
    # A datasets.Dataset fills every field that other rows have with None.
    messages = [_message(item, f"{where}: prompt, message {number}") for number, item in enumerate(prompt, 1)]
    if not any(message["role"] == "user" for message in messages):
        raise InputError(f"{where}: 'prompt' has no message of the user")
    last = messages[-1]["role"]
    if last not in ("user", "tool"):
        raise InputError(f"{where}: 'prompt' ends with a message of {last!r}: nothing is left to answer")
    tools = row.get("tools")
    if tools is not None and not _objects(tools):
        raise InputError(f"{where}: 'tools' must be an array of objects")
    return messages


def _objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _message(item: Any, where: str) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise InputError(f"{where}: must be an object with 'role' and 'content', not {kind(item)}")
    message = {key: value for key, value in item.items() if value is not None}
    if message.get("role") not in ROLES:
        raise InputError(f"{where}: 'role' must be one of {', '.join(ROLES)}, not {message.get('role')!r}")
    calls = message.get("tool_calls")
    if calls is not None and not _objects(calls):
        raise InputError(f"{where}: 'tool_calls' must be an array of objects, not {kind(calls)}")
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    of_text = parts and all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in parts)
    if not isinstance(content, str) and not of_text and not (content is None and calls):
        raise InputError(f"{where}: 'content' must be text, or an array of objects with 'text', not {kind(content)}")
    return message


def question(messages: Messages) -> str:
    """What the user said last, as text: the problem as people and rewards read it."""
    content = next(message["content"] for message in reversed(messages) if message["role"] == "user")
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def texts(value: Any) -> Iterator[str]:
    """Every text in messages, or in whatever else JSON can hold."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from texts(item)


def with_texts(value: Any, change: Callable[[str], str]) -> Any:
    """``value`` with every text in it changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: with_texts(item, change) for key, item in value.items()}
    return [with_texts(item, change) for item in value] if isinstance(value, list) else value
