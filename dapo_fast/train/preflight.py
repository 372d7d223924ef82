"""Whether what a run is to train can be built in the world it asks for: no weights are read, no memory is needed."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel

from dapo_fast.config import Config, OptimSettings
from dapo_fast.errors import InputError
from dapo_fast.models.attention import choose_backend
from dapo_fast.models.loading import causal_lm_skeleton, load_config_of, value_model_skeleton
from dapo_fast.models.padded import reads_padded
from dapo_fast.train.optim import check_optimizer
from dapo_fast.train.parallel import check_blocks, check_world, is_sharded
from dapo_fast.train.weights import add_lora, match_files


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
    if policy is None or not reads_padded(load_config_of(policy)):
        choose_backend(config.model.attention, torch.device(kind), flat=False)
    sharded = is_sharded(processes, dtype, parallel)
    has_critic = config.advantages.source == "critic"
    for settings in (config.actor, config.critic) if has_critic else (config.actor,):
        check_optimizer(settings)
    if policy is not None:
        model = causal_lm_skeleton(policy, config.model.attention)
        _check(model, config.actor, policy if sharded else None, fresh_head=False)
    start = policy if config.critic.init in ("actor", "scratch") else Path(config.critic.init)
    if has_critic and start is not None:
        model = value_model_skeleton(start, config.model.attention).model
        read = sharded and config.critic.init != "scratch"
        _check(model, config.critic, start if read else None, fresh_head=True)


def _check(model: PreTrainedModel, settings: OptimSettings, directory: Path | None, fresh_head: bool) -> None:
    """Adapters beside ``model``; its blocks and its files in ``directory``, where the ranks are to read them."""
    if settings.lora_rank:
        add_lora(model, settings)
    if directory is not None:
        check_blocks(model)
        match_files(model, directory, fresh_head)
