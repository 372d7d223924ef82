"""Before anything is done: every input of a run is read, and what it will train is built without weights."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dapo_fast.config import Config
from dapo_fast.data.problems import refuse_common
from dapo_fast.errors import InputError
from dapo_fast.layout import Layout
from dapo_fast.models.loading import resolve_device
from dapo_fast.parts import Parts
from dapo_fast.rollout.loading import check_critic, check_model_directory, check_prompts
from dapo_fast.snapshots import model_directory
from dapo_fast.train.memory import estimate
from dapo_fast.train.place import rank_memory_gib
from dapo_fast.train.preflight import check_training
from dapo_fast.train.sft import read_pairs

log = logging.getLogger("dapo_fast.pipeline")


def check_inputs(config: Config, parts: Parts, layout: Layout) -> None:
    """Read every problem file and model directory named by the config, before any work.

    Raises:
        InputError: names the one that is wrong, or what the run as a whole would lack.
    """
    configs = _by_iteration(config)
    heldout = parts.heldout()
    if heldout and any(c.engine.kind == "http" and c.engine.command is None for c in configs):
        raise InputError(
            "engine.command: needed to measure held-out problems, since each policy that is trained must be "
            "served; without data.heldout, one iteration can sample from a server started by hand"
        )
    read = [heldout] if heldout else []
    for iteration, its in enumerate(configs[1:], 1):
        if iteration == 1 or its.data != configs[iteration - 1].data:
            read.append(parts.problems(iteration))
    if config.model.path is not None or not layout.has_sft():
        check_model_directory("model.path", layout.model_path())
    if config.sft.data is not None:
        read_pairs(Path(config.sft.data))
    if any(its.actor.eval_every for its in configs[1:]):
        validation = parts.validation()
        for problems in read[bool(heldout) :]:
            refuse_common(validation, problems, "data.problems, and what a policy has learnt says nothing of it")
        read.append(validation)
    tokenizer = parts.tokenizer()
    for problems in read:
        parts.reward(problems)
        check_prompts(problems, tokenizer, config.data)
    if any(its.actor.sft_weight for its in configs) and parts.task is None and config.sft.data is None:
        raise InputError("actor.sft_weight: needs sft.data, since only a task brings its own gold traces")
    _check_ranks(configs, parts)
    for its in configs[1:]:
        if its.critic.init not in ("actor", "scratch") and its.advantages.source == "critic":
            check_critic("critic.init", its.critic.init, tokenizer, trained=False)
    _check_training(configs[1:])
    tracker = config.parallel.tracker
    if tracker != "none" and importlib.util.find_spec(tracker) is None:
        raise InputError(f"parallel.tracker {tracker}: not installed (pip install {tracker})")


def _check_ranks(configs: Sequence[Config], parts: Parts) -> None:
    """Ranks are processes of their own: what they need must be there for anybody to import."""
    alone = all(config.parallel.processes == 1 for config in configs)
    first = configs[0]
    needed = {"objective": [first.objective], "data.task": [first.data.task]}
    if any(config.actor.eval_every for config in configs):
        needed["reward"] = list(first.reward) if isinstance(first.reward, dict) else [first.reward]
        given = (first.data.validation, first.data.heldout)
        needed["data"] = [source for source in given if isinstance(source, str)]
    for setting, names in needed.items():
        for name in names:
            if name and name.startswith("<") and not alone:
                raise InputError(f"{setting} {name}: the ranks of parallel.processes cannot import it")
    parts.objective()


def _check_training(configs: Sequence[Config]) -> None:
    """What the iterations train can be built; those that change nothing of it are not tried again."""
    before: list[Any] = []
    path = configs[0].model.path
    policy = None if path is None else model_directory("model.path", path)
    for config in configs:
        parts = [config.parallel, config.actor, config.critic, config.advantages, config.engine.kind]
        if parts != before:
            check_training(config, policy)
        before = parts


def warn_of_memory(config: Config) -> None:
    """Say, before hours of sampling, that training what comes of it will not fit."""
    if config.model.path is None:
        return  # a built-in task's model is tiny
    model = model_directory("model.path", config.model.path, weights=False)
    said: set[str] = set()
    for its in _by_iteration(config)[1:]:
        device, processes = resolve_device(its.model.device), its.parallel.processes
        room = rank_memory_gib(device, processes)
        said |= set(estimate(model, its, processes, room, device.type).warnings())
    for line in sorted(said):
        log.warning("%s", line)


def _by_iteration(config: Config) -> list[Config]:
    """The settings of each iteration, from 0, which is the start."""
    return [config.at(iteration) for iteration in range(config.iterations + 1)]
