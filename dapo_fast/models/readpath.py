"""Four reads of the same packs: actor loss, supervised loss, step log-probabilities, values.

Each reader is the ROOT module of its model: backbone and fused loss run inside its forward, where FSDP2 has gathered
the head's weight. Losses are sums divided by ``normalizer``, the GLOBAL count of the optimizer's batch, so that packs
and ranks add up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from dapo_kernels import (
    CrossEntropy,
    hidden_states_and_weight,
    linear_direct_advantage_loss,
    linear_segment_loss,
    linear_step_logprobs,
    linear_value_loss,
)
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from transformers import PreTrainedModel

from dapo_fast.data.pack import Pack
from dapo_fast.models.attention import backbone_inputs
from dapo_fast.models.context import Context
from dapo_fast.models.padded import by_token
from dapo_fast.models.tensor import plain
from dapo_fast.models.value import ValueModel

# A pack and the GLOBAL number of steps of its batch → an objective of linear_segment_loss over the pack's steps.
PackObjective = Callable[[Pack, float | Tensor], Callable[[Tensor, Tensor, int, int], Tensor]]


class PolicyOutput(NamedTuple):
    """What PolicyReader returns."""

    loss: Tensor | None  # 0-d, differentiable; None for "logps"
    step_logps: Tensor  # (S,) fp32, detached: log π(a|s) of each scored step, nats


class ValueOutput(NamedTuple):
    """What ValueReader returns."""

    loss: Tensor | None  # 0-d, differentiable; None for "values"
    values: Tensor  # (M,) fp32, detached: V in (0, 1)


class _Reader(nn.Module):
    """What both readers do before they read.

    Attributes:
        context: The ranks that share packs with this one; None: packs come whole.
        vocabulary: The ranks that divide a causal LM's head; None: each has the whole.
    """

    context: Context | None = None
    vocabulary: ProcessGroup | None = None

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def _inputs(self, pack: Pack) -> dict[str, Any]:
        """Of the backbone."""
        inputs = backbone_inputs(self.model, pack)
        if self.context is not None:
            inputs["dapo_attention"] = self.context.attention(inputs["dapo_attention"], pack.split)
        return inputs

    def _whole(self, hidden: Tensor, pack: Pack) -> Tensor:
        """Hidden states (T, H) of all rows of ``pack``, from those of this rank's, as the backbone gives them."""
        hidden = by_token(hidden, pack)
        return hidden if self.context is None else self.context.whole(hidden, pack.split)


class PolicyReader(_Reader):
    """Reads packs with a causal LM.

    Attributes:
        model: The unmodified Hugging Face model; its parameters' names are those of the saved directory.
    """

    def forward(
        self,
        pack: Pack,
        beta: float = 0.01,
        normalizer: float | Tensor | None = None,
        objective: Literal["direct_advantage", "cross_entropy", "logps"] | PackObjective = "direct_advantage",
    ) -> PolicyOutput:
        """One pass over ``pack``, already on the model's device.

        Args:
            beta: β of the actor's loss.
            normalizer: What the summed loss is divided by: the global number of steps (direct advantage) or of scored
                tokens (cross-entropy); None: this pack's own.
            objective: ``"direct_advantage"``: ½ Σ (Â/β − log π/π_ref)²; ``"cross_entropy"``: −Σ log π(token);
                ``"logps"``: no loss; a function of (pack, normalizer): the objective that it gives over the pack's
                steps (``docs/objectives.md``).
        """
        head = hidden_states_and_weight(self.model, **self._inputs(pack))
        hidden, weight = self._whole(head.hidden, pack), head.weight
        options = head.options | {"rows": pack.hidden_rows, "process_group": self.vocabulary}
        if objective == "direct_advantage":
            out = linear_direct_advantage_loss(
                hidden,
                weight,
                pack.targets,
                pack.cu_steps,
                pack.advantages,
                pack.ref_logps,
                beta,
                normalizer,
                **options,
            )
            return PolicyOutput(out.loss, out.step_logps)
        if callable(objective):
            of_pack = objective(pack, max(pack.steps, 1) if normalizer is None else normalizer)
            out = linear_segment_loss(hidden, weight, pack.targets, pack.cu_steps, of_pack, **options)
            return PolicyOutput(out.loss, out.segment_logps)
        if objective == "cross_entropy":
            normalizer = max(pack.targets.numel(), 1) if normalizer is None else normalizer
            # Every token is a segment of its own: chunks then need not be cut between long sequences.
            out = linear_segment_loss(hidden, weight, pack.targets, None, CrossEntropy(normalizer), **options)
            return PolicyOutput(out.loss, _sums(out.token_logps, pack.cu_steps))
        if objective == "logps":
            logps = linear_step_logprobs(hidden, weight, pack.targets, pack.cu_steps, **options)
            return PolicyOutput(None, logps.detach())
        raise ValueError(f"objective: expected direct_advantage, cross_entropy or logps, got {objective!r}")

    @torch.no_grad()
    def step_logps(self, pack: Pack) -> Tensor:
        """(S,) fp32 log π(a|s) of each scored step, in nats."""
        return self(pack, objective="logps").step_logps


class ValueReader(_Reader):
    """Reads packs with a value model.

    Attributes:
        model: The Hugging Face model inside it; its parameters' names are those of the saved directory.
    """

    def __init__(self, value_model: ValueModel) -> None:
        super().__init__(value_model.model)

    def forward(
        self,
        pack: Pack,
        normalizer: float | Tensor | None = None,
        objective: Literal["bce", "mse", "values"] = "bce",
    ) -> ValueOutput:
        """One pass over ``pack``, already on the model's device.

        Args:
            normalizer: What the summed loss is divided by, the global sum of ``value_weights``; None: this pack's own.
            objective: ``"bce"``: soft-label cross-entropy against ``pack.value_targets``, weighted by
                ``pack.value_weights``; ``"mse"``: squared error; ``"values"``: no loss.
        """
        hidden = self._whole(self.model.base_model(**self._inputs(pack)).last_hidden_state, pack)
        weight, bias = (None if p is None else plain(p) for p in (self.model.score.weight, self.model.score.bias))
        if objective == "values":
            rows = hidden.index_select(0, pack.value_rows)
            # In fp32, as the loss reads it.
            logits = nn.functional.linear(rows.float(), weight.float(), _float(bias))
            return ValueOutput(None, logits[:, 0].sigmoid().detach())
        out = linear_value_loss(
            hidden,
            weight,
            bias,
            pack.value_rows,
            pack.value_targets,
            normalizer,
            weights=pack.value_weights,
            kind=objective,
        )
        return ValueOutput(out.loss, out.values)

    @torch.no_grad()
    def values(self, pack: Pack) -> Tensor:
        """(M,) fp32 values at ``pack.value_rows``, in (0, 1)."""
        return self(pack, objective="values").values


def _float(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.float()


def _sums(token_logps: Tensor, cu_steps: Tensor) -> Tensor:
    lengths = cu_steps.diff().long()
    steps = torch.repeat_interleave(torch.arange(lengths.numel()), lengths).to(token_logps.device)
    return torch.zeros(lengths.numel(), dtype=token_logps.dtype, device=token_logps.device).index_add_(
        0, steps, token_logps
    )
