"""Shared test settings: one thread, so that tests give the same bits on every machine and can run side by side."""

import gc
import os

import pytest
import torch

torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # of the programs that tests start
os.environ["HF_HUB_OFFLINE"] = "1"  # a name that is no file's is not to be looked for on the hub


# Files that take longest, the longest first: of two processes, none is left with one of them when the other is done.
LONGEST = (
    "test_end_to_end.py",
    "test_two_processes.py",
    "test_triton.py",
    "test_distributed.py",
    "test_study.py",
    "test_torchrun.py",
    "test_tensor.py",
    "test_attacks.py",
    "test_vllm_script.py",
)


def pytest_collection_modifyitems(items):
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.fixture(scope="module", autouse=True)
def imports_are_no_garbage():
    """Runs collect garbage after every stage: half a second each, spent on what imports left for good."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def no_pictures(monkeypatch):
    """Reports without PNGs, which take most of their time."""
    monkeypatch.setattr("dapo_fast.report.figures.write_figures", lambda run, trees: [])


@pytest.fixture(scope="session")
def untrained_policy(tmp_path_factory):
    """Directory of the arithmetic task's model with random weights, and of its tokenizer; to be read only."""
    from transformers import AutoModelForCausalLM

    from dapo_fast.tasks import get_task

    path = tmp_path_factory.mktemp("policy")
    task = get_task("arithmetic")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(task.model_config()).save_pretrained(path)
    task.tokenizer().save_pretrained(path)
    return path
