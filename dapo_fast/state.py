"""What the files of state in a run directory must hold, as far as anything reads them: one shape a file."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field


class Shape(BaseModel):
    """Types as JSON has them, no text for numbers; further keys are allowed."""

    model_config = ConfigDict(strict=True)


class Claim(Shape):
    """stage.json."""

    digest: str
    settings: dict[str, Any]


class EvaluationClaim(Shape):
    """claim.json of an evaluation."""

    digest: str


class Done(Shape):
    """done.json of a stage that trains, or of the advantages."""

    digest: str


class CriticDone(Done):
    """done.json of the critic."""

    k: float


class AdvantagesDone(Done):
    """done.json of the advantages: counts of states."""

    kept: int
    states: int
    all_wrong: int
    all_right: int
    single: int


class Halted(Shape):
    """halted.json."""

    step: int = Field(ge=1)


class Timing(Shape):
    """timing.json."""

    seconds: float = Field(ge=0)


class Decision(Shape):
    """decision.json."""

    accepted: bool
    reason: str = ""


class Accuracy(Shape):
    """One mode of an evaluation."""

    accuracy: float
    low: float
    high: float
    n: int | None = None
    samples: int = 1
    tokens: float | None = None
    truncated: float | None = None


class Measured(Shape):
    """summary.json, as far as the report needs it."""

    greedy: Accuracy | None = None
    sampled: Accuracy | None = None


class Evaluated(Measured):
    """summary.json, as ``evaluate`` writes it."""

    greedy: Accuracy


class _Response(Shape):
    text: Any  # a lone surrogate is no text to pydantic
    correct: bool
    reward: float | None = Field(None, ge=0, le=1)
    finished: bool
    tokens: int


class MeasuredProblem(Shape):
    """A line of greedy.jsonl or sampled.jsonl."""

    id: str
    responses: list[_Response] = Field(min_length=1)


class _Bin(Shape):
    low: float
    high: float
    states: int
    predicted: float
    observed: float


class _Quality(Shape):
    brier: float | None = None
    auc: float | None = None
    bce: float | None = None
    bce_floor: float | None = None
    squared_error: float | None = None
    calibration: list[_Bin] = []
    calibration_error: float | None = None


class _Shrinkage(Shape):
    k: float
    fitted: bool
    states: int
    curve: list[Annotated[list[float], Field(min_length=2, max_length=2)]] = []


class Heldout(Shape):
    """heldout.json of the critic."""

    problems: int = 0
    states: int = 0
    critic: _Quality | None = None
    constant: _Quality | None = None
    shrinkage: _Shrinkage | None = None


class Row(Shape):
    """An iteration in results.json."""

    iteration: int = Field(ge=0)
