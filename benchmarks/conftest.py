"""The suite: ``python -m pytest benchmarks [--quick]`` measures what fits this machine and writes one results file.

A benchmark is a function ``run(quick) -> list[dict]``; its pytest wrapper hands the rows to ``record``. Rows carry
ratios within one interleaved run, since clocks of shared machines are not comparable; the file says which hardware,
libraries and commit they were measured on.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

RESULTS = Path(__file__).parent / "results"
sys.path.insert(0, str(Path(__file__).parent))

LIBRARIES = (
    "torch", "triton", "transformers", "liger-kernel", "flash-attn", "flash-attn-4", "cut-cross-entropy",
    "quack-kernels", "trl",
)  # fmt: skip


def pytest_addoption(parser):
    parser.addoption("--quick", action="store_true", help="small shapes: minutes on two CPU cores")
    parser.addoption("--responses", type=Path, help="JSONL of real responses for the step-tree benchmark's shape")


def _version(library):
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None


def machine() -> dict:
    """The hardware, drivers and library versions that rows are measured on."""
    facts = {"cpu": _cpu(), "cores": os.cpu_count(), "gpu": None, "driver": None, "python": platform.python_version()}
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        facts["driver"] = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
    return facts | {"libraries": {name: _version(name) for name in LIBRARIES if _version(name)}}


def _cpu() -> str:
    try:
        return re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()).group(1)
    except (OSError, AttributeError):
        return platform.processor() or platform.machine()


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=RESULTS.parent)
    return done.stdout.strip() or "unknown"


class Recorder:
    """Collects rows and writes the machine's results file after each suite: a later failure loses nothing."""

    def __init__(self, quick: bool) -> None:
        self.machine = machine()
        name = self.machine["gpu"] or f"cpu-{self.machine['cores']}-cores"
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        self.path = RESULTS / f"{slug}{'-quick' if quick else ''}.json"
        self.suites: dict[str, list[dict]] = {}
        if self.path.exists():
            self.suites = json.loads(self.path.read_text())["suites"]

    def __call__(self, rows: list[dict]) -> None:
        commit = _commit()
        for suite in {row["suite"] for row in rows}:
            self.suites[suite] = [row | {"commit": commit} for row in rows if row["suite"] == suite]
        RESULTS.mkdir(exist_ok=True)
        text = json.dumps({"machine": self.machine, "suites": dict(sorted(self.suites.items()))}, indent=1)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(text + "\n")
        os.replace(temporary, self.path)


@pytest.fixture(scope="session")
def quick(request):
    return request.config.getoption("--quick")


@pytest.fixture(scope="session")
def responses(request):
    return request.config.getoption("--responses")


@pytest.fixture(scope="session")
def record(quick):
    return Recorder(quick)
