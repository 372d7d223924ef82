"""Which implementation the kernel tests run: the PyTorch path; with TRITON_INTERPRET=1 the Triton kernels.

test_triton.py runs this directory's tests a second time with TRITON_INTERPRET=1, in a process of its own: Triton
decides when it is imported, and other tests of the same process may have imported it before.
"""

import os
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if INTERPRETED:
    import numpy as np
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    # A GPU's minimum and maximum drop NaN, as fmin and fmax do; the interpreter's keep it, which hid a log-probability
    # of 0 (p = 1) made of NaN.
    InterpreterBuilder.create_minnumf = lambda self, a, b: self.binary_op(a, b, np.fmin)
    InterpreterBuilder.create_maxnumf = lambda self, a, b: self.binary_op(a, b, np.fmax)

    def widened(handle):
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    # bf16 lies in the interpreter's arrays as integers, of whose product it would make the sum.
    of_numbers = InterpreterBuilder.create_dot
    InterpreterBuilder.create_dot = lambda self, a, b, *rest: of_numbers(self, widened(a), widened(b), *rest)

PATHS = [("triton", "cpu")] if INTERPRETED else [("torch", "cpu")]
if torch.cuda.is_available() and not INTERPRETED:
    PATHS += [("torch", "cuda"), ("triton", "cuda")]


@pytest.fixture(params=PATHS, ids="-".join, scope="session")
def path(request):
    """(backend, device) under test."""
    return request.param
