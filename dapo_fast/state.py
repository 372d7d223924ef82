"""What the files of state in a run directory must hold, as far as anything reads them: one shape a file."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, RootModel, model_validator


class Shape(BaseModel):
    """Types as JSON has them, no text for numbers; further keys are allowed."""

    model_config = ConfigDict(strict=True)


class Claim(Shape):
    """stage.json."""

    digest: str
    settings: dict[str, Any]


class Provenance(Shape):
    """A line of provenance.jsonl."""

    date: str
    command: str
    commit: str
    machine: str
    device: str
    versions: dict[str, str]
    models: dict[str, str] = {}  # setting → model of the hub, with its commit


class ValuedStep(Shape):
    """A step with the critic's V of the states around it."""

    text: str
    before: float
    after: float | None


class ValuedResponse(Shape):
    """A held-out response, step by step."""

    id: str
    prompt: str
    answer: str | None
    reward: float
    steps: list[ValuedStep]


class ValuedResponses(Shape):
    """steps.json of an evaluation."""

    critic: str
    responses: list[ValuedResponse]


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


Amount = Annotated[float, Field(ge=0, le=1e30)]  # of anything that is counted, multiplied and summed
Share = Annotated[float, Field(ge=0, le=1)]


class Best(Shape):
    """The policy that the actor's training exported, of those that were measured."""

    step: int
    accuracy: Share
    low: Share
    high: Share


class ActorDone(Shape):
    """done.json of the actor, as far as the report needs it."""

    best: Best | None = None


class Step(Shape):
    """A line of metrics.jsonl; what else it holds is drawn where it is a finite number."""

    step: int = Field(ge=1, lt=2**53)
    seconds: Amount | None = None
    tokens: Amount | None = None
    validation_accuracy: Share | None = None
    validation_low: Share | None = None
    validation_high: Share | None = None


class Checkpoint(Shape):
    """meta.json of a checkpoint."""

    digest: str
    world_size: int = Field(ge=1)


class Sums(RootModel):
    """sums-*.json of a checkpoint: size and CRC-32 of files."""

    root: dict[str, Annotated[list[int], Field(min_length=2, max_length=2)]]


_Process = Annotated[str, Field(pattern=r"^\d+ \d+ \S+$")]  # rollout.guard.identity


class Serving(Shape):
    """server.pid: who started the sampling server, who guards it, and the server."""

    owner: _Process | None
    guard: _Process
    server: _Process | None


class Halted(Shape):
    """halted.json."""

    step: int = Field(ge=1)


class Timing(Shape):
    """timing.json."""

    seconds: Amount


class Decision(Shape):
    """decision.json."""

    accepted: bool
    reason: str = ""


class Accuracy(Shape):
    """One mode of an evaluation; ``pass@k`` of some k beside them."""

    model_config = ConfigDict(strict=True, extra="allow")

    accuracy: Share
    low: Share
    high: Share
    n: int | None = Field(None, ge=1, lt=2**53)
    samples: int = Field(1, ge=1, lt=2**53)
    tokens: Amount | None = None
    truncated: Share | None = None

    @model_validator(mode="after")
    def _pass_at_k(self) -> Accuracy:
        for key, value in (self.model_extra or {}).items():
            known = key[5:].isdecimal() and len(key) < 20 and isinstance(value, int | float)
            if key.startswith("pass@") and not known:
                raise ValueError(f"{key} is {value!r}, not the share of problems that one of k samples solves")
        return self


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
