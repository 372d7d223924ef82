"""Fused losses of per-segment log-probabilities, straight from hidden states and an lm_head weight.

Needs torch, and triton where there is a GPU; knows nothing about any trainer. The logits (N rows by V words) are made
chunk by chunk and never held: chunks are cut at segment boundaries, so the gradient of a loss that depends on whole
segments (a reasoning step, a sequence, a preference pair) is known before its chunk of logits is thrown away.
"""

from dapo_kernels import custom_ops  # noqa: F401  registers the operators
from dapo_kernels.cross_entropy import linear_cross_entropy
from dapo_kernels.hf import LinearHead, hidden_states_and_weight, use_fused_loss
from dapo_kernels.logprobs import (
    TokenStatistics,
    linear_step_logprobs,
    linear_token_logprobs,
    linear_token_statistics,
)
from dapo_kernels.objectives import (
    DPO,
    ClippedPolicyGradient,
    CrossEntropy,
    DirectAdvantage,
    DirectAdvantageLoss,
    linear_direct_advantage_loss,
)
from dapo_kernels.segment_loss import SegmentLoss, linear_segment_loss
from dapo_kernels.value import ValueLoss, linear_value_loss

__all__ = [
    "DPO",
    "ClippedPolicyGradient",
    "CrossEntropy",
    "DirectAdvantage",
    "DirectAdvantageLoss",
    "LinearHead",
    "SegmentLoss",
    "TokenStatistics",
    "ValueLoss",
    "hidden_states_and_weight",
    "linear_cross_entropy",
    "linear_direct_advantage_loss",
    "linear_segment_loss",
    "linear_step_logprobs",
    "linear_token_logprobs",
    "linear_token_statistics",
    "linear_value_loss",
    "use_fused_loss",
]
