"""A policy's adapters as PEFT loads them, beside the weights that they are merged into."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from dapo_fast.snapshots import origin
from dapo_fast.train.parallel import World
from dapo_fast.train.weights import ADAPTER

ADAPTERS = "adapter"  # within a policy's directory


def gathered(tensor: Tensor) -> Tensor:
    """All rows of a parameter; a collective where it is sharded."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def export_adapters(model: nn.Module, directory: Path, base: Path, world: World) -> None:
    """Write what ``weights.add_lora`` put beside the layers of ``model``, for ``PeftModel.from_pretrained``.

    Args:
        base: The model that they adapt, by whose directory, or name on the hub, PEFT finds it.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            tensors[f"base_model.model.{name.replace(f'.{ADAPTER}.', '.')}"] = gathered(parameter).cpu().contiguous()
    if world.rank != 0:
        return
    from peft import LoraConfig

    layers = {name: layer for name, layer in model.named_modules() if hasattr(layer, "lora_A")}
    one = next(iter(layers.values()))
    name, revision = origin(base)
    config = LoraConfig(
        r=one.r[ADAPTER],
        lora_alpha=one.lora_alpha[ADAPTER],
        target_modules=list(layers),
        task_type="CAUSAL_LM",
        base_model_name_or_path=name,
        revision=revision,
        inference_mode=True,
    )
    config.save_pretrained(str(directory))
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
