"""Whether what a run is to train can be built in the world it asks for: no weights are read, no memory is needed."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel

from dapo_fast.config import Config, OptimSettings
from dapo_fast.errors import InputError
from dapo_fast.models.attention import choose_backend
from dapo_fast.models.loading import causal_lm_skeleton, value_model_skeleton
from dapo_fast.train.balance import routers
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
    choose_backend(config.model.attention, torch.device(kind), flat=False)
    sharded = is_sharded(processes, dtype, parallel)
    has_critic = config.advantages.source == "critic"
    for settings in (config.actor, config.critic) if has_critic else (config.actor,):
        check_optimizer(settings)
    if policy is not None:
        source = _trained_from(policy, config.actor)
        model = causal_lm_skeleton(source, config.model.attention)
        _check(model, config.actor, source if sharded else None, fresh_head=False)
    start = policy if config.critic.init in ("actor", "scratch") else Path(config.critic.init)
    if has_critic and start is not None:
        model = value_model_skeleton(start, config.model.attention).model
        read = sharded and config.critic.init != "scratch"
        _check(model, config.critic, start if read else None, fresh_head=True)


def _trained_from(policy: Path, settings: OptimSettings) -> Path:
    """As ``weights.trained_from``, but for damaged weights, which are looked at as they are read."""
    if settings.lora_rank or not (policy / MASTER).is_dir():
        return policy
    stale = stale_master(policy)
    if stale is not None:
        raise InputError(stale)
    return policy / MASTER


def _check(model: PreTrainedModel, settings: OptimSettings, directory: Path | None, fresh_head: bool) -> None:
    """Adapters beside ``model``; its files in ``directory``, where the ranks are to read them by themselves."""
    if settings.router_aux:
        routers(model)
    if settings.lora_rank:
        add_lora(model, settings)
    if directory is not None:
        match_files(model, directory, fresh_head)
