"""AdamW and its learning rate."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from dapo_fast.config import OptimSettings
from dapo_fast.errors import InputError

INT8_BLOCK = 128  # divides the widths of common models, 896 and 1536 among them


def make_optimizer(model: nn.Module, settings: OptimSettings) -> torch.optim.Optimizer:
    """AdamW over what ``model`` trains, with states of ``settings.optimizer_state``, already allocated.

    Weight decay pulls on matrices only (``decays``). fp32 states: torch's fused kernel, on CPU and CUDA. bf16 and int8
    (block-wise, 128 values a scale, matrices only): torchao, whose update is compiled and computes in fp32.

    Raises:
        InputError: torchao is needed and not installed.
    """
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in trained if decays(name, p) == decaying], "weight_decay": decay}
        for decaying, decay in ((True, settings.weight_decay), (False, 0.0))
    ]
    groups = [group for group in groups if group["params"]]
    if settings.optimizer_state == "float32":
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(groups, lr=0.0, betas=settings.adam_betas, fused=True)
    else:
        optimizer = _low_bit(settings.optimizer_state)(groups, lr=0.0, betas=settings.adam_betas)
    # A checkpoint is read into states that exist: a step of rate 0 on zero gradients makes them and moves nothing.
    for _, parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    for state in optimizer.state.values():
        state["step"].zero_()
    return optimizer


def check_optimizer(settings: OptimSettings) -> None:
    """InputError where states of ``settings.optimizer_state`` need what is not installed."""
    if settings.optimizer_state != "float32":
        _low_bit(settings.optimizer_state)


def decays(name: str, parameter: Tensor) -> bool:
    """Whether weight decay is for this parameter: not for norms, biases and a value head.

    By name as well as by shape: a norm by heads and the biases of experts are matrices.
    """
    owner, _, own = name.rpartition(".")
    layer = owner.rpartition(".")[2]
    return parameter.ndim > 1 and layer != "score" and "norm" not in layer and not own.endswith("bias")


def _low_bit(kind: str) -> Callable[..., torch.optim.Optimizer]:
    try:
        from torchao.optim import AdamW8bit
    except ImportError as error:
        raise InputError(f"optimizer_state {kind}: needs torchao (pip install 'dapo-fast[lowbit]')") from error

    class LowBitAdamW(AdamW8bit):
        """torchao's update, which takes states of any type. Which states are small depends on the weight's shape alone,
        never on the world size, and no scale crosses a row: so a checkpoint fits every world size."""

        def _new_buffer(self, p: Tensor, signed: bool) -> Tensor:
            if kind == "bfloat16":
                return torch.zeros_like(p, dtype=torch.bfloat16)
            local = p.to_local() if isinstance(p, DTensor) else p
            if not takes_int8(p) or not local.numel():  # torchao has no int8 state of no values
                return torch.zeros_like(p)
            return _like(p, self._subclass_zeros(local, signed, INT8_BLOCK)).to(p.device)

    return functools.partial(LowBitAdamW, block_size=INT8_BLOCK)


def takes_int8(parameter: Tensor) -> bool:
    """Whether the moments of ``parameter`` (a shard of it, or the whole) can be kept in blocks of codes and scales."""
    return parameter.ndim > 1 and parameter.shape[-1] % INT8_BLOCK == 0


def _like(parameter: Tensor, local: Tensor) -> Tensor:
    """``local`` as a tensor sharded by rows as ``parameter`` is."""
    if not isinstance(parameter, DTensor):
        return local
    shape = torch.Size([*parameter.shape[:-1], local.shape[-1]])
    stride = torch.empty(shape, device="meta").stride()
    mesh, placements = parameter.device_mesh, parameter.placements
    return DTensor.from_local(local, mesh, placements, run_check=False, shape=shape, stride=stride)


def plain_states(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, kind: str) -> dict[str, Tensor]:
    """The optimizer's states of ``parameter`` as ordinary tensors that share their memory: int8 as codes and scales."""
    result: dict[str, Tensor] = {}
    for name, state in optimizer.state[parameter].items():
        if kind != "int8" or name == "step" or not takes_int8(parameter):
            result[name] = state
            continue
        local = state.to_local() if isinstance(state, DTensor) else state
        blocks = (*local.shape[:-1], local.shape[-1] // INT8_BLOCK)
        codes = local.codes if local.numel() else local.new_zeros(local.shape, dtype=torch.uint8)
        scale = local.scale.view(blocks) if local.numel() else local.new_zeros(blocks)
        result |= {f"{name}.codes": _like(parameter, codes), f"{name}.scale": _like(parameter, scale)}
    return result


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
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
    """Scale the gradients to a norm of at most ``limit``; returns the norm before, over all ranks, as a scalar."""
    norm = nn.utils.clip_grad_norm_(list(parameters), limit)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
