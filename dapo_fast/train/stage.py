"""The end of sft, critic and actor: what is exported and kept, and whether it is there already."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

from transformers import GenerationMixin, PreTrainedModel

from dapo_fast.errors import InputError
from dapo_fast.rundir import read_metrics, read_state, write_json
from dapo_fast.state import Done
from dapo_fast.train.checkpoint import CHECKPOINTS
from dapo_fast.train.export import export
from dapo_fast.train.parallel import World
from dapo_fast.train.trees import TREES
from dapo_fast.train.weights import has_adapters

log = logging.getLogger("dapo_fast.train")


def finished(directory: Path, digest: str) -> dict[str, Any] | None:
    """The summary of a stage that is done, or None.

    Raises:
        InputError: it was done with other settings.
    """
    path = directory / "done.json"
    if not path.exists():
        return None
    summary = read_state(path, Done)
    if summary["digest"] != digest:
        raise InputError(f"{path}: made with other settings; use a new run directory")
    # Of a process killed as it was dropping them.
    shutil.rmtree(directory / CHECKPOINTS, ignore_errors=True)
    (directory / TREES).unlink(missing_ok=True)
    return summary


def finish(
    directory: Path, digest: str, model: PreTrainedModel, source: Path, world: World, summary: dict[str, Any]
) -> dict[str, Any]:
    """Export the model to ``directory/model``, write ``done.json``, and drop the checkpoints, which nobody needs now.

    A policy keeps its fp32 weights, unless it was adapters that were trained: the next iteration goes on from them.

    Args:
        source: The policy that this one was, or whose tokens a critic reads.

    Returns:
        What ``done.json`` holds: digest, steps, the last step's metrics, ``summary``, and for a policy the share of its
        weights that ``changed``.
    """
    policy = isinstance(model, GenerationMixin)
    # Behind adapters weights are held in what is computed in (``readers``): there is nothing more precise to keep.
    master = policy and not has_adapters(model)
    changed = export(model, directory / "model", source, world.dtype, world, master)
    if policy:
        summary = summary | {"changed": changed}
        kind = str(world.dtype).removeprefix("torch.")
        log.info("%s: %.1f%% of the weights have changed, as %s", directory / "model", 100 * changed, kind)

    def recorded() -> dict[str, Any]:
        metrics = directory / "metrics.jsonl"
        rows = read_metrics(metrics)
        if not rows:
            raise InputError(f"{metrics}: holds no step, though the training is done")
        result = {"digest": digest, "last": rows[-1]} | summary
        write_json(directory / "done.json", result)
        if (directory / CHECKPOINTS).exists():  # a short run has none
            shutil.rmtree(directory / CHECKPOINTS)
        log.info("%s: done", directory / "model")
        return result

    return world.from_first(recorded)
