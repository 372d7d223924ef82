"""The test suite's CUDA half, by pytest."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

from . import ROOT
from .processes import die_with_parent
from .sections import Setup

TESTS = ["tests/models/test_cuda.py", "tests/kernels", "-k", "cuda"]
DRY = ["tests/kernels/test_nonfinite.py", "-k", "masked"]
WORKERS = ["-n", "8"]
GRACE = 10.0  # seconds for pytest to print its summary after an interrupt


def rows(setup: Setup) -> Iterator[dict]:
    """One row of counts; AssertionError where a test failed."""
    tests = DRY if setup.dry else TESTS
    workers = WORKERS if importlib.util.find_spec("xdist") and not setup.dry else []
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *workers, *tests]
    text = _output(command, max(1.0, setup.deadline - time.time()))
    failed = re.findall(r"^(?:FAILED|ERROR) (.+)", text, re.MULTILINE)
    summaries = re.findall(r"^.*\d (?:passed|failed|skipped|errors?)\b.* in [\d.]+s.*$", text, re.MULTILINE)
    counts = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|skipped|errors?)", "".join(summaries[-1:]))}
    yield {"suite": "gpu_tests", "case": " ".join(tests), "peer": "pytest"} | counts | {"failures": failed}
    if failed or not counts.get("passed"):
        print(text[-6000:])
        raise AssertionError("; ".join(failed) or "no test passed")


def _output(command: list[str], seconds: float) -> str:
    """What a pytest prints; interrupted after ``seconds``, so that it still says which tests had failed by then."""
    paths = [str(ROOT), str(ROOT / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    done = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | environment,
        preexec_fn=die_with_parent,
    )
    try:
        return done.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        done.send_signal(signal.SIGINT)
    try:
        text = done.communicate(timeout=GRACE)[0]
    except subprocess.TimeoutExpired:
        done.kill()
        text = done.communicate()[0]
    return text + "\nFAILED to end in time"
