"""``vllm.sh`` itself: it says where vLLM is missing, and passes with a server that speaks as vLLM does."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
SCRIPT = Path(__file__).with_name("vllm.sh")
sys.path.insert(0, str(ROOT / "tests" / "rollout"))

from rollout_cases import byte_level_tokenizer, tiny_model  # noqa: E402

# `vllm serve MODEL --port PORT …`, as the recipe calls it.
VLLM = f'#!/bin/sh\nexec "{sys.executable}" "{ROOT}/tests/rollout/openai_server.py" "$2" "$4"\n'


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run(*arguments, path):
    python_path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    environment = {"PATH": path, "PORT": str(free_port()), "PYTHON": sys.executable, "PYTHONPATH": python_path}
    command = ["/bin/bash", str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, env=environment | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)


def test_without_vllm_it_says_so(tmp_path):
    done = run("model", tmp_path / "run", path=str(tmp_path))
    assert done.returncode == 77
    assert done.stdout == "vllm.sh: no vllm on PATH: nothing was tested\n"


def test_a_run_killed_while_it_collects_ends_with_its_report(tmp_path):
    vllm = tmp_path / "vllm"
    vllm.write_text(VLLM)
    vllm.chmod(0o755)
    tiny_model("qwen2", 320).save_pretrained(tmp_path / "model")
    byte_level_tokenizer().save_pretrained(tmp_path / "model")
    directory = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = run(tmp_path / "model", tmp_path / "run", "data.template=plain", path=directory)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "killed with -9 after" in done.stdout and "the server is gone" in done.stdout
