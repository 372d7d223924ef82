"""Chosen steps leave a trace, and training is what it is without."""

import gzip
import json

import pytest
import torch
import train_cases as cases

from dapo_fast.train.parallel import World
from dapo_fast.train.profiling import profiled


def test_chosen_steps_leave_a_trace_and_change_nothing(base, tmp_path):
    cases.run("actor", base, tmp_path / "traced", {"profile": [2, 9]}, steps=3)
    cases.run("actor", base, tmp_path / "plain", {}, steps=3)
    (path,) = (tmp_path / "traced" / "profile").iterdir()
    assert path.name == "step-2-rank-0.json.gz"
    with gzip.open(path) as file:
        names = {event["name"] for event in json.load(file)["traceEvents"]}
    # Forward, backward and update are all in it.
    assert {"aten::mm", "_BlockAttentionBackward", "Optimizer.step#AdamW.step"} <= names
    cases.assert_same(tmp_path / "traced", tmp_path / "plain", 0)
    assert not (tmp_path / "plain" / "profile").exists()


def test_a_gpu_leaves_its_allocations_and_records_no_longer(tmp_path, monkeypatch):
    calls = []
    memory = torch.cuda.memory
    monkeypatch.setattr(memory, "_record_memory_history", lambda enabled="all", **_: calls.append(enabled))
    monkeypatch.setattr(memory, "_dump_snapshot", lambda path: calls.append(path))
    world = World(1, 2, torch.device("cuda", 1), torch.bfloat16, None)
    with profiled(tmp_path, 5, True, world):
        assert calls == ["all"]
    assert calls == ["all", f"{tmp_path}/profile/step-5-rank-1.pickle", None]
    with pytest.raises(RuntimeError, match="out of memory"), profiled(tmp_path, 6, True, world):
        raise RuntimeError("out of memory")
    assert calls[3:] == ["all", None]
    with profiled(tmp_path, 7, False, world):
        pass
    assert len(calls) == 5
