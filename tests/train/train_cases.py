"""Small models and made-up trees of the built-in task, for tests of training, on one process or several."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import random
import signal
import socket
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from dapo_fast.config import (
    ActorSettings,
    AdvantageSettings,
    CriticSettings,
    ModelSettings,
    ParallelSettings,
    SftSettings,
)
from dapo_fast.data.store import read_trees, write_shard
from dapo_fast.data.tree import Candidate, State, Tree, Trunk
from dapo_fast.tasks import get_task

CPU = ModelSettings(device="cpu", dtype="float32")
SFT = {"lr": 1e-3, "steps": 4, "batch_sequences": 8, "pack_tokens": 256}
CRITIC = {"lr": 1e-3, "epochs": 2, "batch_states": 24, "pack_tokens": 512, "longest_pack": 16, "heldout_fraction": 0.3}
ACTOR = {
    "lr": 1e-3,
    "beta": 0.1,
    "steps": 6,
    "batch_pairs": 32,
    "pack_tokens": 512,
    "longest_pack": 16,
    "warmup_steps": 2,
}


def write_model(directory: Path, seed: int = 0, tied: bool = False, family: str = "qwen2", **changes: object) -> Path:
    """A ``family`` of two layers and width 32 with the built-in task's tokenizer."""
    task = get_task("arithmetic")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
    shared = task.model_config().to_dict()
    kept = (
        "vocab_size",
        "num_hidden_layers",
        "max_position_embeddings",
        "pad_token_id",
        "bos_token_id",
        "eos_token_id",
    )
    config = AutoConfig.for_model(family, **{name: shared[name] for name in kept} | sizes | changes)
    config.tie_word_embeddings = tied
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    task.tokenizer().save_pretrained(directory)
    return directory


def make_trees(count: int, seed: int = 0, traces: int = 1) -> list[Tree]:
    """Trees with ``traces`` gold traces in each trunk, made-up outcomes, and advantages."""
    task = get_task("arithmetic")
    tokenizer = task.tokenizer()
    rng = random.Random(seed)
    trees = []
    for index, problem in enumerate(task.problems(count, seed)):
        trunks: list[Trunk] = []
        for attempt in range(2):
            text = "\n".join(text for _, text in task.gold(traces, seed, 10 * index + attempt))
            lines = [*text.split("\n")]
            steps = [line + "\n" for line in lines[:-1]] + [lines[-1]]
            ids: list[int] = []
            ends: list[int] = []
            for step in steps:
                ids += tokenizer(step, add_special_tokens=False)["input_ids"]
                ends.append(len(ids))
            ids.append(tokenizer.eos_token_id)
            ends[-1] += 1
            trunks.append(Trunk(ids, ends, float(rng.random() < 0.5), True))
        states: list[State] = []
        for number, trunk in enumerate(trunks):
            for step in range(len(trunk.step_ends)):
                if number and not step:
                    continue
                rewards = [float(rng.random() < 0.5) for _ in range(4)]
                candidates = []
                for _ in range(3):
                    ids = [rng.randrange(6, 30) for _ in range(rng.randrange(2, 6))] + [5]
                    candidates.append(Candidate(ids, rng.randrange(1, 3), False, 0.0, q=rng.random()))
                mean = sum(c.q * c.count for c in candidates) / sum(c.count for c in candidates)
                for candidate in candidates:
                    candidate.advantage = candidate.q - mean
                states.append(State(number, step, rewards, candidates, kept=rng.random() < 0.8))
        prompt_ids = tokenizer(problem.prompt, add_special_tokens=False)["input_ids"]
        trees.append(Tree(problem.id, problem.prompt, problem.answer, prompt_ids, trunks, states, 4, 2))
    return trees


def write_trees(directory: Path, count: int = 12, seed: int = 0, traces: int = 1) -> Path:
    """``make_trees`` in two shards."""
    trees = make_trees(count, seed, traces)
    write_shard(directory / "shard-00000.parquet", trees[: count // 2])
    write_shard(directory / "shard-00001.parquet", trees[count // 2 :])
    return directory


def stream(step: int) -> list[tuple[list[int], list[int]]]:
    """Eight gold sequences of the built-in task for ``step``."""
    task = get_task("arithmetic")
    tokenizer = task.tokenizer()
    pairs = task.gold(8, 0, step)
    encode = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    return [(encode(prompt), [*encode(response), tokenizer.eos_token_id]) for prompt, response in pairs]


def distance(base: Path, policy: Path) -> float:
    """How far the weights of ``policy`` are from those of ``base/policy``."""
    before, after = (load_file(path / "model.safetensors") for path in (base / "policy", policy))
    return sum((after[name] - tensor).square().sum().item() for name, tensor in before.items()) ** 0.5


def peaked(base: Path, peak: float) -> Callable[[Path, slice], list[dict]]:
    """A measure of policies on three problems, which is the larger the nearer to ``peak`` their ``distance`` is."""

    def measured(policy: Path, share: slice) -> list[dict]:
        reward = 1 / (1 + abs(distance(base, policy) - peak))
        response = {"correct": False, "reward": reward, "finished": True, "tokens": 1}
        return [{"responses": [response]}] * len(range(3)[share])

    return measured


def run(
    stage: str,
    base: Path,
    out: Path,
    parallel: dict,
    digest: str = "test",
    measured: Callable[[Path, slice], list[dict]] | None = None,
    **changes: object,
) -> dict:
    """Train ``stage`` from ``base/policy`` and ``base/trees`` into ``out``; advantages by ``base/critic-1``."""
    from dapo_fast.advantages import compute_advantages
    from dapo_fast.train.actor import train_actor
    from dapo_fast.train.critic import ValueFiller, train_critic
    from dapo_fast.train.parallel import open_world
    from dapo_fast.train.sft import train_sft

    laid = ParallelSettings(**parallel)
    common = {"seed": 7, "digest": digest}
    if stage == "sft":
        return train_sft(base / "policy", SftSettings(**SFT | changes), laid, CPU, out, stream=stream, **common)
    if stage == "critic":
        settings = CriticSettings(**CRITIC | changes)
        return train_critic(base / "trees", str(base / "policy"), base / "policy", settings, laid, CPU, out, **common)
    if stage == "advantages":
        with open_world(CPU, laid) as world:
            fill = ValueFiller(base / "critic-1" / "model", AdvantageSettings(pack_tokens=100), CPU, laid, world)
            settings = AdvantageSettings(**changes)
            return compute_advantages(base / "trees", out, settings, fill, digest, world=world)
    settings = ActorSettings(**ACTOR | changes)
    return train_actor(base / "trees", base / "policy", settings, laid, CPU, out, measured=measured, **common)


def die(base: Path, out: Path, rank: int, call: int, by: int = signal.SIGKILL) -> None:
    """Have rank ``rank`` send itself signal ``by`` when its actor computes its ``call``-th loss."""
    from dapo_fast.train.actor import ActorTask

    loss, calls = ActorTask.loss, []

    def deadly(self: ActorTask, *args: object) -> object:
        calls.append(1)
        if len(calls) == call and int(os.environ["RANK"]) == rank:
            os.kill(os.getpid(), by)
        return loss(self, *args)

    ActorTask.loss = deadly


def run_jobs(base: Path, jobs: list[dict]) -> None:
    """Run ``jobs`` one after another, as a rank of whatever started this process."""
    logging.basicConfig(level=logging.INFO, force=True)
    logging.getLogger("dapo_fast").handlers.clear()
    logging.getLogger("dapo_fast").propagate = True
    torch.set_num_threads(1)
    for job in jobs:
        if "dies" in job:
            die(base, base / job["out"], **job["dies"])
        measured = peaked(base, job["peak"]) if "peak" in job else None
        options = {"measured": measured, **job.get("changes", {})}
        run(job["stage"], base, base / job["out"], job.get("parallel", {}), **options)


def forked(size: int, work: Callable[[], None], log: Path) -> list[BaseProcess]:
    """``work`` on ``size`` ranks without torchrun, as Slurm would start them: forks, which spare its imports."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        variables = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}

    def rank(number: int) -> None:
        os.environ.update(variables | {"RANK": str(number), "LOCAL_RANK": str(number)})
        sys.stdout = sys.stderr = open(log, "a", buffering=1)  # noqa: SIM115 - as long as this process
        work()

    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=rank, args=(number,)) for number in range(size)]
    for process in processes:
        process.start()
    return processes


def jobs_forked(size: int, base: Path, jobs: list[dict], log: Path) -> list[BaseProcess]:
    """``jobs`` on ``size`` ranks."""
    return forked(size, lambda: run_jobs(base, jobs), log)


def launch(size: int, base: Path, jobs: list[dict]) -> None:
    """``jobs`` on ``size`` ranks, to the end."""
    log = base / f"log-{size}"
    processes = jobs_forked(size, base, jobs, log)
    for process in processes:
        process.join(600)
    assert [process.exitcode for process in processes] == [0] * size, log.read_text()


def curve(directory: Path, key: str = "loss") -> list[float]:
    """A metric, step by step."""
    return [json.loads(line)[key] for line in (directory / "metrics.jsonl").read_text().splitlines()]


def assert_same(first: Path, second: Path, tolerance: float = 1e-5) -> None:
    """Two trainings' curves and weights."""
    assert curve(first) == pytest.approx(curve(second), rel=tolerance, abs=tolerance)
    assert curve(first, "grad_norm") == pytest.approx(curve(second, "grad_norm"), rel=1e-4)
    a, b = (load_file(d / "model" / "model.safetensors") for d in (first, second))
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=tolerance, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


def assert_same_advantages(first: Path, second: Path) -> None:
    """Two stores of trees with advantages."""
    for one, two in zip(read_trees(first), read_trees(second), strict=True):
        for ours, theirs in zip(one.states, two.states, strict=True):
            assert ours.value == pytest.approx(theirs.value, abs=1e-6) and ours.kept == theirs.kept
            for a, b in zip(ours.candidates, theirs.candidates, strict=True):
                assert (a.value, a.q, a.advantage) == pytest.approx((b.value, b.q, b.advantage), abs=1e-6)
