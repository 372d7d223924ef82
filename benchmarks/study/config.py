"""What the study runs: its YAML file, and the cells that it unfolds into."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

from dapo_fast.config import Config, merge, preset_values, wrong_keys
from dapo_fast.errors import InputError
from dapo_fast.tasks import get_task

DEFAULT = Path(__file__).parent / "study.yaml"
SMOOTHED = "smoothed values"
Trains = Literal[
    "nothing",
    "advantages",
    "correct responses",
    "preference pairs",
    "GRPO",
    "clip-higher",
    "BASIS",
    "VinePPO",
    "best candidates",
    "smoothed values",
]


class Section(BaseModel):
    """A group of settings: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid")


class Variant(Section):
    """One way of training: ``settings`` go over the study's, each setting of ``grid`` into the actor's section."""

    label: str
    trains: Trains = "advantages"
    settings: dict[str, Any] = {}
    grid: list[dict[str, bool | float | str]] = []


class Truth(Section):
    """How well the true Q of trained pairs is known, and of how many of them."""

    pairs: int
    completions: int


class Study(Section):
    """The whole file."""

    suite: str = "study"  # of the results file
    preset: str
    settings: dict[str, Any] = {}
    tasks: dict[str, dict[str, Any]]  # name → settings; a list of names stands for built-in tasks
    seeds: list[int]
    tuning_seed: int
    tuning_settings: dict[str, Any] = {}  # over the rest when tuning: other held-out problems, where a task is files
    truth: Truth | None = None  # None: not measured
    methods: dict[str, Variant]
    plans: dict[str, Variant]  # DAPO with other ways of sampling
    rules: dict[str, Variant]  # DAPO with one thing changed

    @field_validator("tasks", mode="before")
    @classmethod
    def _built_in(cls, tasks: Any) -> Any:
        if not isinstance(tasks, list):
            return tasks
        try:
            return {get_task(str(name)).kind: {"data": {"task": name}} for name in tasks}
        except InputError as error:
            raise ValueError(str(error)) from error

    @model_validator(mode="after")
    def _consistent(self) -> Study:
        if "dapo" not in self.methods:
            raise ValueError("methods: needs dapo, which plans and rules start from")
        if self.tuning_seed in self.seeds:
            raise ValueError("tuning_seed: must not be one of seeds")
        tuned_on = self.tuning_settings.get("data", {}).get("heldout")
        base = merge(preset_values(self.preset), self.settings)
        tunes = any(variant.grid for variant in self.methods.values())
        for name, settings in self.tasks.items() if tunes else ():
            data = merge(base, settings).get("data", {})
            if data.get("task") is None and tuned_on in (None, data.get("heldout")):
                raise ValueError(f"tuning_settings.data.heldout: {name} needs others than those reported on")
        names = [*self.methods, *self.plans, *self.rules]
        repeated = {name for name in names if names.count(name) > 1}
        if repeated:
            raise ValueError(f"{sorted(repeated)[0]}: the name of two variants")
        return self


@dataclass(frozen=True)
class Cell:
    """One training: a variant on a task from a seed.

    Attributes:
        variant: Its name, the cell's directory too: ``dapo``, ``rejection@2`` (tuning).
        group: ``tuning``, ``methods``, ``plans`` or ``rules``.
        method: The method whose tuned setting it takes; None: it brings its own.
    """

    task: str
    seed: int
    variant: str
    group: str
    trains: Trains = "advantages"
    settings: dict[str, Any] = field(default_factory=dict)
    method: str | None = None

    def directory(self, root: Path) -> Path:
        """Where it lives below the study's directory."""
        return root / self.task / f"seed{self.seed}" / self.variant


def load_study(path: Path) -> Study:
    """Read a study; InputError names the file and every wrong key."""
    try:
        return Study.model_validate(yaml.safe_load(path.read_text()))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: not a readable YAML file ({error})") from error
    except ValidationError as error:
        raise InputError(f"{path}: {wrong_keys(error)}") from error


def config_of(study: Study, cell: Cell, tuned: dict[str, Any]) -> Config:
    """The run's settings: the preset, the study's, the cell's, the tuned ones."""
    settings = merge(merge(study.settings, study.tasks[cell.task]), {"seed": cell.seed})
    settings = merge(merge(settings, cell.settings), {"actor": tuned})
    base = preset_values(study.preset)
    if "by_iteration" in settings:  # given whole, not merged: an empty one takes the preset's away
        base["by_iteration"] = {}
    try:
        return Config.model_validate(merge(base, settings))
    except ValidationError as error:
        raise InputError(f"variant {cell.variant}: {wrong_keys(error)}") from error


def tuning_cells(study: Study, task: str) -> list[Cell]:
    """Every method with each setting of its grid, on the tuning seed."""
    return [
        Cell(task, study.tuning_seed, f"{name}@{i}", "tuning", v.trains, merge(settings, {"actor": setting}))
        for name, v in study.methods.items()
        for settings in [merge(study.tuning_settings, v.settings)]
        for i, setting in enumerate(v.grid)
    ]


def method_cells(study: Study, task: str, seed: int) -> list[Cell]:
    """Every method with its tuned setting."""
    return [Cell(task, seed, name, "methods", v.trains, v.settings, name) for name, v in study.methods.items()]


def changed_cells(study: Study, task: str, seed: int) -> list[Cell]:
    """DAPO with each other plan and rule."""
    base = study.methods["dapo"].settings
    groups = {"plans": study.plans, "rules": study.rules}
    return [
        Cell(task, seed, name, group, "advantages", merge(base, v.settings), "dapo")
        for group, variants in groups.items()
        for name, v in variants.items()
    ]
