"""What every group of settings has in common: how its values are checked."""

from __future__ import annotations

import os
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from dapo_fast.limits import LEAST_WEIGHT, MOST_WEIGHT

Temperature = Annotated[float, Field(ge=1e-3)]  # below, logits over it are no numbers any more; greedy is evaluated too
Weight = Annotated[float, Field(ge=LEAST_WEIGHT, le=MOST_WEIGHT)]

# Of settings that came later: left out of what is saved while they are off, so that older runs go on.
LATER: Any = {"exclude_if": lambda value: not value}

_LARGEST = 2**31 - 1  # counts are indices of tensors somewhere


class Section(BaseModel):
    """A group of settings: unknown keys and wrong types are errors, and so are true, infinity and NaN as numbers."""

    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _plain(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        kinds = _kinds(cls.model_fields[info.field_name].annotation)
        for item in value if isinstance(value, list | tuple) else [value]:
            if isinstance(item, bool) and bool not in kinds and kinds & {int, float}:
                raise ValueError(f"a number, not {str(item).lower()}")
            if isinstance(item, int) and abs(item) > _LARGEST and int in kinds and info.field_name != "seed":
                raise ValueError(f"at most {_LARGEST}")
            if isinstance(item, str) and not item.strip():  # as a path it would be the working directory
                raise ValueError("empty")
            if isinstance(item, str) and not _printable(item):
                raise ValueError(f"{item!r} has characters that are not text")
        return value


def _kinds(annotation: Any) -> set[Any]:
    """The plain types in an annotation, however nested."""
    return {annotation} | {kind for part in get_args(annotation) for kind in _kinds(part)}


def _printable(text: str) -> bool:
    # Neither a file name nor UTF-8 can hold these.
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)
