"""The suite: ``python -m pytest benchmarks [--quick]`` measures what fits this machine and writes one results file.

A benchmark is a function ``run(quick) -> list[dict]``; its pytest wrapper hands the rows to ``record``. Rows carry
ratios within one interleaved run, since clocks of shared machines are not comparable.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from recorder import Recorder


def pytest_addoption(parser):
    parser.addoption("--quick", action="store_true", help="small shapes: minutes on two CPU cores")
    parser.addoption("--responses", type=Path, help="JSONL of real responses for the step-tree benchmark's shape")


@pytest.fixture(scope="session")
def quick(request):
    return request.config.getoption("--quick")


@pytest.fixture(scope="session")
def responses(request):
    return request.config.getoption("--responses")


@pytest.fixture(scope="session")
def record(quick):
    return Recorder(quick)
