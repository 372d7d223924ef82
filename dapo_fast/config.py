"""Every setting of a run: one YAML file, checked whole before anything is loaded.

Defaults are the paper's (arXiv 2412.18279, section 4) where it names a value, but for what the study found better: Q is
shrunk towards outcomes, trunks' steps are candidates, β and the log-partition go by rule, responses serve as the
prompt's completions, and states without a right outcome are left out. The preset ``paper`` is the paper to the letter.
A stage takes its own section.
"""

from __future__ import annotations

import copy
import json
import math
import os
import shlex
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from dapo_fast.errors import InputError, blaming, one_line, refuse_pipe
from dapo_fast.hashing import digest
from dapo_fast.names import check_name, looked_up
from dapo_fast.plain_yaml import read_yaml
from dapo_fast.rollout.steps import compile_splitter

Decay = Annotated[float, Field(ge=0, lt=1)]
Temperature = Annotated[float, Field(ge=1e-3)]  # below, logits over it are no numbers any more; greedy is evaluated too

_LARGEST = 2**31 - 1  # counts are indices of tensors somewhere

# Of settings that came later: left out of what is saved while they are off, so that older runs go on.
_LATER: Any = {"exclude_if": lambda value: not value}

# What ``by_iteration`` cannot change: it is read once, or iterations could not be compared.
_OF_THE_RUN = {"seed", "iterations", "keep_best", "reward", "objective", "model", "sft", "by_iteration"}
_DATA_OF_THE_RUN = {"task", "template", "system_prompt", "heldout", "heldout_limit"}

# What actor.beta "auto" stands for. The first policy has the most to gain and bears large targets; afterwards more of
# what is left in Â is noise, and targets that large take a policy apart (docs/study.md).
FIRST_BETA, LATER_BETA = "std/6", "std/2"


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


class ModelSettings(Section):
    """The policy to improve."""

    path: str | None = None  # Hugging Face directory; None: the built-in task's model, from scratch
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 on CUDA, or to sample if fast; else float32
    attention: Literal["auto", "flex", "tree_sdpa", "varlen", "dense"] = "auto"  # auto: the fastest that the device has
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: cuda where there is one


TEMPLATES = ("chat", "plain", "none")


class Source(Section):
    """One of several sets of problems."""

    path: str  # JSONL file, benchmark name or hub id
    weight: float | None = Field(None, gt=0)  # its share of the problems; left out of all: every set is taken whole


class DataSettings(Section):
    """Problems to train on and problems held out."""

    task: str | None = None  # a built-in task ("arithmetic") or module:task; it generates its own problems
    problems: str | list[Source] | None = None  # JSONL file, benchmark name or hub id; or a list of {path, weight}
    heldout: str | list[Source] | None = None  # the same, for evaluation; None: no held-out measurement
    template: str = "chat"  # "chat", "plain", "none" or a string with {prompt}
    system_prompt: str | None = Field(None, **_LATER)  # template chat: of conversations that begin without one
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

    @field_validator("problems", "heldout", mode="after")
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


class OptimSettings(Section):
    """AdamW, its schedule and the batch: shared by sft, critic and actor."""

    lr: float = Field(5e-7, gt=0)  # learning rate, the peak of the schedule
    schedule: Literal["constant", "cosine"] = "constant"  # after the warm-up
    warmup_steps: int = Field(0, ge=0)  # linear, from 0
    weight_decay: float = Field(0.0, ge=0)  # decoupled, as in AdamW; of matrices, not of norms, biases, a value head
    adam_betas: tuple[Decay, Decay] = (0.9, 0.999)  # decay of the two moments
    clip_norm: float = Field(1.0, gt=0, allow_inf_nan=True)  # most that the gradient's norm may be; .inf: no clipping
    optimizer_state: Literal["float32", "bfloat16", "int8"] = "float32"  # what the two moments are kept in
    epochs: int = Field(1, ge=1)  # passes over the data
    steps: int | None = Field(None, ge=1)  # optimizer steps; None: as many as the epochs give
    pack_tokens: int = Field(16384, ge=16)  # most tokens of a pack (one forward and backward); fewer to fill the ranks
    longest_pack: int | None = Field(None, ge=16, **_LATER)  # that of a tree with long trunks; None: what memory holds
    save_every: int = Field(50, ge=1)  # optimizer steps between checkpoints
    keep_checkpoints: int = Field(2, ge=1)  # how many of the newest stay
    lora_rank: int = Field(0, ge=0)  # 0: full training
    lora_alpha: float = Field(16.0, gt=0)  # adapters are scaled by this over their rank
    router_aux: float = Field(0.0, ge=0, **_LATER)  # of experts: weight of the load-balancing loss; one forward more


class SftSettings(OptimSettings):
    """Supervised start, completion-only. ``steps`` 0 leaves it out."""

    data: str | None = None  # JSONL of {"prompt", "response"}; a built-in task brings its own gold traces
    batch_sequences: int = Field(64, ge=1)  # sequences an optimizer step
    lr: float = Field(1e-5, gt=0)  # learning rate, the peak of the schedule
    steps: int | None = Field(0, ge=0)  # optimizer steps; 0: no supervised start, unless there is data

    @property
    def is_asked_for(self) -> bool:
        """Whether a supervised start comes before iteration 1."""
        return bool(self.steps) or self.data is not None


ENGINES = ("in_process", "http")


class EngineSettings(Section):
    """Who samples."""

    kind: str = "in_process"  # or "http", an OpenAI-compatible server; or module:function of a policy's directory
    urls: list[str] = []  # http: base URLs of OpenAI-compatible servers
    model_name: str | None = None  # http: the name the server serves the model under
    command: str | None = None  # http: starts the server for the policy at hand, {model} being its directory
    start_timeout_s: float = Field(1800.0, gt=0)  # http with a command: until the server answers
    seed: bool | Literal["auto"] = "auto"  # http: whether requests carry a seed; auto: where the server stands one
    concurrency: int = Field(64, ge=1)  # http: requests in flight per server
    timeout_s: float = Field(600.0, gt=0)  # http: of one request
    retries: int = Field(8, ge=0)  # http: of one request
    max_rows: int = Field(512, ge=1)  # in_process: sequences decoded side by side

    @field_validator("kind")
    @classmethod
    def _known_kind(cls, value: str) -> str:
        check_name(value, ENGINES)
        return value

    @model_validator(mode="after")
    def _urls_for_http(self) -> EngineSettings:
        if self.kind == "http" and not self.urls:
            raise ValueError("urls: kind 'http' needs at least one base URL")
        for url in self.urls:
            _check_url(url)
        if self.command is not None:
            if "{model}" not in self.command:
                raise ValueError("command: needs {model} where the policy's directory goes")
            try:
                shlex.split(self.command)
            except ValueError as error:
                raise ValueError(f"command: {self.command!r} is no command line ({error})") from error
        return self


def _check_url(url: str) -> None:
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"urls: {url!r} does not begin with http:// or https://")
    try:
        parts = urlsplit(url)
        named = parts.hostname and parts.port != 0
    except ValueError as error:  # a port that is no number or above 65535, brackets that do not match
        raise ValueError(f"urls: {url!r}: {error}") from error
    if not named or any(character.isspace() or not character.isprintable() for character in url):
        raise ValueError(f"urls: {url!r} is not a URL with a host, and a port that is not 0")


class CollectSettings(Section):
    """A.1 generation and A.2 completion."""

    samples: int = Field(32, ge=1)  # responses sampled for each problem
    kept: int = Field(6, ge=1)  # of which kept as trunks, correct and wrong balanced
    completions: int = Field(16, ge=0)  # from every state; 0: none, and every response is a trunk and its own evidence
    first_steps: int = Field(0, ge=0)  # candidate steps sampled alone from every state, without an outcome
    temperature: Temperature = 1.0  # of the sampled responses
    top_p: float = Field(1.0, gt=0, le=1)  # nucleus; 1: all tokens
    max_tokens: int = Field(2048, ge=1)  # of a response, its end token included
    splitter: str = "line"  # "line", "blank_line", "sentence" or "regex:…"
    shard_problems: int = Field(16, ge=1)  # problems in a shard: the unit that a kill can cost
    every_state: int = Field(1, ge=1)  # complete every k-th state
    reuse_samples: bool = True  # the generator's samples serve as completions of s_0
    gold_starts: bool = Field(False, **_LATER)  # complete from within the gold solution where every response was wrong
    skip_solved: bool = False  # no completions for problems whose every response was right
    skip_decided: bool = False  # stop completing a state once its verdict is sure beyond decided_error
    decided_error: float = Field(0.01, gt=0, lt=1)  # chance of a wrong verdict that skip_decided accepts

    @field_validator("splitter")
    @classmethod
    def _known_splitter(cls, value: str) -> str:
        compile_splitter(value)
        return value

    @model_validator(mode="after")
    def _kept_of_samples(self) -> CollectSettings:
        if self.kept > self.samples:
            raise ValueError(f"kept: cannot keep {self.kept} of {self.samples} samples")
        return self


class CriticSettings(OptimSettings):
    """A.3, the value model."""

    init: str = "actor"  # "actor", "scratch" or a Hugging Face directory
    loss: Literal["bce", "mse"] = "bce"  # of V against the success rate
    lr: float = Field(5e-6, gt=0)  # learning rate, the peak of the schedule
    batch_states: int = Field(512, ge=1)  # states an optimizer step
    heldout_fraction: float = Field(0.05, ge=0, lt=1)  # of problems, for held-out loss, AUC and Brier score


class AdvantageSettings(Section):
    """B.1, step advantages and which states they keep."""

    gap: float = Field(0.1, ge=0)  # keep states with max Â − min Â ≥ gap
    unique: bool = True  # train once on each unique action
    keep_all_wrong: bool = False  # also train on states with no right completion, where contrast is the critic's alone
    shrink: Literal["auto"] | Annotated[float, Field(ge=0)] = "auto"  # k: outcomes that the critic is worth; 0: Q is V
    trunk_steps: bool = True  # the steps that trunks take are candidates too
    source: Literal["critic", "mc", "response"] = "critic"  # who says Q: the critic, MC values, the trunk's reward
    pack_tokens: int = Field(16384, ge=16)  # most tokens of one forward pass
    longest_pack: int | None = Field(None, ge=16, **_LATER)  # that of a tree with long trunks; None: what memory holds


class ActorSettings(OptimSettings):
    """B.2, the squared loss."""

    beta: float | str = "auto"  # auto: std(Â)/6 in the first iteration, std(Â)/2 after; std/C: std(Â)/C; or a number
    log_partition: bool = False  # subtract log E exp(Â/β) from each target: feasible, but noise in Â makes it too large
    kl_budget: float | None = Field(None, gt=0)  # nats: stop the iteration when KL(π_ref ‖ π) of a step passes it
    sft_weight: float = Field(0.0, ge=0, **_LATER)  # of the cross-entropy of demonstrations: sft.data, or gold traces
    lr: float = Field(5e-7, gt=0)  # learning rate, the peak of the schedule
    batch_pairs: int = Field(2048, ge=1)  # state-action pairs an optimizer step
    state_wise: bool = True  # all actions of one state in the same batch

    @field_validator("beta", mode="before")
    @classmethod
    def _number_or_rule(cls, value: Any) -> float | str:
        if value == "auto":
            return value
        divisor = value.removeprefix("std/") if isinstance(value, str) and value.startswith("std/") else value
        try:
            number = float("nan" if isinstance(divisor, bool) else divisor)
        except (TypeError, ValueError):
            number = math.nan
        if not 0 < number < math.inf:
            raise ValueError("a number above 0, auto (by rule), or std/C with C above 0")
        return value if divisor is not value else number


class ParallelSettings(Section):
    """How a model is laid over devices. The mathematics does not depend on it."""

    processes: int = Field(1, ge=1)  # ranks that `run` starts through torchrun to train, and for the critic's Q
    replicas: int = Field(1, ge=1)  # hybrid sharding: groups that each hold a whole copy
    context_parallel_degree: int = Field(1, ge=1)  # ranks that share each pack: trunks too long for one device
    activation_checkpointing: Literal["none", "selective", "full"] = "none"  # recompute in the backward pass
    reshard_after_forward: bool = True  # false: weights stay gathered for the packs of a step; a whole copy a rank
    defer_reduction: bool = False  # add gradients up over ranks once a step, not once a pack; a whole fp32 copy a rank
    compile: bool = False  # torch.compile each block
    cpu_offload: bool = False  # weights and optimizer states in host memory
    timeout_s: float = Field(600.0, gt=0)  # most that a rank waits for the others in one collective
    profile: list[Annotated[int, Field(ge=1)]] = []  # optimizer steps (from 1) traced into profile/ of a stage
    tracker: Literal["none", "wandb", "trackio"] = "none"  # beside metrics.jsonl and TensorBoard


class EvaluateSettings(Section):
    """Greedy and sampled accuracy; the paper's settings are greedy, zero-shot, 2048 new tokens."""

    max_tokens: int = Field(2048, ge=1)  # of a response, its end token included
    samples: int = Field(0, ge=0)  # sampled responses a problem; 0: greedy only
    temperature: Temperature = 1.0  # of the sampled responses
    top_p: float = Field(1.0, gt=0, le=1)  # nucleus; 1: all tokens
    batch_problems: int = Field(256, ge=1)  # problems between two saves


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
    by_iteration: dict[int, dict[str, Any]] = {}  # {2: {actor: {beta: 0.1}}} changes settings from then on

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


PRESET_DIRECTORY = Path(__file__).parent / "presets"


def preset_names() -> list[str]:
    """Names that ``load_config(preset=…)`` takes."""
    return sorted(path.stem for path in PRESET_DIRECTORY.glob("*.yaml"))


def preset_values(name: str) -> dict:
    """What the preset sets, defaults left out; InputError names the presets that exist."""
    if name not in preset_names():
        raise InputError(f"--preset {name}: unknown; there are {', '.join(preset_names())}")
    return read_yaml((PRESET_DIRECTORY / f"{name}.yaml").read_text())


def load_config(
    path: str | Path | None = None, preset: str | None = None, overrides: list[str] | None = None
) -> Config:
    """Read a config: a preset, a YAML file over it, then ``section.key=value`` over both.

    Raises:
        InputError: naming the file or argument and every wrong key at once.
    """
    values = {} if preset is None else preset_values(preset)
    if path is not None:
        if not Path(path).is_relative_to("/dev/fd"):  # where a shell's <(…) is, which is filled for sure
            refuse_pipe(Path(path))
        with blaming(path, "not a readable YAML file"):
            loaded = read_yaml(Path(path).read_text(encoding="utf-8"))
        if not isinstance(loaded, dict):
            raise InputError(f"{path}: a config is a mapping of sections, this is {type(loaded).__name__}")
        values = merge(values, _numbered(loaded, str(path)))
    for override in overrides or []:
        values = merge(values, _numbered(_override(override), one_line(override)))
    source = str(path or preset or "config")
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        raise InputError(_blame(error, source, overrides or [])) from error
    config.check_whole(source)
    return config


def wrong_keys(error: ValidationError) -> str:
    """What is wrong with which key, all of it on one line."""
    return "; ".join(_wrong_key(e) for e in error.errors())


def _wrong_key(error: Any) -> str:
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


def _blame(error: ValidationError, source: str, overrides: list[str]) -> str:
    """Every wrong key, after the override that set it or else after ``source``."""
    found: dict[str, list[str]] = {}
    last = {text.partition("=")[0]: text for text in overrides}
    for wrong in error.errors():
        message, place = _wrong_key(wrong), [str(part) for part in wrong["loc"]]
        guilty = [text for key, text in last.items() if _sets(key, place, message)]
        found.setdefault(", ".join(map(one_line, guilty)) or source, []).append(message)
    return "; ".join(f"{who}: {'; '.join(messages)}" for who, messages in found.items())


def _sets(key: str, place: list[str], message: str) -> bool:
    """Whether the override of ``key`` set what is wrong at ``place``; a section's message says which of its keys is."""
    parts = key.split(".")
    shared = min(len(parts), len(place))
    if len(place) > 1 or (place and len(parts) == 1):
        return parts[:shared] == place[:shared]
    return parts[:shared] == place[:shared] and (parts[-1] in message or key in message)


def _numbered(values: dict, source: str) -> dict:
    """``by_iteration``'s keys as numbers, as the command line and quoted YAML have text: only equal keys merge."""
    changes = values.get("by_iteration")
    if not isinstance(changes, dict):
        return values
    numbered: dict[Any, Any] = {}
    for key, change in changes.items():
        number = int(key) if isinstance(key, str) and key.isdecimal() and len(key) < 20 else key
        if isinstance(number, bool) or not isinstance(number, int) or number in numbered:
            raise InputError(f"{source}: by_iteration.{key}: an iteration is a number, and is there once")
        numbered[number] = change
    return values | {"by_iteration": numbered}


def _override(text: str) -> dict:
    key, separator, value = text.partition("=")
    parts = key.split(".")
    if not separator or not all(parts):
        raise InputError(f"{one_line(text)}: an override is section.key=value")
    if len(parts) > 4:  # by_iteration.1.actor.lr
        raise InputError(f"{one_line(text)}: there is no setting that deep")
    with blaming(one_line(text), "value is not YAML"):
        result: Any = read_yaml(value)
    for part in reversed(parts):
        result = {part: result}
    return result
