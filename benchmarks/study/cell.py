"""One cell: a run whose stages live in a store by the hash of their settings, so that cells share what they can."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from dapo_fast.config import OptimSettings, SftSettings
from dapo_fast.data.store import read_trees, write_shard
from dapo_fast.errors import InputError
from dapo_fast.hashing import digest
from dapo_fast.layout import Layout
from dapo_fast.pipeline import Pipeline
from dapo_fast.rundir import RunDirectory, read_json, write_json
from dapo_fast.stages import NoContrastError
from dapo_fast.train.actor import train_actor
from dapo_fast.train.sft import train_sft

from .baselines import correct_responses, dpo, preference_trees
from .config import Cell, Study, config_of

RESPONSES_A_BATCH = 64  # of rejection sampling; 64 pairs of DPO
UPDATES = 120  # an iteration, of the methods that learn from whole responses; DAPO's single epoch is about as many


class CellLayout(Layout):
    """Stages kept in ``store`` by the hash of their settings; the actor's, of a baseline, depend on the trees alone."""

    def __init__(self, directory: RunDirectory, store: Path, trains: str) -> None:
        super().__init__(directory)
        self._store = store
        self._trains = trains

    def settings(self, stage: str, iteration: int) -> dict[str, Any]:
        if stage != "actor" or self._trains == "advantages":
            return super().settings(stage, iteration)
        config = self.config.at(iteration)
        settings = {"stage": stage, "seed": config.seed, "trains": self._trains, "actor": config.actor.model_dump()}
        settings["trees"] = self.upstream(self.directory.stage(iteration, "collect"))
        return settings | {"policy": self.digest_of(self.policy(iteration - 1)), "dtype": config.model.dtype}

    def claim(self, stage: str, iteration: int) -> tuple[Path, str]:
        place = self.directory.stage(iteration, stage)
        if not place.is_symlink():
            shared = self._store / f"{stage}-{digest(self.settings(stage, iteration))}"
            shared.mkdir(parents=True, exist_ok=True)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(os.path.relpath(shared, place.parent), target_is_directory=True)
        return super().claim(stage, iteration)


class CellPipeline(Pipeline):
    """A pipeline whose stages are kept in ``store``, and whose actor stage may be a baseline."""

    def __init__(self, directory: RunDirectory, store: Path, trains: str) -> None:
        super().__init__(directory, layout=CellLayout(directory, store, trains))
        self._trains = trains

    def iterate(self, iteration: int) -> dict:
        """As ``Pipeline.iterate``; a baseline needs neither critic nor advantages."""
        if self._trains == "advantages":
            return super().iterate(iteration)
        collected = self.collect(iteration)
        self._train_baseline(iteration)
        row = {"iteration": iteration, "accepted": True, "collect": collected}
        return row | (self.evaluate(iteration) or {})

    def _train_baseline(self, iteration: int) -> None:
        config = self.config.at(iteration)
        out, key = self.layout.claim("actor", iteration)
        if (out / "done.json").exists():
            return
        trees = list(read_trees(self.directory.stage(iteration, "collect")))
        seed = config.seed + 1000 * iteration
        policy = self.layout.policy(iteration - 1)
        actor = config.actor
        if self._trains == "correct responses":
            shared = {name: getattr(actor, name) for name in OptimSettings.model_fields}
            settings = SftSettings(**shared | {"steps": actor.steps or UPDATES}, batch_sequences=RESPONSES_A_BATCH)
            stream = correct_responses(trees, RESPONSES_A_BATCH, seed)
            train_sft(policy, settings, config.parallel, config.model, out, seed=seed, digest=key, stream=stream)
            return
        pairs = out / "pairs"
        if not pairs.exists():
            write_shard(pairs / "shard-00000.parquet", preference_trees(trees))
        if isinstance(actor.beta, str):
            raise InputError(f"actor.beta {actor.beta}: a rule for advantages; DPO needs a number")
        update = {"batch_pairs": 2 * RESPONSES_A_BATCH, "steps": actor.steps or UPDATES, "log_partition": False}
        settings = actor.model_copy(update=update)
        objective = dpo(actor.beta)
        train_actor(
            pairs, policy, settings, config.parallel, config.model, out, seed=seed, digest=key, objective=objective
        )


def open_cell(study: Study, cell: Cell, root: Path, tuned: dict[str, Any]) -> CellPipeline:
    """The cell's pipeline, in its directory."""
    directory = RunDirectory(cell.directory(root), config_of(study, cell, tuned))
    return CellPipeline(directory, root / cell.task / f"seed{cell.seed}" / "store", cell.trains)


def run_cell(study: Study, cell: Cell, root: Path, tuned: dict[str, Any]) -> dict[str, Any]:
    """Do what is left of the cell and return its result, which ``cell.json`` keeps.

    Raises:
        InputError: the directory holds a cell of other settings.
    """
    pipeline = open_cell(study, cell, root, tuned)
    pipeline.layout.check_settings()
    pipeline.directory.save_config()  # what `dapo-fast report` reads, of a cell as of any run
    path = cell.directory(root) / "cell.json"
    key = pipeline.config.digest()
    if path.exists() and read_json(path)["config"] == key:
        return read_json(path)
    if pipeline.layout.has_sft():
        pipeline.sft()
    rows = [{"iteration": 0, "accepted": True} | (pipeline.evaluate(0) or {})]
    if cell.trains != "nothing":
        for iteration in range(1, pipeline.config.iterations + 1):
            try:
                rows.append(pipeline.iterate(iteration))
            except NoContrastError as error:
                rows.append({"iteration": iteration, "accepted": False, "stopped": str(error)})
            if rows[-1].get("stopped"):
                break
    result = {"config": key, "task": cell.task, "seed": cell.seed, "variant": cell.variant, "group": cell.group}
    tokens = [row["collect"]["generated_tokens"] for row in rows if "collect" in row]
    result |= {"tuned": tuned, "rows": rows, "tokens": tokens}
    write_json(path, result)
    return result
