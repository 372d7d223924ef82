"""Tensor parallelism: ranks that hold every layer together train what one process trains."""

import os
import signal

import pytest
import torch
import train_cases as cases
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor
from train_cases import assert_same, assert_same_advantages, curve, launch

from dapo_fast.config import ActorSettings, CriticSettings, ParallelSettings
from dapo_fast.data.batches import actor_groups, critic_groups
from dapo_fast.data.packing import pack_actor, pack_critic
from dapo_fast.train.actor import train_actor
from dapo_fast.train.parallel import open_world
from dapo_fast.train.readers import policy_reader, value_reader

HELD = {"tensor_parallel_degree": 2}
SIZES = {"num_key_value_heads": 2, "head_dim": 16}
# A padding token among the trees' own, which the embedding does not train, is a word of the first rank or the second.
FAMILIES = {
    "qwen3": SIZES | {"tied": True},
    "llama": SIZES | {"attention_bias": True, "mlp_bias": True, "pad_token_id": 8},
    "qwen2": {"num_key_value_heads": 2, "hidden_size": 36, "intermediate_size": 50, "vocab_size": 37},
    "mistral": SIZES | {"tied": True, "sliding_window": 6, "vocab_size": 35, "pad_token_id": 20},
}


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.clone()


def gradients(policy, parallel):
    """Loss, and every gradient, of an actor and of a critic on one pack."""
    torch.set_num_threads(1)
    trees, laid, found = cases.make_trees(4), ParallelSettings(**parallel), {}
    with open_world(cases.CPU, laid) as world:
        actor = policy_reader(policy, ActorSettings(), cases.CPU, laid, world)
        critic = value_reader(policy, "causal_lm", CriticSettings(), cases.CPU, laid, world, 0)
        torch.nn.init.constant_(critic.model.score.weight, 0.1)
        (of_actor,) = pack_actor(trees, actor_groups(trees), 10_000)
        of_actor.ref_logps.fill_(-5.0)
        (of_critic,) = pack_critic(trees, critic_groups(trees), 10_000)
        for kind, reader, pack in (("actor", actor, of_actor), ("critic", critic, of_critic)):
            loss = reader(pack).loss
            (loss / world.readers).backward()  # which read the same pack here
            found |= {f"{kind} {name}": whole(p.grad) for name, p in reader.named_parameters()}
            found[f"{kind} loss"] = loss.detach()
    return found


def test_every_gradient_is_that_of_one_process(tmp_path):
    """Of every family, tied and not, with biases, windows, and sizes that no number of ranks divides."""
    for family, changes in FAMILIES.items():
        path = cases.write_model(tmp_path / family, family=family, **changes) / "model.safetensors"
        tensors = {name: tensor + 0.1 * torch.randn_like(tensor) for name, tensor in load_file(path).items()}
        save_file(tensors, path, metadata={"format": "pt"})

    def work():
        for family in FAMILIES:
            found = gradients(tmp_path / family, HELD)
            if os.environ["RANK"] == "0":
                save_file(found, tmp_path / f"{family}-2")

    processes = cases.forked(2, work, tmp_path / "log")
    for family in FAMILIES:
        save_file(gradients(tmp_path / family, {}), tmp_path / f"{family}-1")
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0, 0], (tmp_path / "log").read_text()
    for family in FAMILIES:
        two, one = (load_file(tmp_path / f"{family}-{n}") for n in (2, 1))
        assert two.keys() == one.keys() and len(one) > 40
        for name in one:
            error = (two[name] - one[name]).abs().max() / one[name].abs().max()
            assert error < 2e-5, f"{family}: {name}: {error:.1e}"


CHANGES = {"critic": {"steps": 3}, "advantages": {}, "actor": {"steps": 3}, "sft": {"steps": 2}}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    directory = tmp_path_factory.mktemp("base")
    cases.write_model(directory / "policy", family="qwen3", tied=True, **SIZES)
    cases.write_trees(directory / "trees", 4)
    for stage, changes in CHANGES.items():
        cases.run(stage, directory, directory / f"{stage}-1", {}, **changes)
    return directory


def test_every_stage_trains_as_one_process_does(base):
    """At degree 2, and the actor with data sharded or replicated beside it."""
    jobs = [{"stage": s, "out": f"{s}-2", "changes": changes, "parallel": HELD} for s, changes in CHANGES.items()]
    jobs[0]["parallel"] = HELD | {"activation_checkpointing": "selective"}
    launch(2, base, jobs)
    laid = HELD | {"activation_checkpointing": "full", "defer_reduction": True}
    four = {"actor-4": laid, "actor-replicas": HELD | {"replicas": 2}}
    job = {"stage": "actor", "changes": {"steps": 3, "pack_tokens": 100}}
    launch(4, base, [job | {"out": out, "parallel": parallel} for out, parallel in four.items()])
    for name in ("critic-2", "actor-2", "sft-2", *four):
        assert_same(base / name, base / f"{name.split('-')[0]}-1")
    assert_same_advantages(base / "advantages-2", base / "advantages-1")


def test_a_checkpoint_is_read_at_another_degree(base):
    """Begun by one process, continued by two that hold a layer together, ended by one."""
    job = {"stage": "actor", "out": "again", "changes": CHANGES["actor"]}
    for size, parallel in ((1, {}), (2, HELD)):
        stopped = job | {"parallel": parallel, "dies": {"rank": 0, "call": 1, "by": signal.SIGTERM}}
        processes = cases.jobs_forked(size, base, [stopped], base / "log-again")
        for process in processes:
            process.join(120)
        assert {process.exitcode for process in processes} == {128 + signal.SIGTERM}, (base / "log-again").read_text()
    cases.run("actor", base, base / "again", {}, **CHANGES["actor"])
    assert curve(base / "again", "step") == [1, 2, 3]
    assert_same(base / "again", base / "actor-1")


def test_in_bf16_as_one_process_does(base, tmp_path):
    model = cases.CPU.model_copy(update={"dtype": "bfloat16"})

    def train(out, parallel):
        laid, settings = ParallelSettings(**parallel), ActorSettings(**cases.ACTOR | {"steps": 2})
        train_actor(base / "trees", base / "policy", settings, laid, model, out, seed=7, digest="d")

    processes = cases.forked(2, lambda: train(tmp_path / "two", HELD), tmp_path / "log")
    train(tmp_path / "one", {})
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0], (tmp_path / "log").read_text()
    assert curve(tmp_path / "two") == pytest.approx(curve(tmp_path / "one"), rel=0.02)
    two, one = (load_file(tmp_path / n / "model" / "master" / "model.safetensors") for n in ("two", "one"))
    assert {tensor.dtype for tensor in two.values()} == {torch.float32}
    for name in one:
        assert (two[name] - one[name]).norm() < 2e-2 * one[name].norm(), name
