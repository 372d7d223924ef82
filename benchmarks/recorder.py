"""One results file a machine: rows by suite, each suite with the hardware, libraries and commit it was measured on."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
from pathlib import Path

import torch

from dapo_fast.environment import commit_of, cpu, said

RESULTS = Path(__file__).parent / "results"

LIBRARIES = (
    "torch", "triton", "transformers", "liger-kernel", "flash-attn", "flash-attn-4", "cut-cross-entropy",
    "quack-kernels", "trl",
)  # fmt: skip


def machine() -> dict:
    """The hardware, drivers and library versions that rows are measured on."""
    facts = {"cpu": cpu(), "cores": os.cpu_count(), "gpu": None, "driver": None, "python": platform.python_version()}
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
        asked = "--query-gpu=driver_version", "--format=csv,noheader"
        facts["driver"] = said("nvidia-smi", *asked, at=RESULTS).split("\n")[0]
    return facts | {"libraries": {name: _version(name) for name in LIBRARIES if _version(name)}}


def commit() -> str:
    """The commit of this checkout, and whether its code has been changed since."""
    return commit_of(RESULTS.parent.parent, "benchmarks", "dapo_fast", "kernels", ":!benchmarks/results") or "unknown"


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None


class Recorder:
    """Writes a suite's rows to the machine's results file as they come: a later failure loses nothing."""

    def __init__(self, quick: bool, directory: Path | None = None) -> None:
        self.machine = machine()
        name = self.machine["gpu"] or f"cpu-{self.machine['cores']}-cores"
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        self.path = (directory or RESULTS) / f"{slug}{'-quick' if quick else ''}.json"

    def __call__(self, rows: list[dict], measured_at: str | None = None) -> None:
        """Replace the suites of ``rows``; the other suites stay as they are.

        Args:
            measured_at: The commit that the rows were computed at, where that is not this one.
        """
        suites = json.loads(self.path.read_text())["suites"] if self.path.exists() else {}
        for suite in {row["suite"] for row in rows}:
            own = [row for row in rows if row["suite"] == suite]
            suites[suite] = {"machine": self.machine, "commit": measured_at or commit(), "rows": own}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps({"suites": dict(sorted(suites.items()))}, indent=1) + "\n")
        os.replace(temporary, self.path)
