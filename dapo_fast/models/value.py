"""The critic: a causal backbone and a scalar head read at the last token of a state.

Saved as a Hugging Face token-classification directory with one label, which plain transformers loads as well where it
has a token classifier for the family; for the others the same head is put on the family's backbone here.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_layers import GenericForTokenClassification

from dapo_fast.errors import InputError, first_line
from dapo_fast.models.files import read_pretrained
from dapo_fast.models.variants import config_of_text

_ONE_LABEL = {"id2label": {0: "value"}, "label2id": {"value": 0}, "classifier_dropout": 0.0}


class ValueModel(nn.Module):
    """V(s) = sigmoid(value_head(hidden state of the last token of s)).

    Attributes:
        model: The Hugging Face model (``…ForTokenClassification``, one label) that holds every parameter.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        head = getattr(model, "score", None)
        if not isinstance(head, nn.Linear) or head.out_features != 1:
            raise InputError(f"{type(model).__name__}: not a value model (a token classifier with one label)")
        width = getattr(model.config, "word_embed_proj_dim", head.in_features)  # OPT 350M's, after its last layer
        if width != head.in_features:
            raise InputError(
                f"{type(model).__name__}: no critic, its hidden states are {width} wide and not {head.in_features}"
            )
        self.model = model

    @property
    def config(self) -> PreTrainedConfig:
        return self.model.config

    @property
    def backbone(self) -> nn.Module:
        """Token ids → hidden states (1, T, H)."""
        return self.model.base_model

    @property
    def value_head(self) -> nn.Linear:
        """H → 1; its output is the logit of V."""
        return self.model.score

    @classmethod
    def from_causal_lm(cls, directory: str | Path, **options: Any) -> ValueModel:
        """The backbone of a causal LM, with a head of zeros: V = 0.5 everywhere, whatever the seed."""
        model = _token_classifier(directory, options, _ONE_LABEL, fresh_head=True)
        return cls(model)._zero_head()

    @classmethod
    def from_config(
        cls, config: PreTrainedConfig, seed: int, dtype: torch.dtype = torch.float32, **options: Any
    ) -> ValueModel:
        """A backbone of random weights drawn from ``seed`` alone, with a head of zeros."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            config = type(config).from_dict(config.to_dict() | _ONE_LABEL)
            model = token_classifier(type(config))._from_config(config, dtype=dtype, **options)
        return cls(model)._zero_head()

    @classmethod
    def from_pretrained(cls, directory: str | Path, **options: Any) -> ValueModel:
        """A value model that ``save_pretrained`` wrote."""
        return cls(_token_classifier(directory, options, {}, fresh_head=False))

    def save_pretrained(self, directory: str | Path, **options: Any) -> None:
        """Write a Hugging Face directory; ``state_dict`` may be given with the names of ``self.model``."""
        self.model.save_pretrained(directory, **options)

    def _zero_head(self) -> ValueModel:
        nn.init.zeros_(self.value_head.weight)
        if self.value_head.bias is not None:
            nn.init.zeros_(self.value_head.bias)
        return self


@functools.cache
def token_classifier(config: type[PreTrainedConfig]) -> type[PreTrainedModel]:
    """The token classifier of a family: transformers' own, else the same head on the family's backbone.

    Raises:
        InputError: a family without a backbone of its own.
    """
    known = MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING.get(config, None)
    if known is not None and issubclass(known, GenericForTokenClassification):  # GPT-NeoX's has a head of its own kind
        return known
    if config not in MODEL_MAPPING:
        raise InputError(f"{config.model_type}: transformers has no backbone for this family, so no critic can be made")
    backbone = MODEL_MAPPING[config]
    family = next(base for base in backbone.__mro__ if base.__name__.endswith("PreTrainedModel"))
    name = backbone.__name__.removesuffix("Model") + "ForTokenClassification"
    # For a class from elsewhere transformers does not compute buffers that no file holds (Falcon-H1's multipliers).
    parts = {"__module__": backbone.__module__, "base_model_prefix": family.base_model_prefix or "model"}
    # What the files of a causal LM may hold beside it: Qwen3.5's eyes.
    ignored = getattr(MODEL_FOR_CAUSAL_LM_MAPPING.get(config, None), "_keys_to_ignore_on_load_unexpected", None)
    parts |= {"_keys_to_ignore_on_load_unexpected": ignored}
    return type(name, (GenericForTokenClassification, family), parts)


def architecture_of(config: PreTrainedConfig, source: str | Path) -> str:
    """The class that ``config`` was saved of; "" where it does not say.

    Raises:
        InputError: naming ``source``, whose config says something else there.
    """
    named = config.architectures or [""]
    if not isinstance(named, (list, tuple)) or not isinstance(named[0], str):
        raise InputError(f"{source}: architectures in its config.json: expected names of classes, got {named!r}")
    return named[0]


def check_value_model(directory: str | Path, config: PreTrainedConfig) -> None:
    """InputError where ``config``, that of ``directory``, is of no value model that was saved."""
    architecture = architecture_of(config, directory)
    if config.num_labels != 1 or not architecture.endswith("ForTokenClassification"):
        raise InputError(f"{directory}: not a value model, its config says {architecture or 'no architecture'}")


def _token_classifier(
    directory: str | Path, options: dict[str, Any], changes: dict[str, Any], fresh_head: bool
) -> PreTrainedModel:
    try:
        config = config_of_text(AutoConfig.from_pretrained(directory))
        if not fresh_head:
            check_value_model(directory, config)
        config = type(config).from_dict(config.to_dict() | changes)
        return read_pretrained(token_classifier(type(config)), directory, fresh_head, config=config, **options)
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"{directory}: not a readable model directory ({first_line(error)})") from error
