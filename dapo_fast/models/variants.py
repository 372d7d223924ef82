"""What the layers of today's models add to causal softmax attention: windows, chunks, softcapped scores, sinks.

A window is counted along a sequence, so in a tree it is counted in DEPTH: a key is visible to a query that stands on
its branch, at most ``window - 1`` tokens deeper. Chunks are depths of the same quotient. Both say one thing of a query:
the least depth that it still sees.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig

from dapo_fast.errors import InputError

LAYER_TYPES = ("full_attention", "sliding_attention", "chunked_attention")


@dataclass(frozen=True)
class Variant:
    """The attention of one layer, but for its sinks, which are parameters.

    Attributes:
        window: Tokens that a query sees, itself included (Mistral's ``sliding_window``).
        chunk: Length of the chunks beyond which a query does not see (Llama 4's ``attention_chunk_size``).
        softcap: c of scores c · tanh(score / c) (Gemma 2).
    """

    window: int | None = None
    chunk: int | None = None
    softcap: float | None = None

    def oldest(self, depths: Tensor) -> Tensor | None:
        """The least depth that a query at each of ``depths`` sees; None where that is 0 for all of them."""
        if self.window is not None:
            oldest = depths - (self.window - 1)
        elif self.chunk is not None:
            oldest = depths // self.chunk * self.chunk
        else:
            return None
        return oldest if bool((oldest > 0).any()) else None


PLAIN = Variant()


def variant_of(module: nn.Module, given: dict[str, Any]) -> Variant:
    """The variant of the attention layer ``module``, called with the keyword arguments ``given``.

    A config that lists ``layer_types`` decides, as it does over transformers' own masks; otherwise the window that the
    layer passes counts.

    Raises:
        InputError: the layer asks for something else.
    """
    if given.get("position_bias") is not None:
        raise InputError(f"{type(module).__name__}: its attention adds a position bias, which packs do not honour")
    config = getattr(module, "config", None)
    types = getattr(config, "layer_types", None)
    window, softcap = given.get("sliding_window"), given.get("softcap")
    if not types:
        return Variant(window=window, softcap=softcap)
    kind = types[module.layer_idx]
    if kind == "sliding_attention":
        return Variant(window=window or config.sliding_window, softcap=softcap)
    if kind == "chunked_attention":
        return Variant(chunk=config.attention_chunk_size, softcap=softcap)
    return Variant(softcap=softcap)


def largest(config: PreTrainedConfig, name: str) -> Any:
    """A setting of ``config``; the largest where layers differ in it (Gemma 4's head sizes); None where it has none."""
    try:
        found = getattr(config, name, None)
    except RuntimeError:  # transformers' way to say that layers differ
        found = [getattr(layer, name) or 0 for layer in config.per_layer_config]
    return max(found) if isinstance(found, (list, tuple)) else found


def head_size(config: PreTrainedConfig) -> int:
    """Size of a query head of a text model; 0 where it has none."""
    heads = largest(config, "num_attention_heads")
    return largest(config, "head_dim") or (config.hidden_size // heads if heads else 0)


def windows_of(config: PreTrainedConfig) -> tuple[str, ...]:
    """The names of the settings of ``config`` (of a text model) that bound what a query sees."""
    return tuple(name for name in ("sliding_window", "attention_chunk_size") if getattr(config, name, None))


def config_of_text(config: PreTrainedConfig) -> PreTrainedConfig:
    """What transformers makes a causal LM of: of Qwen3.5's config the part for text, of most the whole."""
    text = config.get_text_config()
    family = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    return text if getattr(family, "config_class", None) is type(text) else config


def context_length(config: PreTrainedConfig) -> int:
    """Tokens of the longest sequence that a model of ``config`` (of text) reads as in a pack; 1 << 30: of any."""
    return min(getattr(config, "max_position_embeddings", None) or 1 << 30, rotary_length(config) or 1 << 30)


def rotary_length(config: PreTrainedConfig) -> int | None:
    """Tokens of the longest sequence that does not change the rotary frequencies of all that is read with it; or None.

    ``longrope`` has two sets of frequencies, and ``dynamic`` makes new ones where the longest of a batch is long.
    """
    given = getattr(config, "rope_parameters", None) or {}
    ropes = [given, *(rope for rope in given.values() if isinstance(rope, dict))]  # layers of a kind may have their own
    lengths = []
    for rope in ropes:
        if rope.get("rope_type") == "longrope":
            lengths.append(rope["original_max_position_embeddings"])
        elif rope.get("rope_type") == "dynamic":
            lengths.append(config.max_position_embeddings)
    return min(lengths, default=None)
