"""What a report of a problem should begin with: versions, devices and cores."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version

from dapo_fast import __version__
from dapo_fast.rewards.cores import usable_cores

_PACKAGES = (
    *("torch", "triton", "transformers", "liger-kernel", "safetensors", "pyarrow", "datasets", "math-verify"),
    *("flash-attn", "peft", "torchao", "trl", "wandb", "trackio"),
)


def describe() -> str:
    """One line a fact, as ``dapo-fast env`` prints them."""
    import torch

    facts = {
        "dapo-fast": __version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": f"{usable_cores()}",
    }
    facts |= {name: _version(name) for name in _PACKAGES}
    facts["cuda"] = f"{torch.version.cuda or 'none'}"
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        facts[f"device {index}"] = f"{device.name}, {device.total_memory / 2**30:.0f} GiB"
    return "\n".join(f"{name:<14} {value}" for name, value in facts.items())


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
