"""What is trained and how: the supervised start, the critic, step advantages, the actor, and devices."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from dapo_fast.config.section import LATER, Section

Decay = Annotated[float, Field(ge=0, lt=1)]
StepNumbers = list[Annotated[int, Field(ge=1)]]


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
    longest_pack: int | None = Field(None, ge=16, **LATER)  # that of a tree with long trunks; None: what memory holds
    save_every: int = Field(50, ge=1)  # optimizer steps between checkpoints
    keep_checkpoints: int = Field(2, ge=1)  # how many of the newest stay
    lora_rank: int = Field(0, ge=0)  # 0: full training
    lora_alpha: float = Field(16.0, gt=0)  # adapters are scaled by this over their rank
    router_aux: float = Field(0.0, ge=0, **LATER)  # of experts: weight of the load-balancing loss; one forward more


class SftSettings(OptimSettings):
    """Supervised start, completion-only. ``steps`` 0 leaves it out."""

    data: str | None = None  # JSONL of {"prompt", "response"} (and "kind"); a task brings its own gold traces
    batch_sequences: int = Field(64, ge=1)  # sequences an optimizer step
    lr: float = Field(1e-5, gt=0)  # learning rate, the peak of the schedule
    steps: int | None = Field(0, ge=0)  # optimizer steps; 0: no supervised start, unless there is data

    @property
    def is_asked_for(self) -> bool:
        """Whether a supervised start comes before iteration 1."""
        return bool(self.steps) or self.data is not None


class CriticSettings(OptimSettings):
    """A.3, the value model."""

    init: str = "actor"  # "actor", "scratch" or a model, as in model.path
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
    longest_pack: int | None = Field(None, ge=16, **LATER)  # that of a tree with long trunks; None: what memory holds


class ActorSettings(OptimSettings):
    """B.2, the squared loss."""

    beta: float | str = "auto"  # auto: std(Â)/6 in the first iteration, std(Â)/2 after; std/C: std(Â)/C; or a number
    log_partition: bool = False  # subtract log E exp(Â/β) from each target: feasible, but noise in Â makes it too large
    kl_budget: float | None = Field(None, gt=0)  # nats: stop the iteration when KL(π_ref ‖ π) of a step passes it
    sft_weight: float = Field(0.0, ge=0, **LATER)  # of the cross-entropy of demonstrations: sft.data, or gold traces
    lr: float = Field(5e-7, gt=0)  # learning rate, the peak of the schedule
    batch_pairs: int = Field(2048, ge=1)  # state-action pairs an optimizer step
    eval_every: int = Field(0, ge=0, **LATER)  # steps between accuracies on data.validation; the best policy is kept
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
    tensor_parallel_degree: int = Field(1, ge=1)  # ranks that hold each layer together, by transformers' plan
    activation_checkpointing: Literal["none", "selective", "full"] = "none"  # recompute in the backward pass
    reshard_after_forward: bool = True  # false: weights stay gathered for the packs of a step; a whole copy a rank
    defer_reduction: bool = False  # add gradients up over ranks once a step, not once a pack; a whole fp32 copy a rank
    compile: bool = False  # torch.compile each block
    cpu_offload: bool = False  # weights and optimizer states in host memory
    timeout_s: float = Field(600.0, gt=0)  # most that a rank waits for the others in one collective
    profile: StepNumbers = Field(default_factory=list)  # optimizer steps (from 1) traced into profile/ of a stage
    tracker: Literal["none", "wandb", "trackio"] = "none"  # beside metrics.jsonl and TensorBoard
