"""Whether what a run is to train can be built in the world it asks for, read and exported; with little memory."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from dapo_fast.config import Config, OptimSettings, ParallelSettings
from dapo_fast.errors import InputError
from dapo_fast.models.attention import choose_backend
from dapo_fast.models.checks import PROVED, check_reading, reading_error
from dapo_fast.models.context import check_shared
from dapo_fast.models.files import is_finite, not_finite, stored_tensors, tied_groups
from dapo_fast.models.loading import causal_lm_skeleton, load_config_of, value_model_skeleton
from dapo_fast.models.padded import reads_padded
from dapo_fast.models.tensor import check_divided
from dapo_fast.snapshots import model_directory
from dapo_fast.train.balance import routers
from dapo_fast.train.blocks import blocks
from dapo_fast.train.export import check_export
from dapo_fast.train.optim import check_optimizer
from dapo_fast.train.parallel import check_world, is_sharded
from dapo_fast.train.weights import MASTER, add_lora, match_files, stale_master


def check_training(config: Config, policy: Path | None) -> None:
    """Build what ``config`` trains on the meta device, as its ranks will, and compare it with its files' headers.

    Args:
        config: Of one iteration.
        policy: Where the run starts from; None: a task's own model.

    Raises:
        InputError: names the setting, or the model and why it cannot be trained.
    """
    processes, parallel = config.parallel.processes, config.parallel
    kind, dtype = check_world(processes, config.model, parallel)
    if kind == "cuda" and processes > torch.cuda.device_count():
        raise InputError(f"parallel.processes {processes}: there are {torch.cuda.device_count()} GPUs")
    shared = parallel.context_parallel_degree > 1
    if policy is None or not reads_padded(load_config_of(policy)):
        choose_backend(config.model.attention, torch.device(kind), flat=False, shared=shared)
    sharded = is_sharded(processes, dtype, parallel)
    has_critic = config.advantages.source == "critic"
    of_policy: list[OptimSettings] = [config.sft, config.actor] if config.sft.is_asked_for else [config.actor]
    for settings in [*of_policy, config.critic] if has_critic else of_policy:
        check_optimizer(settings)
    attention, init = config.model.attention, config.critic.init
    if policy is not None:
        try_first_layers(causal_lm_skeleton(policy, attention), policy, dtype)
        for settings in of_policy:
            source = _trained_from(policy, settings)
            _check(causal_lm_skeleton(source, attention), settings, source, parallel, by_ranks=sharded)
    start = policy if init in ("actor", "scratch") else model_directory("critic.init", init)
    if has_critic and start is not None:
        model = value_model_skeleton(start, attention).model
        _check(model, config.critic, start, parallel, by_ranks=sharded and init != "scratch")
        if init != "scratch" and not sharded:
            match_files(model, start, fresh_head=True)
        if start != policy:
            try_first_layers(value_model_skeleton(start, attention).model, start, dtype)


def _trained_from(policy: Path, settings: OptimSettings) -> Path:
    """As ``weights.trained_from``, but for damaged weights, which are looked at as they are read."""
    if settings.lora_rank or not (policy / MASTER).is_dir():
        return policy
    stale = stale_master(policy)
    if stale is not None:
        raise InputError(stale)
    return policy / MASTER


def _check(
    model: PreTrainedModel, settings: OptimSettings, source: Path, parallel: ParallelSettings, by_ranks: bool
) -> None:
    """Whether ``model`` can be trained as ``parallel`` lays it, and exported, and its files in ``source`` read
    ``by_ranks``, each its rows."""
    if parallel.context_parallel_degree > 1:
        check_shared(model)
    if parallel.tensor_parallel_degree > 1:
        check_divided(model, parallel.tensor_parallel_degree, settings)
    if settings.router_aux:
        routers(model)
    if settings.lora_rank:
        add_lora(model, settings)
    is_critic = hasattr(model, "score")
    if by_ranks:
        _check_blocks(model)
    if by_ranks or not is_critic:
        match_files(model, source, fresh_head=is_critic)
    check_export(model, source)


def _check_blocks(model: nn.Module) -> None:
    """Refuse a model that FSDP2 cannot shard block by block.

    Raises:
        InputError: two of its blocks share a parameter.
    """
    owners: dict[int, nn.Module] = {}
    for block in blocks(model):
        if any(owners.setdefault(id(parameter), block) is not block for parameter in block.parameters()):
            raise InputError(
                f"{type(model).__name__}: its blocks share parameters, which cannot be sharded block by block; "
                "train it in one process in float32"
            )


def try_first_layers(model: PreTrainedModel, source: Path, dtype: torch.dtype = torch.float32) -> None:
    """``check_reading`` of a model's first layers, up to the last of a new kind: a small part of a large one.

    Args:
        model: Without weights; it gets some of those in ``source``, in place.
        dtype: What it will compute in: tried too.

    Raises:
        InputError: as ``check_reading`` and ``match_files``.
    """
    if model.config.get_text_config().model_type in PROVED:
        return
    held = {name: read for name, (_, read) in match_files(model, source, hasattr(model, "score")).items()}
    backbone = model.base_model
    layers = next(m for m in backbone.modules() if isinstance(m, nn.ModuleList) and list(m) == blocks(backbone))
    types = getattr(model.config.get_text_config(), "layer_types", None) or [""] * len(layers)
    kinds = [(kind, *(type(module) for module in layer.modules())) for kind, layer in zip(types, layers, strict=True)]
    del layers[max(kinds.index(kind) for kind in kinds) + 1 :]
    computed = [(module, name, b) for module in model.modules() for name, b in module.named_buffers(recurse=False)]
    tied = [names for names, _ in tied_groups(model)]
    model.to_empty(device="cpu")
    for first, *others in tied:  # which to_empty has parted
        for module, _, name in (other.rpartition(".") for other in others):
            setattr(model.get_submodule(module), name, model.get_parameter(first))
    for module, name, buffer in computed:
        setattr(module, name, buffer)
    for name, tensor in model.state_dict().items():
        if name in held:
            tensor.copy_(held[name].rows(slice(None)))
            if not is_finite(tensor):
                raise InputError(not_finite(source, stored_tensors(source), held[name].names[0]))
    check_reading(model, str(source), torch.float32, lambda: reading_error(model))
    if dtype != torch.float32:
        for parameter in model.parameters():  # as FSDP2 casts them; buffers stay
            parameter.data = parameter.data.to(dtype)
        check_reading(model, str(source), dtype, lambda: reading_error(model))
