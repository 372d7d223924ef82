"""Where a run comes from: when, by which command, from which code, and on what, of every process that worked in it."""

from __future__ import annotations

import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dapo_fast.checked import json_line
from dapo_fast.config import Config
from dapo_fast.environment import commit, cpu, version_of
from dapo_fast.pins import models_of
from dapo_fast.published import published
from dapo_fast.rewards.cores import usable_cores
from dapo_fast.rundir import read_lines
from dapo_fast.state import Provenance

FILE = "provenance.jsonl"
_LIBRARIES = ("dapo-fast", "torch", "triton", "transformers")


def record(run: Path, config: Config) -> None:
    """Add a line about this process to ``run/provenance.jsonl``, unless the last one says the same but for the date."""
    facts = _facts() | {"models": models_of(config)}
    before = read_provenance(run)
    if before and before[-1] | {"date": ""} == facts | {"date": ""}:
        return
    # Whole, not one line more: where a kill has left half of one, what is added to it would be no line either.
    with published(run / FILE) as file:
        file.write("".join(map(json_line, [*before, facts])).encode())


def read_provenance(run: Path) -> list[dict[str, Any]]:
    """The lines of ``record``, oldest first; none in a run from before there were any."""
    path = run / FILE
    return read_lines(path, Provenance) if path.exists() else []


def _facts() -> dict[str, Any]:
    import torch

    program = Path(sys.argv[0]).name
    program = "dapo-fast" if program == "__main__.py" else program
    count = torch.cuda.device_count()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join([program, *sys.argv[1:]]),
        "commit": commit(),
        "machine": f"{cpu()}, {usable_cores()} cores",
        "device": f"{count} × {torch.cuda.get_device_name()}" if count else "CPU",
        "versions": {name: version_of(name) for name in _LIBRARIES},
    }
