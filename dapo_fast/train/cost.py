"""The dry run's other half: how many tokens an iteration samples and trains on, and the arithmetic of it.

Counted from the settings and from guessed lengths, which are the caller's; nothing is loaded or measured. The actor's
and Q's counts are upper bounds: every state kept, every completion beginning with another step.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from dapo_fast.config import CollectSettings, Config
from dapo_fast.models.loading import load_config_of, new_causal_lm
from dapo_fast.models.size import active_body
from dapo_fast.models.variants import head_size, largest

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


def sampled_tokens(collect: CollectSettings, problems: int, lengths: Lengths) -> float:
    """Tokens that one collection samples: responses, completions of the states, first steps."""
    kept = collect.kept if collect.completions else collect.samples
    # Every kept response brings its step boundaries; the prompt is one state more.
    boundaries = kept * (lengths.steps - 1) / collect.every_state
    states = boundaries + (0 if collect.reuse_samples else 1)
    completion = lengths.response * (lengths.steps + 1) / (2 * lengths.steps)
    first_steps = (boundaries + 1) * collect.first_steps * lengths.response / lengths.steps
    return problems * (collect.samples * lengths.response + states * collect.completions * completion + first_steps)


PLANS: dict[str, dict[str, object]] = {
    "16 completions of every state (the paper)": {"completions": 16, "every_state": 1, "reuse_samples": False},
    "8 completions of every state": {"completions": 8, "every_state": 1, "reuse_samples": True},
    "2 completions of every state": {"completions": 2, "every_state": 1, "reuse_samples": True},
    "2 completions of every second state": {"completions": 2, "every_state": 2, "reuse_samples": True},
    "no completions, 8 first steps of every state": {"completions": 0, "first_steps": 8, "every_state": 1},
    "responses alone": {"completions": 0, "first_steps": 0, "every_state": 1},
}


def plans(config: Config, problems: int | None = None, lengths: Lengths | None = None) -> str:
    """Tokens that each sampling plan takes for an iteration, at the settings' samples and kept responses, as text."""
    lengths = lengths or Lengths()
    problems = problems or config.data.limit or PROBLEMS
    own = sampled_tokens(config.collect, problems, lengths)
    lines = ["tokens sampled by other plans, from as many responses, and their share of these settings':"]
    for name, change in PLANS.items():
        tokens = sampled_tokens(config.collect.model_copy(update={"first_steps": 0} | change), problems, lengths)
        lines.append(f"  {name:<45} {_count(tokens):>10} {tokens / own:7.0%}")
    return "\n".join(lines)


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
    kept = collect.kept if collect.completions else collect.samples
    states = problems * (1 + kept * (lengths.steps - 1) / collect.every_state)
    sampled = sampled_tokens(collect, problems, lengths)
    depth = lengths.prompt + lengths.response / 2
    trunks = problems * (lengths.prompt + kept * lengths.response)
    # Steps that only trunks take are in the trunks already.
    pairs = states * (collect.completions + collect.first_steps)
    candidates = pairs * step
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
        self._body = active_body(policy)
        heads = largest(text, "num_attention_heads") or 0
        self._attention = 4 * text.num_hidden_layers * heads * head_size(text)

    def __call__(self, tokens: float, scored: float, depth: float) -> float:
        """``tokens`` through the body at a mean ``depth``, ``scored`` of them through the head."""
        return tokens * (2 * self._body + self._attention * depth) + 2 * self._head * scored
