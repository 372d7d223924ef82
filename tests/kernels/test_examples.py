"""Each example runs, and its loss falls."""

import importlib.util
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_hugging_face_trainer():
    before, after = load("hf_trainer").main(epochs=4)
    assert after < 0.8 * before


def test_trl_trainer():
    if importlib.util.find_spec("trl") is None and os.environ.get("DAPO_REQUIRE_TRL") != "1":
        pytest.skip("TRL is not installed: pip install dapo-fast[trl]")
    before, after = load("trl_trainer").main(epochs=4)
    assert before == pytest.approx(0.6931, abs=1e-3)  # policy = reference: log 2
    assert after < before


# As torchrun starts a program, but for one set of imports: PROGRAM PORT.
ON_TWO_PROCESSES = """
import os, runpy, sys
import torch.multiprocessing

def rank(number):
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": "2", "MASTER_PORT": sys.argv[2]}
    runpy.run_path(sys.argv[1], run_name="__main__")

runpy.run_path(sys.argv[1])  # its imports
torch.multiprocessing.start_processes(rank, nprocs=2, start_method="fork")
"""


def test_fsdp2_loop_on_two_processes():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", ON_TWO_PROCESSES, str(EXAMPLES / "fsdp2_loop.py"), str(port)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    # Seen once: gloo's threads abort the interpreter's exit, after the work is done and the losses are printed.
    assert done.returncode == 0 or "terminate called without an active exception" in done.stderr, done.stderr[-3000:]
    first, last = (float(n) for n in re.findall(r"update ([\d.]+), of the last ([\d.]+)", done.stdout)[0])
    assert first == pytest.approx(12.5, abs=1e-3)  # ½ (0.5 / 0.1)², whatever the number of processes
    assert last < 0.2 * first
