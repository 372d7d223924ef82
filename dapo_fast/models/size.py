"""How many of a model's weights a token passes through: of routed experts only those that are chosen for it."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedConfig

from dapo_fast.models.variants import largest

# What families call it: Qwen, Mixtral and gpt-oss, DeepSeek and GLM, Ernie.
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k")


def active_body(model: nn.Module) -> float:
    """Weights of the blocks that one token meets: without embedding and head, of routed experts the share chosen."""
    embedding = model.get_input_embeddings().weight
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    outside = {id(embedding)} | ({id(head.weight)} if head is not None else set())
    config = model.config.get_text_config()
    experts, share = _first(config, _EXPERTS), routed_share(config)
    total = 0.0
    for name, parameter in model.named_parameters():
        if id(parameter) not in outside:
            # Some families do not name them so, but stack them: one matrix an expert.
            routed = "experts" in name.split(".") or (parameter.ndim == 3 and parameter.shape[0] == experts)
            total += parameter.numel() * (share if routed else 1.0)
    return total


def routed_share(config: PreTrainedConfig) -> float:
    """The share of its routed experts that a token goes through; 1 for a dense model."""
    experts, chosen = _first(config, _EXPERTS), chosen_experts(config)
    return chosen / experts if experts and chosen else 1.0


def chosen_experts(config: PreTrainedConfig) -> int | None:
    """How many routed experts a token goes through in a layer; None for a dense model."""
    return _first(config, _CHOSEN)


def _first(config: PreTrainedConfig, names: tuple[str, ...]) -> int | None:
    return next((found for found in (largest(config, name) for name in names) if found), None)
