"""AdamW and its learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from dapo_fast.config import OptimSettings
from dapo_fast.errors import InputError


def make_optimizer(parameters: Iterable[nn.Parameter], settings: OptimSettings) -> torch.optim.Optimizer:
    """AdamW over ``parameters`` with states of ``settings.optimizer_state``, already allocated.

    fp32 states: torch's fused kernel, on CPU and CUDA. bf16 and int8 (block-wise, 256 values a scale): torchao, whose
    update is compiled and computes in fp32.

    Raises:
        InputError: torchao is needed and not installed.
    """
    parameters = list(parameters)
    options = {"betas": settings.adam_betas, "weight_decay": settings.weight_decay}
    if settings.optimizer_state == "float32":
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(parameters, lr=0.0, fused=True, **options)
    else:
        optimizer = _low_bit(settings.optimizer_state)(parameters, lr=0.0, **options)
    # A checkpoint is read into states that exist: a step of rate 0 on zero gradients makes them and moves nothing.
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    for state in optimizer.state.values():
        state["step"].zero_()
    return optimizer


def _low_bit(kind: str) -> type[torch.optim.Optimizer]:
    try:
        from torchao.optim import AdamW8bit
    except ImportError as error:
        raise InputError(f"optimizer_state {kind}: needs torchao (pip install 'dapo-fast[lowbit]')") from error
    if kind == "int8":
        return AdamW8bit

    class AdamWBfloat16(AdamW8bit):
        """torchao's update, which takes states of any dtype, with states in bf16."""

        def _new_buffer(self, p: torch.Tensor, signed: bool) -> torch.Tensor:
            return torch.zeros_like(p, dtype=torch.bfloat16)

    return AdamWBfloat16


def learning_rate(step: int, steps: int, settings: OptimSettings) -> float:
    """The rate of optimizer step ``step`` (from 0) of ``steps``: linear warm-up, then constant or cosine to zero."""
    if step < settings.warmup_steps:
        return settings.lr * (step + 1) / settings.warmup_steps
    if settings.schedule == "constant":
        return settings.lr
    progress = (step - settings.warmup_steps) / max(1, steps - settings.warmup_steps)
    return settings.lr * 0.5 * (1 + math.cos(math.pi * progress))


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate; torchao keeps it in a tensor."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float) -> torch.Tensor:
    """Scale the gradients to a norm of at most ``limit``; returns the norm before, over all ranks, as a scalar."""
    norm = nn.utils.clip_grad_norm_(list(parameters), limit)
    return norm.full_tensor() if isinstance(norm, torch.distributed.tensor.DTensor) else norm
