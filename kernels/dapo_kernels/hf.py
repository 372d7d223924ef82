"""From a Hugging Face causal LM to what the fused functions take: hidden states and lm_head weight, no logits.

Reads the model by its attributes only; transformers is imported by models that are given the fused loss, and no others.
"""

import inspect
import types
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dapo_kernels.cross_entropy import linear_cross_entropy
from dapo_kernels.logprobs import linear_token_logprobs

CHECKED_TOKENS = 8
_SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")  # Gemma, RecurrentGemma, xLSTM
TOLERANCE = 2**-5  # of the largest logit: several roundings to bfloat16


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
    `last_hidden_state`, softcapped by config.final_logit_softcapping (or what RecurrentGemma and xLSTM call it),
    multiplied by `logit_scale` (Falcon-H1's lm_head_multiplier), or divided by config.logits_scaling (Inkling's
    logits_mup_width_multiplier). Under FSDP2 call it inside the root module's forward, where weight is gathered.

    Raises ValueError naming `model` where it has no such head, or reads more than text.
    """
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else getattr(model, "base_model", None)
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if decoder is head:  # ModernBERT calls its head so
        decoder = getattr(model, "base_model", None)
    if decoder is None or decoder is model or head is None:
        raise ValueError(f"model: {type(model).__name__} has no decoder with a linear head on it")
    if hasattr(head, "base_layer") or not isinstance(getattr(head, "weight", None), Tensor):
        raise ValueError(
            f"model: its output head is a {type(head).__name__}, not a plain linear layer (an adapter on the lm_head "
            "must be merged, or left off, to use the fused losses)"
        )
    config = model.config
    if hasattr(config, "get_text_config") and config.get_text_config() is not config:
        raise ValueError(f"model: {type(model).__name__} is made of several models (images and text, say), not of one")
    softcap = next((cap for cap in (getattr(config, name, None) for name in _SOFTCAPS) if cap), None)
    scale = float(getattr(config, "logit_scale", None) or getattr(config, "lm_head_multiplier", None) or 1.0)
    divisor = getattr(config, "logits_scaling", None) or getattr(config, "logits_mup_width_multiplier", None)
    temperature = float(divisor or 1.0) / scale
    if softcap is not None and temperature != 1.0:
        raise ValueError(f"model: {type(model).__name__} both scales and softcaps its logits; their order is unknown")
    hidden = decoder(**inputs).last_hidden_state
    if hidden.dtype == torch.float32:  # Mamba's residuals, which its own head rounds to its weight's type
        hidden = hidden.to(head.weight.dtype)
    return LinearHead(hidden, head.weight, getattr(head, "bias", None), softcap, temperature)


def use_fused_loss(model: nn.Module) -> nn.Module:
    """Give a Hugging Face causal LM the fused loss: `model(…, labels=…)`, in training mode, then makes no logits.

    The loss is the model's own: labels are shifted by one (shift_labels are not), ignore_index (-100) is ignored, the
    sum is divided by num_items_in_batch where a trainer passes it. The output's `logits` are None then; without labels,
    in eval mode, and where hidden states, attentions, a cache or return_dict=False are asked for, nothing changes.
    Returns the same model; `del model.forward` takes it back. The first call that trains also runs the model's own
    forward, on 8 tokens: its logits must be the ones that the fused loss reads.

    Raises ValueError naming `model`, here or when it runs, for a head that hidden_states_and_weight refuses, for logits
    that are another function of the hidden states (TOLERANCE), and where
    output_router_logits, the config's or the call's, asks for a router's loss as well.
    """
    if "forward" in vars(model):
        raise ValueError(f"model: the forward of this {type(model).__name__} is replaced already")
    _refuse_router_loss(model, {})
    names = list(inspect.signature(model.forward).parameters)
    checked = False  # of the copies as well: the same class and config

    # Of whichever model it is bound to: a deepcopy (an average of weights, a reference) binds it to the copy.
    def forward(self: nn.Module, *args: Any, **inputs: Any) -> Any:
        from transformers.modeling_outputs import CausalLMOutputWithPast

        nonlocal checked
        inputs |= zip(names, args)
        labelled = any(inputs.get(name) is not None for name in ("labels", "shift_labels"))
        if not (labelled and self.training) or _asks_for_more(self, inputs):
            return type(self).forward(self, **inputs)
        _refuse_router_loss(self, inputs)
        if not (checked or torch.compiler.is_compiling()):
            _check_logits(self, inputs)
            checked = True
        labels, shifted, items = (inputs.pop(n, None) for n in ("labels", "shift_labels", "num_items_in_batch"))
        ignore_index = inputs.pop("ignore_index", -100)
        for unused in ("return_dict", "logits_to_keep"):
            inputs.pop(unused, None)
        head = hidden_states_and_weight(self, **inputs | {"use_cache": False})
        targets, shift = (labels, 1) if shifted is None else (shifted, 0)
        if isinstance(items, Tensor):
            items = items.reshape(())  # a trainer on several GPUs scatters one item to each
        options = head.options | {"shift": shift, "ignore_index": ignore_index}
        loss = linear_cross_entropy(head.hidden, head.weight, targets.to(head.hidden.device), items, **options)
        return CausalLMOutputWithPast(loss=loss)

    # What trainers look up which columns to keep by; functools.wraps would also name the function it wraps, unbound.
    forward.__signature__ = inspect.signature(type(model).forward)  # type: ignore[attr-defined]
    model.forward = types.MethodType(forward, model)
    return model


def _asked(model: nn.Module, inputs: dict[str, Any], name: str) -> Any:
    """An option of forward: the call's, or else the config's."""
    value = inputs.get(name)
    return getattr(model.config, name, None) if value is None else value


def _asks_for_more(model: nn.Module, inputs: dict[str, Any]) -> bool:
    """Whether the output must hold more than a loss. A cache counts where the call asks: every config does."""
    if inputs.get("use_cache") or inputs.get("past_key_values") is not None:
        return True
    options = ("output_hidden_states", "output_attentions")
    return _asked(model, inputs, "return_dict") is False or any(_asked(model, inputs, name) for name in options)


def _refuse_router_loss(model: nn.Module, inputs: dict[str, Any]) -> None:
    if _asked(model, inputs, "output_router_logits"):
        raise ValueError(f"model: {type(model).__name__} adds a router's loss (output_router_logits)")


@torch.no_grad()
def _check_logits(model: nn.Module, inputs: dict[str, Any]) -> None:
    """ValueError where log-probabilities of a few tokens are not those of the model's own logits."""
    few = {n: inputs[n][:1, :CHECKED_TOKENS] for n in ("input_ids", "inputs_embeds") if inputs.get(n) is not None}
    runs = []
    for run in (hidden_states_and_weight, type(model).forward):
        with _fork_rng(model):  # the same dropout twice, and the training's own afterwards
            runs.append(run(model, **few, use_cache=False))
    head, logits = runs[0], runs[1].logits.flatten(0, -2).float()
    # The two that a scale, a cap or a mask moves furthest apart.
    targets = torch.cat([logits.argmax(-1), logits.argmin(-1)])
    rows = torch.arange(len(logits), device=logits.device).repeat(2)
    ours = linear_token_logprobs(head.hidden.flatten(0, -2), head.weight, targets, rows=rows, **head.options)
    own = logits.log_softmax(-1)[rows, targets]
    if (ours - own).abs().max() > TOLERANCE * logits.abs().max():  # not where they are NaN: that is the weights' doing
        raise ValueError(
            f"model: the logits of {type(model).__name__} are not the linear map of its decoder's "
            "last_hidden_state (scaled or softcapped by its config) that the fused loss reads"
        )


def _fork_rng(model: nn.Module) -> Any:
    device = next(model.parameters()).device
    return torch.random.fork_rng([device] if device.type == "cuda" else [])
