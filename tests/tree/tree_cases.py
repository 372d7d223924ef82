"""Small random step trees, tiny models, and the separate-sequence definition that packs are tested against."""

import math
import random

import torch
from transformers import LlamaConfig, MistralConfig, PreTrainedConfig, PreTrainedModel, Qwen2Config, Qwen3Config

from dapo_fast.data.tree import Candidate, State, Tree, Trunk
from dapo_fast.models.loading import new_causal_lm

VOCABULARY = 29
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**_SIZES, num_attention_heads=4, num_key_value_heads=2),
    "qwen2": Qwen2Config(**_SIZES, num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**_SIZES, num_attention_heads=4, num_key_value_heads=4, head_dim=6),
    "mistral": MistralConfig(**_SIZES, num_attention_heads=4, num_key_value_heads=1, sliding_window=None),
}


def random_tree(rng: random.Random, name: str = "p", words: int = 4, steps: int = 4, width: int = 4) -> Tree:
    """A tree with few distinct tokens, so that prefixes, candidates and trunks collide often."""

    def ids(low: int, high: int) -> list[int]:
        return [3 + rng.randrange(words) for _ in range(rng.randint(low, high))]

    prompt = ids(1, 4)
    trunks = []
    for index in range(rng.randint(1, 3)):
        if index and rng.random() < 0.6 and trunks[0].step_ends:
            keep = rng.randrange(len(trunks[0].step_ends))  # shares that many steps with the first trunk
            ends = trunks[0].step_ends[:keep]
            tokens = trunks[0].ids[: ends[-1] if ends else 0]
        else:
            ends, tokens = [], []
        for _ in range(rng.randint(0 if not index else 1, steps)):
            tokens = tokens + ids(1, 4)
            ends = [*ends, len(tokens)]
        trunks.append(Trunk(tokens, ends, float(rng.random() < 0.5), True))
    states, seen = [], set()
    for index, trunk in enumerate(trunks):
        for step in range(max(1, len(trunk.step_ends))):
            prefix = tuple(trunk.ids[: trunk.step_ends[step - 1]]) if step else ()
            if prefix in seen:
                continue
            seen.add(prefix)
            unique: dict[tuple[int, ...], Candidate] = {}
            for _ in range(rng.randint(0, width)):
                kind = rng.random()
                tokens = ids(1, 4)
                if kind < 0.3 and step < len(trunk.step_ends):  # the trunk's own next step, or part of it, or more
                    following = trunk.ids[trunk.step_ends[step - 1] if step else 0 : trunk.step_ends[step]]
                    tokens = following[: rng.randint(1, len(following))] + (ids(0, 2) if kind < 0.1 else [])
                elif kind < 0.5 and unique:  # begins with another candidate
                    tokens = list(rng.choice(list(unique))) + ids(0, 2)
                candidate = Candidate(tokens, rng.randint(1, 3), rng.random() < 0.3, 0.0)
                candidate.advantage = rng.uniform(-1, 1)
                candidate.ref_logp = rng.uniform(-8, 0)
                unique.setdefault(tuple(tokens), candidate)
            rewards = [float(rng.random() < 0.5) for _ in range(rng.randint(1, 4))]
            kept = bool(unique) and rng.random() < 0.8
            states.append(State(index, step, rewards, list(unique.values()), kept=kept))
    return Tree(name, "", "", prompt, trunks, states, 4, 2)


def shaken(config: PreTrainedConfig) -> PreTrainedModel:
    """A causal LM in fp32, away from small and zero initial weights, so that attention, sinks and states matter."""
    model = new_causal_lm(config, seed=1, dtype=torch.float32)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0).add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def separate_logps(model, trees, keys) -> torch.Tensor:
    """log π(a|s) of each (tree, state, candidate), one forward pass each, with plain causal attention."""
    logps = []
    for tree, state, candidate in keys:
        prefix = trees[tree].prefix_ids(trees[tree].states[state])
        ids = trees[tree].states[state].candidates[candidate].ids
        logits = model(torch.tensor([prefix + ids]), use_cache=False).logits[0, len(prefix) - 1 : -1].double()
        logps.append(logits.log_softmax(-1)[torch.arange(len(ids)), torch.tensor(ids)].sum())
    return torch.stack(logps)


def separate_loss(logps, trees, keys, beta: float, normalizer: float) -> torch.Tensor:
    """½ Σ (Â/β − u)² / normalizer."""
    chosen = [trees[t].states[s].candidates[c] for t, s, c in keys]
    advantages = torch.tensor([c.advantage for c in chosen], dtype=torch.float64)
    references = torch.tensor([c.ref_logp for c in chosen], dtype=torch.float64)
    return 0.5 * (advantages / beta - (logps - references)).square().sum() / normalizer


def separate_values(value_model, trees, keys) -> torch.Tensor:
    """Value logits of each (tree, state, candidate or -1), one forward pass each."""
    logits = []
    for tree, state, candidate in keys:
        ids = trees[tree].prefix_ids(trees[tree].states[state])
        ids = ids + (trees[tree].states[state].candidates[candidate].ids if candidate >= 0 else [])
        hidden = value_model.backbone(torch.tensor([ids]), use_cache=False).last_hidden_state[0, -1]
        logits.append(value_model.value_head(hidden)[0].double())
    return torch.stack(logits)


def separate_value_loss(logits, trees, keys) -> torch.Tensor:
    """Σ soft-label binary cross-entropy against MC(s), once for each outcome."""
    states = [trees[t].states[s] for t, s, _ in keys]
    targets = torch.tensor([state.mc for state in states], dtype=torch.float64)
    weight = torch.tensor([len(state.rewards) for state in states], dtype=torch.float64)
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, weight, reduction="sum")


def gradients(model) -> dict[str, torch.Tensor]:
    """Gradients by parameter name, cleared from the model; zeros where there are none."""
    found = {}
    for name, parameter in model.named_parameters():
        found[name] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.detach().clone()
        parameter.grad = None
    return found


def assert_same_gradients(actual, expected, relative: float) -> None:
    """Each parameter's gradient agrees to ``relative`` of the largest gradient of the model."""
    scale = max(g.abs().max().item() for g in expected.values())
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        error = (actual[name] - gradient).abs().max().item()
        assert math.isfinite(error) and error <= relative * max(scale, 1e-6), f"{name}: {error} of {scale}"
