"""A disk that is full, or a file that may not grow: one sentence, whatever wrote."""

import errno
import multiprocessing
import os
import resource

import pytest
import torch

from dapo_fast.errors import from_outside
from dapo_fast.train.checkpoint import Checkpoints
from dapo_fast.train.parallel import ALONE

GO_ON = "make room, and the same command goes on"


def saved(directory):
    torch.save({"a": torch.zeros(10_000)}, directory / "a.pt")


def checkpointed(directory):
    """As a training does: in a thread, and raised at the next save."""
    checkpoints = Checkpoints(directory, ALONE, 2, "digest")
    checkpoints.save(1, {"a": torch.zeros(10_000)})
    checkpoints.wait()


@pytest.mark.parametrize("write", [saved, checkpointed])
def test_what_torch_cannot_write(tmp_path, write):
    """Its writer says that it failed, not why; a checkpoint's error is no Exception."""

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
        try:
            write(tmp_path)
        except Exception as error:
            message = from_outside(error, "run") or ""
            os._exit(0 if message.startswith("run: ") and message.endswith(GO_ON) else 1)

    process = multiprocessing.get_context("fork").Process(target=limited)
    process.start()
    process.join()
    assert process.exitcode == 0
    assert not list(tmp_path.glob("step-*[0-9]"))  # half a checkpoint is none


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError("[Errno 28] Error writing bytes to file. Detail: [errno 28] No space left on device"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_whoever_wrote(error):
    assert from_outside(error, "run") == f"run: No space left on device; {GO_ON}"
    try:
        try:
            raise error
        except Exception:
            raise RuntimeError("file write failed") from None
    except RuntimeError as later:
        assert "No space left" in from_outside(later, "run")
    assert from_outside(RuntimeError("a bug"), "run") is None
