"""What a report of a problem should begin with: versions, devices and cores."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

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
    facts |= {name: version_of(name) for name in _PACKAGES}
    facts["cuda"] = f"{torch.version.cuda or 'none'}"
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        facts[f"device {index}"] = f"{device.name}, {device.total_memory / 2**30:.0f} GiB"
    return "\n".join(f"{name:<14} {value}" for name, value in facts.items())


def cpu() -> str:
    """What the processor is called."""
    try:
        named = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    except OSError:
        named = None
    return named.group(1) if named else platform.processor() or platform.machine()


def commit() -> str:
    """The commit of the checkout that this code is in, and whether it has been changed since; "" outside of one."""
    here = Path(__file__).parent
    if not said("git", "ls-files", "--error-unmatch", "__init__.py", at=here):  # installed: around it is another
        return ""
    return commit_of(here, ".")


def commit_of(checkout: Path, *paths: str) -> str:
    """The commit of ``checkout``, and whether ``paths`` in it have been changed since; "" where it is none."""
    head = said("git", "rev-parse", "--short", "HEAD", at=checkout)
    changed = head and said("git", "status", "--porcelain", "--", *paths, at=checkout)
    return f"{head}, changed" if changed else head


def said(*command: str, at: Path) -> str:
    """What a program that is run in ``at`` prints; nothing where it is not installed or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=at, check=False)
    except OSError:
        return ""
    return done.stdout.strip()


def version_of(name: str) -> str:
    """The version of an installed package."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
