"""From a Hugging Face causal LM to what the fused functions take: hidden states and lm_head weight, no logits.

Reads the model by its attributes only; transformers is imported by models that are given the fused loss, and no others.
"""

import inspect
import types
from typing import Any, NamedTuple

from torch import Tensor, nn

from dapo_kernels.cross_entropy import linear_cross_entropy


class LinearHead(NamedTuple):
    """A causal LM's last hidden states and the linear map from them to its logits."""

    hidden: Tensor  # (..., H) after the final norm
    weight: Tensor  # (V, H)
    bias: Tensor | None  # (V,)
    softcap: float | None
    temperature: float  # what the model itself divides its logits by

    @property
    def options(self) -> dict[str, Any]:
        """bias, softcap and temperature, as keyword arguments of the linear functions."""
        return {"bias": self.bias, "softcap": self.softcap, "temperature": self.temperature}


def hidden_states_and_weight(model: nn.Module, **inputs: Any) -> LinearHead:
    """Run a causal LM's backbone on `inputs` (input_ids, position_ids, attention_mask, …) and stop before the logits.

    Works for Llama, Qwen, Mistral, Gemma (embedding scale, logit softcap), Cohere and Granite (logit scale) and every
    model with `get_decoder()` and `get_output_embeddings()` whose logits are a linear map of the decoder's
    `last_hidden_state`, softcapped by config.final_logit_softcapping, multiplied by `logit_scale`, or divided by
    config.logits_scaling. Under FSDP2 call it inside the root module's forward, where weight is gathered.

    Raises ValueError naming `model` where it has no such head.
    """
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else getattr(model, "base_model", None)
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if decoder is None or decoder is model or head is None:
        raise ValueError(f"model: {type(model).__name__} has no decoder with a linear head on it")
    if hasattr(head, "base_layer") or not isinstance(getattr(head, "weight", None), Tensor):
        raise ValueError(
            f"model: its output head is a {type(head).__name__}, not a plain linear layer (an adapter on the lm_head "
            "must be merged, or left off, to use the fused losses)"
        )
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    softcap = getattr(config, "final_logit_softcapping", None)
    scale = float(getattr(config, "logit_scale", None) or 1.0)
    temperature = float(getattr(config, "logits_scaling", None) or 1.0) / scale
    if softcap is not None and temperature != 1.0:
        raise ValueError(f"model: {type(model).__name__} both scales and softcaps its logits; their order is unknown")
    hidden = decoder(**inputs).last_hidden_state
    return LinearHead(hidden, head.weight, getattr(head, "bias", None), softcap, temperature)


def use_fused_loss(model: nn.Module) -> nn.Module:
    """Give a Hugging Face causal LM the fused loss: `model(…, labels=…)`, in training mode, then makes no logits.

    The loss is the model's own: labels are shifted by one, -100 is ignored, the sum is divided by num_items_in_batch
    where a trainer passes it. The output's `logits` are None then; without labels, in eval mode, and with
    return_dict=False nothing changes. Returns the same model; `del model.forward` takes it back.

    Raises ValueError naming `model`, here or when it runs, for a head that hidden_states_and_weight refuses, and where
    config.output_router_logits asks for a router's loss as well.
    """
    if "forward" in vars(model):
        raise ValueError(f"model: the forward of this {type(model).__name__} is replaced already")
    if getattr(model.config, "output_router_logits", False):
        raise ValueError(f"model: {type(model).__name__} adds a router's loss (config.output_router_logits)")
    names = list(inspect.signature(model.forward).parameters)

    # Of whichever model it is bound to: a deepcopy (an average of weights, a reference) binds it to the copy.
    def forward(self: nn.Module, *args: Any, **inputs: Any) -> Any:
        from transformers.modeling_outputs import CausalLMOutputWithPast

        inputs |= zip(names, args)
        if inputs.get("labels") is None or not self.training or inputs.get("return_dict") is False:
            return type(self).forward(self, **inputs)
        labels, items = inputs.pop("labels"), inputs.pop("num_items_in_batch", None)
        for unused in ("return_dict", "logits_to_keep"):
            inputs.pop(unused, None)
        head = hidden_states_and_weight(self, **{"use_cache": False} | inputs)
        loss = linear_cross_entropy(head.hidden, head.weight, labels, items, shift=1, **head.options)
        return CausalLMOutputWithPast(loss=loss)

    # What trainers look up which columns to keep by; functools.wraps would also name the function it wraps, unbound.
    forward.__signature__ = inspect.signature(type(model).forward)  # type: ignore[attr-defined]
    model.forward = types.MethodType(forward, model)
    return model
