"""The dry run's other half: how many tokens an iteration samples and trains on, and the arithmetic of it.

Counted from the settings and from guessed lengths, which are the caller's; nothing is loaded or measured. The actor's
and Q's counts are upper bounds: every state kept, every completion beginning with another step.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from dapo_fast.config import Config
from dapo_fast.models.loading import load_config_of, new_causal_lm

PROBLEMS = 1000  # where neither the caller nor the settings name a number


@dataclass(frozen=True)
class Lengths:
    """What responses look like, on average.

    Attributes:
        prompt: Tokens of the templated prompt.
        response: Tokens of a response.
        steps: Steps of a response.
    """

    prompt: int = 200
    response: int = 400
    steps: int = 12


@dataclass(frozen=True)
class StageWork:
    """One stage of one iteration.

    Attributes:
        stage: ``collect``, ``critic``, ``advantages`` or ``actor``.
        sampled: Tokens generated.
        packed: Tokens read in packs, over all epochs.
        flat: The same with one sequence a state or candidate step; 0 where nothing is packed.
        flop: Floating-point operations of the model on ``sampled`` or ``packed`` tokens, prompts read for sampling
            not counted (a server with prefix caching reads each once).
    """

    stage: str
    sampled: float
    packed: float
    flat: float
    flop: float


@dataclass(frozen=True)
class IterationCost:
    """The stages of one iteration over ``problems`` problems."""

    problems: int
    lengths: Lengths
    stages: tuple[StageWork, ...]

    def __str__(self) -> str:
        lengths = self.lengths
        lines = [
            f"one iteration over {self.problems} problems, with prompts of {lengths.prompt} tokens and responses of "
            f"{lengths.response} tokens in {lengths.steps} steps; at most:"
        ]
        for work in self.stages:
            read = f"{_count(work.packed)} tokens packed ({_count(work.flat)} flat)" if work.packed else ""
            what = f"{_count(work.sampled)} tokens sampled" if work.sampled else read
            lines.append(f"  {work.stage:<11} {what:<44} {work.flop / 1e18:10.2f} EFLOP")
        return "\n".join(lines)


def _count(tokens: float) -> str:
    return f"{tokens / 1e9:.2f} G" if tokens >= 1e9 else f"{tokens / 1e6:.1f} M"


def iteration_cost(
    model: str | Path, config: Config, problems: int | None = None, lengths: Lengths | None = None
) -> IterationCost:
    """What one iteration of ``config`` will sample, read and train on.

    Args:
        model: Directory with ``config.json``; no weights are read.
        problems: None: ``data.limit``, or 1,000.

    Raises:
        InputError: no readable model config.
    """
    lengths = lengths or Lengths()
    problems = problems or config.data.limit or PROBLEMS
    flop = _Flop(model)
    collect = config.collect
    step = lengths.response / lengths.steps
    # The prompt is one state; every kept response brings its other step boundaries.
    states = problems * (1 + collect.kept * (lengths.steps - 1) / collect.every_state)
    completion = lengths.response * (lengths.steps + 1) / (2 * lengths.steps)
    sampled = problems * collect.samples * lengths.response + states * collect.completions * completion
    depth = lengths.prompt + lengths.response / 2
    trunks = problems * (lengths.prompt + collect.kept * lengths.response)
    candidates = states * collect.completions * step
    pairs = states * collect.completions
    critic = config.critic.epochs * trunks
    values = trunks + candidates
    actor = config.actor.epochs * values
    # The reference is read once, before the first epoch; training costs three times a forward pass.
    actor_flop = flop(values, candidates, depth) * (3 * config.actor.epochs + 1)
    return IterationCost(
        problems,
        lengths,
        (
            StageWork("collect", sampled, 0, 0, flop(sampled, sampled, depth)),
            StageWork("critic", 0, critic, config.critic.epochs * states * depth, 3 * flop(critic, 0, depth)),
            StageWork("advantages", 0, values, pairs * (depth + step), flop(values, 0, depth)),
            StageWork("actor", 0, actor, config.actor.epochs * pairs * (depth + step), actor_flop),
        ),
    )


class _Flop:
    """Operations of a forward pass of one model."""

    def __init__(self, model: str | Path) -> None:
        config = load_config_of(model)
        with torch.device("meta"):
            policy = new_causal_lm(config, 0, torch.device("meta"), torch.float32)
        text = config.get_text_config()
        self._head = text.vocab_size * text.hidden_size
        embedding = policy.get_input_embeddings().weight.numel()
        tied = policy.get_output_embeddings().weight is policy.get_input_embeddings().weight
        total = sum(p.numel() for p in policy.parameters())
        self._body = total - embedding - (0 if tied else self._head)
        self._attention = 4 * text.num_hidden_layers * text.num_attention_heads * (
            getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        )  # fmt: skip

    def __call__(self, tokens: float, scored: float, depth: float) -> float:
        """``tokens`` through the body at a mean ``depth``, ``scored`` of them through the head."""
        return tokens * (2 * self._body + self._attention * depth) + 2 * self._head * scored
