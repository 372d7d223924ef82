"""What a run starts from: the policy to improve, and its problems."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from dapo_fast.config.section import LATER, Section, Weight
from dapo_fast.names import looked_up

TEMPLATES = ("chat", "plain", "none")


class ModelSettings(Section):
    """The policy to improve."""

    path: str | None = None  # directory, or org/name[@revision] of the hub; None: the task's own, from scratch
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 on CUDA, or to sample if fast; else float32
    attention: Literal["auto", "flex", "tree_sdpa", "varlen", "dense"] = "auto"  # auto: the fastest that the device has
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: cuda where there is one


class Source(Section):
    """One of several sets of problems."""

    path: str  # JSONL file, benchmark name or hub id
    weight: Weight | None = None  # its share of the problems; left out of all: every set is taken whole


class DataSettings(Section):
    """Problems to train on and problems held out."""

    # What policies are measured on, which decides nothing of what is sampled to learn from.
    MEASURED: ClassVar = ("heldout", "heldout_limit", "validation", "validation_limit")

    task: str | None = None  # a built-in task ("arithmetic") or module:task; it generates its own problems
    problems: str | list[Source] | None = None  # JSONL file, benchmark name or hub id; or a list of {path, weight}
    heldout: str | list[Source] | None = None  # the same, for evaluation; None: no held-out measurement
    validation: str | list[Source] | None = Field(None, **LATER)  # for actor.eval_every; None: the task's
    validation_limit: int | None = Field(None, ge=1, **LATER)  # the first so many of these
    template: str = "chat"  # "chat", "plain", "none" or a string with {prompt}
    system_prompt: str | None = Field(None, **LATER)  # template chat: of conversations that begin without one
    limit: int | None = Field(None, ge=1)  # problems used in an iteration
    heldout_limit: int | None = Field(None, ge=1)  # the first so many of the held-out problems

    @field_validator("task")
    @classmethod
    def _known_task(cls, value: str | None) -> str | None:
        if value is not None and looked_up(value):
            # Late: it imports what makes tokenizers, which runs without a built-in task do not need here.
            from dapo_fast.tasks import get_task

            get_task(value)
        return value

    @field_validator("problems", "heldout", "validation", mode="after")
    @classmethod
    def _each_once(cls, value: str | list[Source] | None) -> str | list[Source] | None:
        if isinstance(value, list):
            paths = [source.path for source in value]
            twice = next((path for path in paths if paths.count(path) > 1), None)
            if not paths or twice is not None:
                raise ValueError("an empty list" if twice is None else f"{twice} is there more than once")
            if len({source.weight is None for source in value}) > 1:
                raise ValueError("a weight for every set of problems, or for none")
        return value

    @field_validator("template")
    @classmethod
    def _known_template(cls, value: str) -> str:
        if value not in TEMPLATES and "{prompt}" not in value:
            raise ValueError(f"{value!r} is none of {', '.join(TEMPLATES)}, and has no {{prompt}}")
        return value

    @model_validator(mode="after")
    def _system_prompt_of_a_chat(self) -> DataSettings:
        if self.system_prompt is not None and self.template != "chat":
            raise ValueError(f"system_prompt: template {self.template!r} has no place for one; it needs chat")
        return self
