"""``Config``: the whole of a run, what must hold between its sections, and what is said of a wrong key."""

from __future__ import annotations

import copy
import json
from difflib import get_close_matches
from typing import Any

from pydantic import Field, ValidationError, field_validator, model_validator

from dapo_fast.config.sampling import CollectSettings, EngineSettings, EvaluateSettings
from dapo_fast.config.section import Section
from dapo_fast.config.sources import DataSettings, ModelSettings
from dapo_fast.config.training import ActorSettings, AdvantageSettings, CriticSettings, ParallelSettings, SftSettings
from dapo_fast.errors import InputError, one_line
from dapo_fast.hashing import digest
from dapo_fast.names import check_name

# What ``by_iteration`` cannot change: it is read once, or iterations could not be compared.
_OF_THE_RUN = {"seed", "iterations", "keep_best", "reward", "objective", "model", "sft", "by_iteration"}
_DATA_OF_THE_RUN = {"task", "template", "system_prompt", *DataSettings.MEASURED}

# What actor.beta "auto" stands for. The first policy has the most to gain and bears large targets; afterwards more of
# what is left in Â is noise, and targets that large take a policy apart (docs/study.md).
FIRST_BETA, LATER_BETA = "std/6", "std/2"


Changes = dict[int, dict[str, Any]]  # from an iteration on: section → setting → value


class Config(Section):
    """The whole of a run."""

    seed: int = Field(0, ge=0, lt=2**43)  # of everything random; what is derived from it must fit 64 bits
    iterations: int = Field(1, ge=1, le=10_000)  # of Algorithm 1
    keep_best: bool = True  # keep the previous policy where the new one is worse beyond its interval
    reward: str | dict[str, float] | None = None  # "math", "code", module:function, or {name: weight}; None: by problem
    objective: str | None = None  # module:function, the actor's loss (docs/objectives.md); None: the squared loss
    model: ModelSettings = ModelSettings()
    data: DataSettings = DataSettings()
    sft: SftSettings = SftSettings()
    engine: EngineSettings = EngineSettings()
    collect: CollectSettings = CollectSettings()
    critic: CriticSettings = CriticSettings()
    advantages: AdvantageSettings = AdvantageSettings()
    actor: ActorSettings = ActorSettings()
    parallel: ParallelSettings = ParallelSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    by_iteration: Changes = Field(default_factory=dict)  # {2: {actor: {beta: 0.1}}} changes settings from then on

    @field_validator("reward", mode="before")
    @classmethod
    def _known_reward(cls, value: Any) -> Any:
        if value is not None:
            # Late, as for tasks.
            from dapo_fast.rewards import check_reward

            check_reward(value)
        return value

    @field_validator("objective")
    @classmethod
    def _known_objective(cls, value: str | None) -> str | None:
        if value is not None:
            check_name(value)
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if self.engine.kind == "http" and self.engine.command is None and self.iterations > 1:
            raise ValueError("engine.command: needed for several iterations, since each samples from a new policy")
        if self.data.task is not None and self.data.problems is not None:
            raise ValueError("data: task and problems exclude each other")
        if self.advantages.source == "mc" and (self.collect.every_state > 1 or not self.collect.completions):
            raise ValueError(
                "advantages.source: 'mc' needs completions of the state after every step: collect.every_state 1 and "
                "collect.completions above 0"
            )
        if self.collect.gold_starts and (not self.collect.completions or self.advantages.source == "response"):
            raise ValueError(
                "collect.gold_starts: what a solution's steps are worth is sampled: needs collect.completions above 0 "
                "and advantages.source 'critic' or 'mc'"
            )
        for iteration, change in self.by_iteration.items():
            if iteration < 1:
                raise ValueError(f"by_iteration.{iteration}: the first iteration is 1")
            data = change["data"] if isinstance(change.get("data"), dict) else {}
            fixed = [k for k in change if k in _OF_THE_RUN] + [f"data.{k}" for k in data if k in _DATA_OF_THE_RUN]
            if fixed:
                raise ValueError(f"by_iteration.{iteration}: {', '.join(fixed)}: the same in every iteration of a run")
            if iteration > self.iterations:
                raise ValueError(f"by_iteration.{iteration}: the run has iterations 1 to {self.iterations}")
            try:
                self.at(iteration)
            except ValidationError as error:
                raise ValueError(f"by_iteration.{iteration}: {wrong_keys(error)}") from error
        return self

    def check_whole(self, source: str) -> None:
        """InputError, naming ``source``, where problems or a model are missing: a program may give them elsewhere."""
        if self.data.task is None and self.data.problems is None:
            raise InputError(f"{source}: data: name a task (data.task) or a source of problems (data.problems)")
        if self.data.task is None and self.model.path is None:
            raise InputError(f"{source}: model.path: needed, since only a task brings its own model")
        chooses = any(self.at(iteration).actor.eval_every for iteration in (1, *self.by_iteration))
        if chooses and self.data.task is None and self.data.validation is None:
            raise InputError(f"{source}: actor.eval_every: needs data.validation, problems to choose the policy by")

    def at(self, iteration: int) -> Config:
        """The settings in force in ``iteration`` (1 is the first, 0 before it).

        ``by_iteration`` is merged in up to it, and ``actor.beta`` is no longer ``"auto"``.
        """
        merged = self.model_dump(exclude={"by_iteration"})
        for index in sorted(i for i in self.by_iteration if i <= iteration):
            merged = merge(merged, self.by_iteration[index])
        if merged["actor"]["beta"] == "auto":
            merged["actor"]["beta"] = FIRST_BETA if iteration < 2 else LATER_BETA
        return Config.model_validate(merged)

    def digest(self) -> str:
        """A short hash of every setting: results of different configs never mix."""
        return digest(self.model_dump(mode="json"))


def merge(base: dict, change: dict) -> dict:
    """``change`` over ``base``, section by section; neither is changed."""
    merged = copy.deepcopy(base)
    for key, value in change.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def wrong_keys(error: ValidationError) -> str:
    """What is wrong with which key, all of it on one line."""
    return "; ".join(wrong_key(e) for e in error.errors())


def wrong_key(error: Any) -> str:
    """One of a ``ValidationError``'s ``errors()``, as one line that names the key."""
    place, message = ".".join(map(str, error["loc"])), error["msg"].removeprefix("Value error, ")
    if error["type"] == "string_type" and isinstance(error["input"], int | float):
        message += f", not {json.dumps(error['input'])}; quote it"
    if error["type"] == "extra_forbidden":
        message = f"there is no such setting{_meant(place)}"
    return one_line(f"{place}: {message}" if place else message)


def _meant(place: str) -> str:
    """A question after settings of the same name in other sections, or else of nearly the same name."""
    known = []
    for name, field in Config.model_fields.items():
        kind = field.annotation
        within = kind.model_fields if isinstance(kind, type) and issubclass(kind, Section) else ()
        known += [name, *(f"{name}.{key}" for key in within)]
    key = place.rpartition(".")[2]
    found = [name for name in known if name.rpartition(".")[2] == key] or get_close_matches(place, known, 1)
    return f"; did you mean {', '.join(found)}?" if found else ""
