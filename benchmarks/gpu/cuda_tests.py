"""The test suite's CUDA half, by pytest."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator

from . import ROOT
from .sections import Setup

TESTS = ["tests/kernels", "tests/models/test_cuda.py", "-k", "cuda"]
DRY = ["tests/kernels/test_nonfinite.py", "-k", "masked"]


def rows(setup: Setup) -> Iterator[dict]:
    """One row of counts; AssertionError where a test failed."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(DRY if setup.dry else TESTS)]
    paths = [str(ROOT), str(ROOT / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
    )  # fmt: skip
    try:
        text, _ = done.communicate(timeout=max(1.0, setup.deadline - time.time()))
    except subprocess.TimeoutExpired:
        done.kill()
        text = done.communicate()[0] + "\nFAILED to end in time"
    failed = re.findall(r"^(?:FAILED|ERROR) (.+)", text, re.MULTILINE)
    last = text.strip().rpartition("\n")[2]
    counts = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|skipped|errors?)", last)}
    yield {"suite": "gpu_tests", "case": " ".join(command[6:]), "peer": "pytest"} | counts | {"failures": failed}
    if failed or not counts.get("passed"):
        print(text[-6000:])
        raise AssertionError("; ".join(failed) or "no test passed")
