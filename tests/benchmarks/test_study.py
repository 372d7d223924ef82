"""The learning study: its baselines compute what they say, its cells share stages and are never done twice."""

import fcntl
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
import torch
import yaml
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.study import __main__ as command  # noqa: E402
from benchmarks.study.baselines import correct_responses, dpo, preference_trees  # noqa: E402
from benchmarks.study.config import (  # noqa: E402
    changed_cells,
    config_of,
    load_study,
    method_cells,
    tuning_cells,
)
from benchmarks.study.rows import rows_of  # noqa: E402
from benchmarks.study.runner import _end_with  # noqa: E402
from dapo_fast.config import load_config  # noqa: E402
from dapo_fast.data.batches import actor_groups  # noqa: E402
from dapo_fast.data.packing import pack_actor  # noqa: E402
from dapo_fast.data.tree import Tree, Trunk  # noqa: E402
from dapo_fast.errors import InputError  # noqa: E402
from dapo_fast.models.readpath import PolicyReader  # noqa: E402
from dapo_fast.tasks import get_task  # noqa: E402

STUDY = {
    "preset": "arithmetic",
    "settings": {
        "iterations": 1,
        "data": {"limit": 12, "heldout_limit": 10},
        "sft": {"steps": 40},
        "critic": {"epochs": 1, "heldout_fraction": 0.3},
        "actor": {"steps": 3, "batch_pairs": 128},
        "evaluate": {"samples": 2, "max_tokens": 16},
    },
    "tasks": ["instruments"],
    "seeds": [0],
    "tuning_seed": 9,
    "truth": {"pairs": 6, "completions": 8},
    "methods": {
        "base": {"label": "base", "trains": "nothing"},
        "rejection": {"label": "rejection", "trains": "correct responses", "grid": [{"lr": 1e-4}, {"lr": 1e-3}]},
        "dpo": {"label": "DPO", "trains": "preference pairs", "grid": [{"beta": 0.1}]},
        "grpo": {"label": "GRPO", "trains": "GRPO", "settings": {"collect": {"completions": 0}}},
        "clip-higher": {"label": "CH", "trains": "clip-higher", "settings": {"collect": {"completions": 0}}},
        "basis": {
            "label": "BASIS",
            "trains": "BASIS",
            "settings": {"data": {"limit": 200}, "collect": {"samples": 1, "kept": 1, "completions": 0}},
        },
        "vineppo": {"label": "VinePPO", "trains": "VinePPO", "settings": {"advantages": {"source": "mc"}}},
        "best-candidates": {"label": "best", "trains": "best candidates"},
        "kae": {"label": "KAE", "trains": "smoothed values"},
        "demonstrations": {"label": "demonstrations", "settings": {"actor": {"sft_weight": 0.1}}},
        "dapo": {"label": "DAPO"},
    },
    "plans": {
        "alone": {"label": "responses alone", "settings": {"collect": {"completions": 0}}},
        "gold": {"label": "gold starts", "settings": {"collect": {"gold_starts": True}}},
    },
    "rules": {
        "scratch": {"label": "scratch", "settings": {"critic": {"init": "scratch"}}},
        "auto": {"label": "the same as DAPO", "settings": {"actor": {"beta": "auto"}}},
    },
}


def trees():
    def trunk(ids, reward, finished=True):
        return Trunk(ids, [2, len(ids)], reward, finished)

    trunks = [trunk([5, 6, 7], 1.0), trunk([5, 6, 8, 9], 0.0), trunk([5, 6, 7], 1.0), trunk([6, 6, 6], 0.0)]
    cut = trunk([9, 9, 9, 9], 0.0, finished=False)
    lone = Tree("all right", "", "", [4, 5], [trunk([7, 7, 2], 1.0)], [], 1, 1)
    return [Tree("mixed", "", "", [4, 5, 6], [*trunks, cut], [], 5, 2), lone]


def test_dpo_is_the_loss_of_its_paper():
    found = preference_trees(trees())
    assert [(s.candidates[0].ids, s.candidates[1].ids) for s in found[0].states] == [
        ([5, 6, 7], [5, 6, 8, 9]),
        ([5, 6, 7], [6, 6, 6]),
    ]
    assert len(found) == 1, "a problem without a wrong response makes no pair"
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(get_task("arithmetic").model_config()).double()
    for number, state in enumerate(found[0].states):
        for candidate in state.candidates:
            candidate.ref_logp = -1.5 - number
    (pack,) = pack_actor(found, actor_groups(found), 1024)
    model.set_attn_implementation("dapo_auto")
    out = PolicyReader(model)(pack, normalizer=pack.steps, objective=dpo(0.3))
    out.loss.backward()
    got = model.lm_head.weight.grad.clone()
    model.zero_grad()
    model.set_attn_implementation("eager")

    def ratio(state, index):
        candidate = state.candidates[index]
        ids = torch.tensor([found[0].prompt_ids + candidate.ids])
        logps = model(ids).logits[0, 2:-1].log_softmax(-1)
        return logps.gather(1, ids[0, 3:, None]).sum() - candidate.ref_logp

    expected = torch.stack([-F.logsigmoid(0.3 * (ratio(s, 0) - ratio(s, 1))) for s in found[0].states]).mean()
    expected.backward()
    torch.testing.assert_close(out.loss, expected.detach().to(out.loss.dtype), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(got, model.lm_head.weight.grad, rtol=1e-5, atol=1e-7)


def test_rejection_sampling_streams_distinct_correct_responses():
    stream = correct_responses(trees(), 2, seed=0)
    right = {((4, 5, 6), (5, 6, 7)), ((4, 5), (7, 7, 2))}
    for step in range(5):
        assert {(tuple(p), tuple(r)) for p, r in stream(step)} == right
    wrong = Tree("w", "", "", [4], [Trunk([5, 2], [2], 0.0, True)], [], 1, 0)
    with pytest.raises(InputError, match="no correct response"):
        correct_responses([wrong], 2, seed=0)


def test_committed_study_is_valid():
    study = load_study(ROOT / "benchmarks" / "study" / "study.yaml")
    for task in study.tasks:
        cells = tuning_cells(study, task) + method_cells(study, task, 0) + changed_cells(study, task, 0)
        configs = {cell.variant: config_of(study, cell, {}) for cell in cells}
        assert len(configs) == len(cells)
        assert all(config.iterations == 3 for config in configs.values())
        # DAPO runs as the preset has it, but for the guard, which would look at the problems that are reported on.
        preset = load_config(preset="arithmetic", overrides=[f"data.task={task}"]).model_dump()
        assert configs["dapo"].model_dump() | {"keep_best": True} == preset


@pytest.fixture
def run_study(monkeypatch, capsys):
    """The study's command, but for its own process: (exit code, what it said)."""
    monkeypatch.setenv("TQDM_DISABLE", "1")
    get_context = multiprocessing.get_context

    def run(directory, config, *arguments, workers="fork"):
        """Workers start as a study's do, with all imports, only where they are to "spawn"."""
        monkeypatch.setattr(multiprocessing, "get_context", lambda kind: get_context(workers))
        words = [str(directory), "--config", str(config), "--workers", "1", "--no-record", *arguments]
        return command.main(words), capsys.readouterr().err

    return run


def test_study_runs_shares_and_resumes(tmp_path, run_study):
    config = tmp_path / "study.yaml"
    config.write_text(yaml.safe_dump(STUDY))
    code, said = run_study(tmp_path / "study", config, workers="spawn")
    assert code == 0, said
    seed = tmp_path / "study" / "instruments" / "seed0"
    cells = {path.parent.name: json.loads(path.read_text()) for path in seed.glob("*/cell.json")}
    assert cells.keys() == {*STUDY["methods"], *STUDY["plans"], *STUDY["rules"]}
    stopped = [row["stopped"] for cell in cells.values() for row in cell["rows"] if "stopped" in row]
    assert stopped == [], "every method had something to train on"
    assert all(
        0 <= row["sampled"]["accuracy"] <= 1 for cell in cells.values() for row in cell["rows"] if "sampled" in row
    )
    # One start and one set of rollouts for all; a critic for the one that trains another.
    stages = [path.name.split("-")[0] for path in (seed / "store").iterdir()]
    assert stages.count("sft") == 1 and stages.count("collect") == 4 and stages.count("critic") == 4
    assert (seed / "auto" / "iter1" / "actor").resolve() == (seed / "dapo" / "iter1" / "actor").resolve()
    assert all(sum(cell["tokens"]) > 0 for name, cell in cells.items() if name != "base")
    measured = json.loads((seed / "dapo" / "iter1" / "evidence.json").read_text())
    assert json.loads((tmp_path / "study" / "commits.json").read_text())
    assert measured["pairs"] > 0 and all(-1 < measured[name] < 1 for name in ("critic", "outcomes", "shrunk"))

    rows = {row["variant"]: row for row in rows_of(load_study(config), tmp_path / "study")}
    names = ["sft", "evaluate 0", "collect 1", "critic 1", "advantages 1", "actor 1", "evaluate 1"]
    assert [stage["stage"] for stage in rows["dapo"]["stages"]] == names
    assert rows["dapo"]["signals"][0]["pairs"] == rows["dapo"]["pairs"][0] and not rows["dpo"]["signals"]
    for mode in ("greedy", "sampled"):
        before, after = (iteration[mode] for iteration in rows["dpo"]["iterations"])
        assert rows["dpo"]["change"][mode]["mean"] == pytest.approx(after - before)

    # A cell and its model lost: only that is done again, to the same result.
    model = (seed / "dpo" / "iter1" / "actor").resolve() / "model" / "model.safetensors"
    before, others = model.read_bytes(), (seed / "dapo" / "cell.json").stat().st_mtime_ns
    for path in model.parent.parent.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != "stage.json":
            path.unlink()
    (seed / "dpo" / "cell.json").unlink()
    assert run_study(tmp_path / "study", config, "--variant", "dpo")[0] == 0
    assert model.read_bytes() == before
    assert (seed / "dapo" / "cell.json").stat().st_mtime_ns == others

    with open(tmp_path / "study" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, said = run_study(tmp_path / "study", config)
        assert code == 2 and "another process" in said

    words = [str(tmp_path / "study"), "--config", str(config), "--no-record", "--variant", "dppo"]
    unknown = subprocess.run(
        [sys.executable, "-m", "benchmarks.study", *words], cwd=ROOT, capture_output=True, text=True
    )
    assert unknown.returncode == 2 and "dppo" in unknown.stderr and "Traceback" not in unknown.stderr

    changed = yaml.safe_load(config.read_text())
    changed["settings"]["actor"]["lr"] = 1e-5
    config.write_text(yaml.safe_dump(changed))
    code, said = run_study(tmp_path / "study", config)
    assert code == 2 and "other settings" in said and "dpo@0" in said and said.count("\n") == 1
    assert (seed / "dapo" / "cell.json").exists()


def test_study_of_a_given_model_and_problems(tmp_path, run_study):
    task = get_task("arithmetic")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(task.model_config()).save_pretrained(tmp_path / "model")
    task.tokenizer().save_pretrained(tmp_path / "model")
    rows = [{"id": p.id, "prompt": p.prompt, "answer": p.answer} for p in task.problems(20, 0)]
    (tmp_path / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = {"data": {"problems": str(tmp_path / "problems.jsonl"), "heldout": str(tmp_path / "problems.jsonl")}}
    study = dict(STUDY, tasks={"own": {**own, "model": {"path": str(tmp_path / "model")}}}, plans={}, rules={})
    study["settings"] = {**STUDY["settings"], "sft": {"steps": 0}}
    study["tuning_settings"] = {"data": {"heldout": str(tmp_path / "tuning.jsonl")}}
    (tmp_path / "tuning.jsonl").write_text((tmp_path / "problems.jsonl").read_text())
    study["settings"]["data"] = {"task": None, "template": "none", "limit": 12, "heldout_limit": 10}
    config = tmp_path / "study.yaml"
    config.write_text(yaml.safe_dump(study))
    code, said = run_study(tmp_path / "study", config, "--variant", "base")
    assert code == 0, said
    cell = json.loads((tmp_path / "study" / "own" / "seed0" / "base" / "cell.json").read_text())
    assert cell["rows"][0]["greedy"]["n"] == 10

    on_the_test_set = study | {"tuning_settings": {}}
    config.write_text(yaml.safe_dump(on_the_test_set))
    with pytest.raises(InputError, match=r"tuning_settings\.data\.heldout: own"):
        load_study(config)

    study["tasks"]["own"]["model"]["path"] = str(tmp_path / "nowhere")
    config.write_text(yaml.safe_dump(study))
    code, said = run_study(tmp_path / "other", config)
    assert code == 2 and "nowhere" in said and said.count("\n") == 1
    assert not list((tmp_path / "other").glob("*/*/*"))


def test_a_worker_that_was_killed_is_one_line(tmp_path, monkeypatch, capsys):
    def broken(*_):
        raise BrokenProcessPool("a process in the process pool was terminated abruptly")

    monkeypatch.setattr(command, "run_study", broken)
    assert command.main([str(tmp_path), "--no-record"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_a_killed_studys_workers_end():
    fork = multiprocessing.get_context("fork")
    reading, writing = os.pipe()

    def worker():
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
        os.write(writing, b"works\n")
        time.sleep(600)
        os.write(writing, b"still there\n")

    def study():
        child = fork.Process(target=worker)
        child.start()
        child.join()

    process = fork.Process(target=study)
    process.start()
    os.close(writing)
    with open(reading, "rb") as pipe:
        assert pipe.readline() == b"works\n"
        process.kill()
        assert pipe.read() == b"", "the pipe is closed by the worker's end, not by the study's"
    process.join()
