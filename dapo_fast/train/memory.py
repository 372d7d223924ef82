"""The dry run: how much device memory training will take, and which pack length fits, from the model's config alone.

A count, not a measurement: weights, gradients and optimizer states are exact; activations are counted from what the
backward of one decoder block keeps; kernels' workspace and the allocator's fragmentation are not in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from dapo_kernels.plan import sizes
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from dapo_fast.config import AdvantageSettings, Config, OptimSettings
from dapo_fast.models.loading import device_bytes, load_config_of, new_causal_lm, resolve_dtype
from dapo_fast.models.value import ValueModel
from dapo_fast.models.variants import head_size, largest
from dapo_fast.train.blocks import blocks
from dapo_fast.train.optim import INT8_BLOCK, takes_int8
from dapo_fast.train.parallel import check_divides
from dapo_fast.train.place import GIB, Place
from dapo_fast.train.weights import add_lora

USABLE = 0.92  # of a device's memory: the rest is CUDA's context, NCCL's buffers and fragmentation
_LENGTHS = tuple(1024 * k for k in (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256))


@dataclass(frozen=True)
class Estimate:
    """Bytes on one rank for one of the two trained models.

    Attributes:
        fixed: What every step takes, whatever is packed: (name, bytes).
        per_token: Bytes that each packed token adds.
        pack_tokens: The pack length asked for.
        device_bytes: Memory of the device; None where it is not known.
    """

    name: str
    parameters: int
    trainable: int
    fixed: tuple[tuple[str, float], ...]
    per_token: float
    pack_tokens: int
    device_bytes: float | None

    def total(self, pack_tokens: int) -> float:
        """Bytes with packs of ``pack_tokens``."""
        return sum(size for _, size in self.fixed) + self.per_token * pack_tokens

    @property
    def longest_pack(self) -> int | None:
        """Tokens of the longest pack that fits, a multiple of 128; 0 where nothing does, None on an unknown device."""
        if self.device_bytes is None:
            return None
        room = USABLE * self.device_bytes - self.total(0)
        return max(0, int(room / self.per_token) // 128 * 128)

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.parameters / 1e9:.2f} billion parameters, {self.trainable / 1e9:.2f} trained"]
        rows = [*self.fixed, (f"activations, {self.pack_tokens} tokens a pack", self.per_token * self.pack_tokens)]
        lines += [f"  {name:<42} {size / GIB:8.2f} GiB" for name, size in rows]
        lines.append(f"  {'one rank':<42} {self.total(self.pack_tokens) / GIB:8.2f} GiB")
        lengths = [n for n in _LENGTHS if n <= 4 * self.pack_tokens]
        lines.append("  by pack length: " + ", ".join(f"{n}: {self.total(n) / GIB:.1f}" for n in lengths) + " GiB")
        if self.longest_pack is not None:
            device = f"{USABLE:.0%} of the device's {self.device_bytes / GIB:.0f} GiB"
            if self.longest_pack == 0:
                fits = "nothing fits"
            elif self.longest_pack < self.pack_tokens:
                fits = (
                    f"pack_tokens {self.pack_tokens} does NOT fit; the longest pack that does has {self.longest_pack}"
                )
            else:
                fits = (
                    f"pack_tokens {self.pack_tokens} fits; the longest pack that does has {self.longest_pack}, "
                    "and those of long trunks may grow to that"
                )
            lines.append(f"  {device}: {fits}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Report:
    """The dry run of a config: one estimate for the critic and one for the actor."""

    estimates: tuple[Estimate, ...]

    def __str__(self) -> str:
        return "\n".join(str(estimate) for estimate in self.estimates)

    def warnings(self) -> list[str]:
        """One line for each model whose longest packs the device would not hold."""
        return [
            f"{e.name}: a pack of {e.pack_tokens} tokens needs {e.total(e.pack_tokens) / GIB:.0f} GiB a rank, and "
            f"{USABLE:.0%} of {e.device_bytes / GIB:.0f} GiB can be used: {_remedy(e.name, e.longest_pack)}"
            for e in self.estimates
            if e.device_bytes is not None and e.longest_pack is not None and e.longest_pack < e.pack_tokens
        ]


def _remedy(name: str, longest: int) -> str:
    if longest:
        return f"set {name}.pack_tokens to {longest} or less"
    return f"nothing fits; more processes, {name}.lora_rank or {name}.optimizer_state=int8 need less"


def estimate(
    model: str | Path, config: Config, processes: int, device_gib: float | None = None, device: str = "cuda"
) -> Report:
    """What the critic and the actor of ``config`` will need on each of ``processes`` ranks.

    Args:
        model: Directory with ``config.json``; no weights are read.
        device_gib: Memory of one device in GiB; None: that of the GPU here, if there is one.
        device: The kind of device to count for, ``"cuda"`` or ``"cpu"``.

    Raises:
        InputError: no readable config, or settings that do not go together.
    """
    check_divides(processes, config.parallel)
    if device_gib is None and torch.cuda.is_available():
        device_gib = device_bytes(torch.device("cuda", 0)) / GIB
    hf_config = load_config_of(model)
    half = resolve_dtype(config.model.dtype, torch.device(device)) == torch.bfloat16
    place = Place(config.parallel, processes, half, device, None if device_gib is None else device_gib * GIB)
    return Report(
        (
            _count("critic", _on_meta("critic", hf_config), config.critic, place),
            _count("actor", _on_meta("actor", hf_config), config.actor, place),
        )
    )


def longest_pack(name: str, source: Path, settings: OptimSettings | AdvantageSettings, place: Place) -> int:
    """Tokens of the longest pack of a tree with long trunks: as set, or as many as are counted to fit.

    Args:
        name: ``"critic"`` or ``"actor"``.
        source: A directory with ``config.json``.
        settings: Of its training; of advantages, for which values are only read.
    """
    if settings.longest_pack is not None:
        return settings.longest_pack
    model = _on_meta(name, load_config_of(source))
    if isinstance(settings, AdvantageSettings):
        return _count_reading(name, model, settings.pack_tokens, place).longest_pack or 0
    return _count(name, model, settings, place).longest_pack or 0


def _on_meta(name: str, config: PreTrainedConfig) -> PreTrainedModel:
    with torch.device("meta"):
        if name == "critic":
            return ValueModel.from_config(config, 0).model
        return new_causal_lm(config, 0, torch.device("meta"), torch.float32)


def _count_reading(name: str, model: PreTrainedModel, pack_tokens: int, place: Place) -> Estimate:
    """What a forward without gradients takes: of activations those of one block."""
    parameters = sum(p.numel() for p in model.parameters())
    body = blocks(model)
    block = max(sum(p.numel() for p in b.parameters()) for b in body)
    rest = parameters - sum(p.numel() for b in body for p in b.parameters())
    fixed = [("weights", place.width * parameters / place.shards)]
    if place.is_sharded:
        fixed.append(("gathered weights", place.width * (2 * block + rest) / place.holding))
    text = model.config.get_text_config()
    per_token = _kept(text, "none", place.width, place.holding) + _around(text, place, layers=1)
    return Estimate(name, parameters, 0, tuple(fixed), per_token, pack_tokens, place.device_bytes)


def _around(config: PreTrainedConfig, place: Place, layers: int) -> float:
    """Bytes a token beside the blocks: embedding, final norm, their gradients; indices; and what ranks that share a
    pack gather of each other, kept for ``layers``."""
    per_token = 6 * place.width * config.hidden_size + 64
    sharing = place.parallel.context_parallel_degree
    return per_token + (sharing * _gathered(config, layers, place.width) if sharing > 1 else 0)


def _count(name: str, model: PreTrainedModel, settings: OptimSettings, place: Place) -> Estimate:
    parallel, shards, width, holding = place.parallel, place.shards, place.width, place.holding
    body = blocks(model)
    block = max(sum(p.numel() for p in b.parameters()) for b in body)
    rest = sum(p.numel() for p in model.parameters()) - sum(p.numel() for b in body for p in b.parameters())
    if settings.lora_rank:
        add_lora(model, settings)
    trained = [p for p in model.parameters() if p.requires_grad]
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    trainable = sum(p.numel() for p in trained)
    offloaded = 0 if parallel.cpu_offload and place.device == "cuda" else 1
    fixed = [
        ("weights, fp32 where trained", offloaded * (4 * trainable + width * frozen) / shards),
        ("gradients, fp32", offloaded * 4 * trainable / shards),
        (f"optimizer states, {settings.optimizer_state}", offloaded * _states(trained, settings) / shards),
    ]
    if place.is_sharded:
        # Two blocks are gathered at a time, one computing and one arriving; embedding, head and norm all through.
        gathered = 2 * block + rest if parallel.reshard_after_forward else trainable + frozen
        fixed.append(("gathered weights", width * gathered / holding))
        if parallel.defer_reduction:
            fixed.append(("gradients of all packs, fp32", 4 * trainable / holding))
        if not settings.lora_rank:
            # Gradients as they are made, and their fp32 copy on its way into the reduction.
            fixed.append(("gradients before reduction", (width + 4) * max(2 * block, rest) / holding))
    text = model.config.get_text_config()
    if hasattr(model, "lm_head"):
        words = -(-text.vocab_size // holding)
        rows = sizes(None, words, torch.device(place.device)).piece
        chunk = (width + 4) * rows * words
        fixed.append((f"logits, {rows} rows at a time", chunk))
        if not settings.lora_rank:
            fixed.append(("gradient of the head, fp32", 4 * words * text.hidden_size))
    per_token = len(body) * _kept(text, parallel.activation_checkpointing, width, holding)
    if parallel.activation_checkpointing != "none":
        per_token += _kept(text, "none", width, holding)  # the block that is being computed again
    per_token += _around(text, place, 1 if parallel.activation_checkpointing == "full" else len(body))
    return Estimate(
        name=name,
        parameters=sum(p.numel() for p in model.parameters()),
        trainable=trainable,
        fixed=tuple(fixed),
        per_token=per_token,
        pack_tokens=settings.pack_tokens,
        device_bytes=place.device_bytes,
    )


def _states(trained: list[nn.Parameter], settings: OptimSettings) -> float:
    """Bytes of both moments of AdamW."""
    count = sum(p.numel() for p in trained)
    if settings.optimizer_state == "float32":
        return 8 * count
    if settings.optimizer_state == "bfloat16":
        return 4 * count
    small = sum(p.numel() for p in trained if takes_int8(p))
    return 8 * (count - small) + 2 * small * (1 + 4 / INT8_BLOCK)


def _gathered(config: PreTrainedConfig, layers: int, width: int) -> float:
    """Bytes a token of a shared pack takes on every rank: its keys and values in ``layers`` layers and its last hidden
    state, with their gradients as they are made and, of one at a time, in fp32."""
    pair = 2 * (largest(config, "num_key_value_heads") or largest(config, "num_attention_heads")) * head_size(config)
    return width * (layers + 1) * pair + 2 * width * config.hidden_size + 4 * max(pair, config.hidden_size)


def _kept(config: object, checkpointing: str, width: int, holding: int) -> float:
    """Bytes a token that one of ``holding`` ranks keeps of a decoder block for its backward.

    Without checkpointing: the inputs of both norms and what they give, q, k, v, the attention's result, gate, up and
    their product. Selective: the block's input, the attention's result, and every second matrix product (q, v, gate,
    down). Full: the block's input.
    """
    hidden = config.hidden_size
    heads = (largest(config, "num_attention_heads") or 0) / holding
    queries = heads * head_size(config)
    pairs = largest(config, "num_key_value_heads")
    keys = pairs / holding * head_size(config) if pairs else queries
    inner = (largest(config, "intermediate_size") or 4 * hidden) / holding
    if checkpointing == "full":
        return width * hidden
    if checkpointing == "selective":
        return width * (2 * hidden + 2 * queries + keys + inner)
    return width * (4 * hidden + 2 * queries + 2 * keys + 3 * inner) + 4 * heads
