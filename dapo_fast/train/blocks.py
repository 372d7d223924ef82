"""The decoder blocks of a model: activation checkpointing and ``torch.compile``, block by block."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from dapo_fast.config import ParallelSettings
from dapo_fast.models.tree_flex import allow_recompiles


def blocks(model: nn.Module) -> list[nn.Module]:
    """The decoder blocks: the longest module list of the model."""
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
    return list(max(lists, key=len)) if lists else []


def prepare_blocks(model: nn.Module, settings: ParallelSettings) -> None:
    """Activation checkpointing and ``torch.compile``, block by block, in place; parameter names stay."""
    if settings.compile:
        allow_recompiles()
    for block in blocks(model):
        if settings.activation_checkpointing != "none":
            context = _keep_matmuls if settings.activation_checkpointing == "selective" else None
            block.forward = _checkpointed(block.forward, context)  # type: ignore[method-assign]
        if settings.compile:
            block.compile()


def _checkpointed(forward: Callable, context: Callable | None) -> Callable:
    options: dict[str, Any] = {"use_reentrant": False}
    if context is not None:
        options["context_fn"] = context

    @functools.wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, **options, **kwargs)

    return run


def _keep_matmuls() -> tuple:
    """Selective checkpointing: keep what costs most to redo (attention, every second matrix product)."""
    aten = torch.ops.aten
    attention = {
        aten._scaled_dot_product_flash_attention.default,
        aten._scaled_dot_product_efficient_attention.default,
        aten._scaled_dot_product_cudnn_attention.default,
        aten._scaled_dot_product_flash_attention_for_cpu.default,
        torch.ops.higher_order.flex_attention,  # within a block that is compiled
    }
    if hasattr(torch.ops.higher_order, "inductor_compiled_code"):
        attention.add(torch.ops.higher_order.inductor_compiled_code)  # FlexAttention, compiled by itself
    products = {aten.mm.default, aten.addmm.default}
    seen = {False: 0, True: 0}

    def policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        if op in products:
            seen[context.is_recompute] += 1
        keep = op in attention or (op in products and seen[context.is_recompute] % 2 == 1)
        return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)
