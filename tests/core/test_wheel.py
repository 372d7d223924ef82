"""The wheel: both packages in it, with their data files, and kernels that need torch and triton alone."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

USE_KERNELS = """
import sys

class OnlyTorchAndTriton:
    banned = {"transformers", "dapo_fast", "liger_kernel", "pydantic", "pyarrow", "datasets", "peft", "tqdm"}
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.banned:
            raise ModuleNotFoundError(f"not in this environment: {name}")

sys.meta_path.insert(0, OnlyTorchAndTriton())
sys.path.insert(0, sys.argv[1])
import torch, dapo_kernels
assert dapo_kernels.__file__.startswith(sys.argv[1]), dapo_kernels.__file__
hidden, weight = torch.randn(5, 8, requires_grad=True), torch.randn(11, 8, requires_grad=True)
cu = torch.tensor([0, 2, 5], dtype=torch.int32)
out = dapo_kernels.linear_direct_advantage_loss(
    hidden, weight, torch.arange(5), cu, torch.tensor([0.5, -0.5]), torch.tensor([-3.0, -4.0]), 0.1
)
out.loss.backward()
assert hidden.grad.abs().sum() > 0 and weight.grad.abs().sum() > 0
print("kernels work")
"""


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    directory = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(directory), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = directory.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(directory / "unpacked")
    return directory / "unpacked"


def test_wheel_holds_both_packages_and_their_data(unpacked):
    assert {p.name for p in unpacked.iterdir()} - {"dapo_fast", "dapo_kernels"} == {"dapo_fast-0.1.0.dist-info"}
    tracked = subprocess.run(["git", "ls-files", "dapo_fast"], cwd=ROOT, capture_output=True, text=True, check=True)
    missing = [path for path in tracked.stdout.split() if not (unpacked / path).exists()]
    assert not missing
    assert (unpacked / "dapo_fast" / "presets" / "paper.yaml").exists()


def test_kernels_need_torch_and_triton_alone(unpacked):
    done = subprocess.run(
        [sys.executable, "-c", USE_KERNELS, str(unpacked)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "kernels work"
