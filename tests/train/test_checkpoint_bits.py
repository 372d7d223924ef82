"""A checkpoint of which one bit has flipped: refused with one line, or the same state all the same."""

import random

import torch
from torch import nn

from dapo_fast.config import OptimSettings
from dapo_fast.errors import InputError
from dapo_fast.train.checkpoint import Checkpoints, training_state
from dapo_fast.train.optim import make_optimizer
from dapo_fast.train.parallel import ALONE


def learner(seed):
    torch.manual_seed(seed)
    layer = nn.Linear(8, 8)
    return layer, make_optimizer(layer, OptimSettings())


def test_no_flipped_bit_of_a_checkpoint_is_read(tmp_path):
    saved, optimizer = learner(1)
    checkpoints = Checkpoints(tmp_path / "c", ALONE, 2, "a digest")
    checkpoints.save(3, training_state(saved, optimizer))
    checkpoints.wait()
    files = sorted(path for path in (tmp_path / "c").rglob("*") if path.is_file())
    assert len(files) == 5  # tensors, their index, the sums of both, and what it is of
    rng = random.Random(3)
    refused = 0
    for file in files * 20:
        whole = file.read_bytes()
        place = rng.randrange(8 * len(whole))
        spoilt = bytearray(whole)
        spoilt[place // 8] ^= 1 << place % 8
        file.write_bytes(spoilt)
        layer, optimizer = learner(2)
        try:
            assert checkpoints.resume(training_state(layer, optimizer)) == 3
            assert torch.equal(layer.weight, saved.weight) and torch.equal(layer.bias, saved.bias), (file, place)
        except InputError as error:
            refused += 1
            assert str(tmp_path / "c" / "step-00000003") in str(error) and "\n" not in str(error)
        file.write_bytes(whole)
    assert refused >= 80  # but for what meta.json says of versions
