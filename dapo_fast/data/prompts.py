"""Prompts: a problem in a template, as token ids. Whatever a question spells, it stays text."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from dapo_fast.data.messages import Messages, texts, with_texts
from dapo_fast.data.problems import Problem
from dapo_fast.errors import InputError, blaming

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dapo_fast.config import DataSettings

_INSTRUCTIONS = {
    "math": "Please reason step by step, and put your final answer within \\boxed{}.",
    "code": "Please write a complete Python program in one ```python code block.",
}
_PLAIN = {"math": "Problem:\n{prompt}\n\nSolution:\n"}
_PRIVATE = range(0xE000, 0xF900)  # characters that mean nothing


def prompt_encoder(tokenizer: PreTrainedTokenizerBase, data: DataSettings) -> Callable[[Problem], list[int]]:
    """``format_prompt`` with this tokenizer and these settings."""
    return lambda problem: format_prompt(problem, tokenizer, data.template, data.system_prompt)


def format_prompt(
    problem: Problem, tokenizer: PreTrainedTokenizerBase, template: str, system: str | None = None
) -> list[int]:
    """Token ids of ``problem`` in ``template``.

    Special tokens that a question spells (``<|im_end|>``) are text, but with "none"; and a text that begins with the
    tokenizer's BOS gets no second one.

    Args:
        template: "chat": the tokenizer's chat template, with the instruction its kind of problem needs unless the
            template gives one itself, or its messages as they are; "plain": a heading and the question, for base models
            (code: the question alone, to be completed); "none": the prompt as it is, already rendered by whoever wrote
            it; or a text with ``{prompt}``.
        system: With "chat", the system prompt of conversations that do not begin with one.

    Raises:
        InputError: no such template, "chat" and a tokenizer without one, or messages and another than "chat".
    """
    if template == "chat":
        return _chat(problem, tokenizer, system)
    if problem.messages is not None:
        raise InputError(f"problem {problem.id!r}: its prompt is messages, for which data.template must be chat")
    if template == "none":
        return list(tokenizer(problem.prompt, add_special_tokens=False)["input_ids"])
    if template == "plain":
        template = _PLAIN.get(problem.kind, "{prompt}")
    if "{prompt}" not in template:
        raise InputError(f"template {template!r}: is none of chat, plain, none, and has no {{prompt}}")
    bos = getattr(tokenizer, "bos_token", None)
    whole = bool(bos) and template.startswith(str(bos))
    return _tokens(tokenizer, problem.prompt, lambda said: template.replace("{prompt}", said), add=not whole)


def _chat(problem: Problem, tokenizer: PreTrainedTokenizerBase, system: str | None) -> list[int]:
    if not tokenizer.chat_template:
        raise InputError("template chat: this model's tokenizer has no chat template; use plain, none or a text")
    tools = (problem.extra or {}).get("tools")
    options: dict[str, Any] = {} if tools is None else {"tools": tools}

    def render(messages: Messages) -> str:
        with blaming(f"template chat: the chat template of {tokenizer.name_or_path}", "cannot be rendered"):
            return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options))

    def asked(content: str) -> Messages:
        return [*opening, {"role": "user", "content": content}]

    opening: Messages = [] if system is None else [{"role": "system", "content": system}]
    if problem.messages is not None:
        begins = problem.messages[0]["role"] in ("system", "developer")
        return _tokens(tokenizer, [*([] if begins else opening), *problem.messages], render)
    instruction = _INSTRUCTIONS.get(problem.kind)
    # Qwen2.5-Math's own system prompt asks for a box already.
    if instruction is None or (problem.kind == "math" and "\\boxed" in render(asked(""))):
        return _tokens(tokenizer, asked(problem.prompt), render)
    return _tokens(tokenizer, asked(f"{problem.prompt}\n{instruction}"), render)


@lru_cache(maxsize=4)
def _special(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str] | None:
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    names = {*getattr(tokenizer, "all_special_tokens", ()), *(str(token) for token in added if token.special)}
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True)))) if names else None


def _tokens(
    tokenizer: PreTrainedTokenizerBase, said: Any, render: Callable[[Any], str], add: bool = False
) -> list[int]:
    """Tokens of ``render(said)``, in which the special tokens that ``said`` spells are text.

    Args:
        add: The tokens that the tokenizer puts around a text (BOS) belong to it.
    """
    special = _special(tokenizer)
    if special is None or not any(special.search(text) for text in texts(said)):
        return list(tokenizer(render(said), add_special_tokens=add)["input_ids"])
    # A template may ask for anything of what is said, so that it must see a text; but not one that reads like its own.
    mark = next(mark for mark in map(chr, _PRIVATE) if not any(mark in text for text in texts(said)))
    spelled: list[str] = []

    def hide(found: re.Match[str]) -> str:
        spelled.append(found[0])
        return f"{mark}{len(spelled) - 1}{mark}"

    rendered = render(with_texts(said, lambda text: special.sub(hide, text)))
    ids: list[int] = []
    if add and tokenizer.bos_token_id in tokenizer("")["input_ids"]:
        ids.append(tokenizer.bos_token_id)
    start = 0
    for found in [*special.finditer(rendered), None]:
        piece = rendered[start : found.start() if found else None]
        piece = re.sub(f"{mark}(\\d+){mark}", lambda number: spelled[int(number[1])], piece)
        if piece:
            ids += tokenizer(piece, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        if found:
            ids.append(tokenizer.convert_tokens_to_ids(found[0]))
            start = found.end()
    return ids
