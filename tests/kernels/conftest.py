"""Which implementation the kernel tests run: the PyTorch path; with TRITON_INTERPRET=1 the Triton kernels.

test_interpreter.py runs this directory's tests a second time with TRITON_INTERPRET=1, in a process of its own: Triton
decides when it is imported, and other tests of the same process may have imported it before.
"""

import os
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
PATHS = [("triton", "cpu")] if INTERPRETED else [("torch", "cpu")]
if torch.cuda.is_available() and not INTERPRETED:
    PATHS += [("torch", "cuda"), ("triton", "cuda")]


@pytest.fixture(params=PATHS, ids="-".join, scope="session")
def path(request):
    """(backend, device) under test."""
    return request.param
