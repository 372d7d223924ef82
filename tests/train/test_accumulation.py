"""Several packs a step over several ranks: what is sent when, and that it changes nothing."""

import json
import os

import pytest
import torch
import train_cases as cases
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

PACKS = {"pack_tokens": 64, "steps": 2, "warmup_steps": 0}
LAID = {
    "each": {},
    "deferred": {"defer_reduction": True},
    "gathered": {"reshard_after_forward": False},
    "both": {"defer_reduction": True, "reshard_after_forward": False},
}
GROUPS = 3  # of FSDP: two blocks and the root


class Collectives(TorchDispatchMode):
    """Counts them by name."""

    def __init__(self):
        super().__init__()
        self.counts = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if DTensor in types:
            return NotImplemented
        if function.namespace == "c10d":
            self.counts[str(function)] = self.counts.get(str(function), 0) + 1
        return function(*args, **kwargs or {})


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """One process's actor, and that of two ranks laid out in four ways, with the collectives of each."""
    directory = tmp_path_factory.mktemp("base")
    cases.write_model(directory / "policy")
    cases.write_trees(directory / "trees", 6)
    cases.run("actor", directory, directory / "one", {}, **PACKS)

    def work():
        for name, parallel in LAID.items():
            with Collectives() as sent:
                cases.run("actor", directory, directory / name, parallel, **PACKS)
            if os.environ["RANK"] == "0":
                (directory / f"{name}.json").write_text(json.dumps(sent.counts))

    processes = cases.forked(2, work, directory / "log")
    for process in processes:
        process.join(600)
    assert [process.exitcode for process in processes] == [0, 0], (directory / "log").read_text()
    return directory


def sent(base, name, kind):
    counts = json.loads((base / f"{name}.json").read_text())
    return sum(count for op, count in counts.items() if kind in op.replace("_", ""))


def lines(base, name):
    return [json.loads(line) for line in (base / name / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", LAID)
def test_the_layout_changes_nothing(base, name):
    ours, theirs = (load_file(base / n / "model" / "model.safetensors") for n in (name, "one"))
    for key in theirs:
        torch.testing.assert_close(ours[key], theirs[key], atol=1e-5, rtol=0)
    # Adam divides by the gradient's size: one that is too large by a factor shows in its norm alone.
    ours, theirs = lines(base, name), lines(base, "one")
    for key in ("loss", "grad_norm"):
        assert [line[key] for line in ours] == pytest.approx([line[key] for line in theirs], rel=1e-4, abs=1e-6), key
    assert any(line["packs"] % 2 for line in ours)  # a rank has a pack less than the other, and an empty one


def test_gradients_are_reduced_once_a_step_and_weights_gathered_once(base):
    steps = lines(base, "each")
    rounds = sum(-(-int(line["packs"]) // 2) for line in steps)
    assert rounds > len(steps)
    for name in LAID:
        times = len(steps) if "defer_reduction" in LAID[name] else rounds
        assert sent(base, name, "reducescatter") == GROUPS * times, name
    # Forward and backward of both blocks in every round but the last; the root stays gathered from one to the other.
    spared = sent(base, "each", "allgather") - sent(base, "gathered", "allgather")
    assert spared >= 2 * (rounds - len(steps)) * (GROUPS - 1)
    assert sent(base, "both", "allgather") == sent(base, "gathered", "allgather")
