"""Drawing tokens: the random number behind a token is a function of its place alone."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dapo_fast.errors import InputError
from dapo_fast.rollout.engine import SamplingParams
from dapo_fast.splitmix import GOLDEN, mixed

_SAMPLING_ELEMENTS = 1 << 24  # logits turned into probabilities at a time, to bound memory at large vocabularies


def draw(logits: Tensor, uniform: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor | None]:
    """One token a row by inverting the distribution function at ``uniform``.

    Args:
        logits: (rows, vocabulary), any float dtype.
        uniform: (rows,) float64 in [0, 1), on the CPU.

    Returns:
        Token ids (rows,) int64; and their log-probs (rows,) fp32 under the untempered policy, if asked for.
    """
    if params.temperature == 0:
        largest, token = logits.max(-1)
        _check_finite(largest)
    else:
        uniform = uniform.to(logits.device)
        size = max(1, _SAMPLING_ELEMENTS // logits.shape[-1])
        parts = zip(logits.split(size), uniform.split(size), strict=True)
        token = torch.cat([_invert(part, u, params) for part, u in parts])
    if not params.logprobs:
        return token, None
    logprob = torch.log_softmax(logits.float(), -1).gather(-1, token[:, None])[:, 0]
    return token, logprob


def _invert(logits: Tensor, uniform: Tensor, params: SamplingParams) -> Tensor:
    probability = torch.softmax(logits.float() / params.temperature, -1)
    if params.top_p < 1:
        ordered, index = probability.sort(-1, descending=True)
        before = ordered.cumsum(-1, dtype=torch.float64) - ordered
        probability = probability.scatter(-1, index, ordered.masked_fill(before >= params.top_p, 0))
    # In double precision, so that the tail of a large vocabulary is not lost to rounding.
    distribution = probability.cumsum(-1, dtype=torch.float64)
    total = distribution[:, -1:]
    _check_finite(total)
    return torch.searchsorted(distribution, uniform[:, None] * total, right=True)[:, 0]


def _check_finite(values: Tensor) -> None:
    """InputError where a NaN among the logits has come through to ``values``."""
    if not bool(values.isfinite().all()):
        raise InputError("the model's logits are not finite")


def stream_keys(seed: int, prompts: int, n: int) -> np.ndarray:
    """(prompts, n) uint64: the key of each sample's own stream of random numbers."""
    with np.errstate(over="ignore"):
        root = mixed(np.array([seed % (1 << 64)], dtype=np.uint64) + GOLDEN)
        by_prompt = mixed(root + GOLDEN * np.arange(1, prompts + 1, dtype=np.uint64))
        return mixed(by_prompt[:, None] + GOLDEN * np.arange(1, n + 1, dtype=np.uint64)[None])


def stream_uniforms(keys: np.ndarray, counters: np.ndarray) -> np.ndarray:
    """Number ``counters`` of each stream: float64 in [0, 1), multiples of 2^-52."""
    with np.errstate(over="ignore"):
        words = mixed(keys + GOLDEN * (counters.astype(np.uint64) + np.uint64(1)))
    return (words >> np.uint64(12)).astype(np.float64) * 2.0**-52
