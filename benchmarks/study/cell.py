"""One cell: a run whose stages live in a store by the hash of their settings, so that cells share what they can."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from dapo_fast.advantages import compute_advantages
from dapo_fast.config import OptimSettings, SftSettings
from dapo_fast.data.store import read_trees, write_shard
from dapo_fast.hashing import digest
from dapo_fast.layout import Layout
from dapo_fast.pipeline import Pipeline
from dapo_fast.rundir import RunDirectory, read_json, write_json
from dapo_fast.stages import NoContrastError
from dapo_fast.train.actor import train_actor
from dapo_fast.train.sft import train_sft

from .baselines import BASELINES, RESPONSES_A_BATCH, UPDATES, correct_responses
from .config import SMOOTHED, Cell, Study, config_of
from .peers import Policy
from .smoothing import SmoothedValues


class CellLayout(Layout):
    """Stages kept in ``store`` by the hash of their settings; the actor's, of a baseline, depend on the trees alone."""

    def __init__(self, directory: RunDirectory, store: Path, trains: str) -> None:
        super().__init__(directory)
        self._store = store
        self._trains = trains

    def settings(self, stage: str, iteration: int) -> dict[str, Any]:
        config = self.config.at(iteration)
        if stage == "advantages" and self._trains == SMOOTHED:
            trees = self.upstream(self.directory.stage(iteration, "collect"))
            return {"stage": stage, "values": SMOOTHED, "trees": trees, "advantages": config.advantages.model_dump()}
        if stage != "actor" or self._trains in ("advantages", SMOOTHED):
            return super().settings(stage, iteration)
        settings = {"stage": stage, "seed": config.seed, "trains": self._trains, "actor": config.actor.model_dump()}
        settings["trees"] = self.upstream(self.directory.stage(iteration, reads(self._trains)))
        return settings | {"policy": self.policy_digest(iteration - 1), "dtype": config.model.dtype}

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
        """As ``Pipeline.iterate``; a method that learns from whole responses needs neither critic nor advantages."""
        if reads(self._trains) == "advantages":
            return super().iterate(iteration)
        row = {"iteration": iteration, "collect": self.collect(iteration)}
        try:
            self.actor(iteration)
        except NoContrastError as error:
            return row | {"accepted": False, "stopped": str(error)}
        return row | {"accepted": True} | (self.evaluate(iteration) or {})

    def critic(self, iteration: int) -> dict[str, Any]:
        """As ``Pipeline.critic``; smoothed values need none."""
        return {} if self._trains == SMOOTHED else super().critic(iteration)

    def advantages(self, iteration: int) -> dict[str, Any]:
        """As ``Pipeline.advantages``, by smoothed values where the cell has these."""
        if self._trains != SMOOTHED:
            return super().advantages(iteration)
        collected = self.directory.stage(iteration, "collect")
        out, key = self.layout.claim("advantages", iteration)
        fill = SmoothedValues(list(read_trees(collected)), self._sampler(iteration))
        return compute_advantages(collected, out, self.config.at(iteration).advantages, fill, key, fill.k)

    def actor(self, iteration: int) -> dict[str, Any]:
        """As ``Pipeline.actor``, by what the cell trains on."""
        if self._trains in ("advantages", SMOOTHED):
            return super().actor(iteration)
        out, key = self.layout.claim("actor", iteration)
        if (out / "done.json").exists():
            return read_json(out / "done.json")
        train = self._train_baseline if self._trains in BASELINES else self._imitate_responses
        return train(iteration, out, key)

    def _imitate_responses(self, iteration: int, out: Path, key: str) -> dict[str, Any]:
        config = self.config.at(iteration)
        actor, seed = config.actor, config.seed + 1000 * iteration
        shared = {name: getattr(actor, name) for name in OptimSettings.model_fields}
        settings = SftSettings(**shared | {"steps": actor.steps or UPDATES}, batch_sequences=RESPONSES_A_BATCH)
        trees = list(read_trees(self.directory.stage(iteration, "collect")))
        stream = correct_responses(trees, RESPONSES_A_BATCH, seed)
        policy = self.layout.policy(iteration - 1)
        return train_sft(policy, settings, config.parallel, config.model, out, seed=seed, digest=key, stream=stream)

    def _train_baseline(self, iteration: int, out: Path, key: str) -> dict[str, Any]:
        config = self.config.at(iteration)
        policy, baseline = self._sampler(iteration), BASELINES[self._trains]
        trees = out / "pairs"
        if not trees.exists():
            found = baseline.trees(list(read_trees(self.directory.stage(iteration, baseline.reads))), policy)
            if not found:
                raise NoContrastError(f"{self._trains}: nothing in these trees to learn from")
            write_shard(trees / "shard-00000.parquet", found)
        objective = baseline.objective(config.actor, policy)
        settings, seed = baseline.settings(config.actor), config.seed + 1000 * iteration
        laid = config.parallel, config.model
        return train_actor(trees, policy.directory, settings, *laid, out, seed=seed, digest=key, objective=objective)

    def _sampler(self, iteration: int) -> Policy:
        return Policy(self.layout.policy(iteration - 1), self.config.model)


def reads(trains: str) -> str:
    """The stage whose trees the actor's stage starts from."""
    if trains in BASELINES:
        return BASELINES[trains].reads
    return "advantages" if trains in ("advantages", SMOOTHED) else "collect"


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
            rows.append(pipeline.iterate(iteration))
            if rows[-1].get("stopped"):
                break
    result = {"config": key, "task": cell.task, "seed": cell.seed, "variant": cell.variant, "group": cell.group}
    tokens = [row["collect"]["generated_tokens"] for row in rows if "collect" in row]
    result |= {"tuned": tuned, "rows": rows, "tokens": tokens}
    write_json(path, result)
    return result
