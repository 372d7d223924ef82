"""The fp32 weights that a policy keeps beside those in bf16: who writes them, who trains on from them."""

import logging
import random
import shutil

import pytest
import torch
import train_cases as cases
from safetensors.torch import load_file, save_file

from dapo_fast.config import ActorSettings, ParallelSettings, load_config
from dapo_fast.errors import InputError
from dapo_fast.models.loading import load_causal_lm
from dapo_fast.rollout.loading import load_tokenizer
from dapo_fast.sums import write_sums
from dapo_fast.train.actor import train_actor
from dapo_fast.train.export import export
from dapo_fast.train.parallel import ALONE, World
from dapo_fast.train.preflight import check_training
from dapo_fast.train.weights import trained_from


def train_in_bf16(base, policy, out, **changes):
    model = cases.CPU.model_copy(update={"dtype": "bfloat16"})
    settings = ActorSettings(**cases.ACTOR | changes)
    return train_actor(base / "trees", policy, settings, ParallelSettings(), model, out, seed=7, digest="d")


def test_the_next_training_goes_on_from_fp32_weights(base, tmp_path):
    """Steps too small for bf16: most exported weights stay where they were, what is trained on next does not."""
    policy, name = base / "policy", "model.layers.0.mlp.up_proj.weight"
    for number in ("1", "2"):
        out = tmp_path / number
        done = train_in_bf16(base, policy, out, lr=1e-7, steps=4, warmup_steps=0)
        assert 0 < done["changed"] < 0.2
        policy = out / "model"
    start = load_file(base / "policy" / "model.safetensors")[name]
    masters = [load_file(tmp_path / n / "model" / "master" / "model.safetensors")[name] for n in ("1", "2")]
    moved = [(master - start).abs().mean().item() for master in masters]
    assert masters[0].dtype == torch.float32
    assert 1e-7 < moved[0] < 5e-7 and moved[1] > 1.5 * moved[0]
    for number, master in zip(("1", "2"), masters, strict=True):
        assert torch.equal(master.bfloat16(), load_file(tmp_path / number / "model" / "model.safetensors")[name])
    # In fp32 there is nothing to keep beside the model; what changed is counted all the same.
    done = cases.run("actor", base, tmp_path / "fp32", {})
    assert done["changed"] > 0.9 and not (tmp_path / "fp32" / "model" / "master").exists()


def test_adapters_neither_read_nor_leave_fp32_weights(base, tmp_path, caplog):
    """What is behind adapters is held in bf16: fp32 weights would be rounded away, and said to be trained on from."""
    policy, name = tmp_path / "policy", "model.embed_tokens.weight"
    shutil.copytree(base / "policy", policy)
    shutil.copytree(base / "policy", policy / "master")
    tensors = load_file(policy / "master" / "model.safetensors")
    tensors[name] += 1  # whoever reads them shows it
    save_file(tensors, policy / "master" / "model.safetensors", metadata={"format": "pt"})
    caplog.set_level(logging.INFO, "dapo_fast.train")
    train_in_bf16(base, policy, tmp_path / "a", lora_rank=2, steps=1)
    assert "adapters are trained on the weights as exported" in caplog.text
    assert "goes on from its fp32 weights" not in caplog.text
    frozen = load_file(tmp_path / "a" / "model" / "model.safetensors")[name]
    assert torch.equal(frozen, load_file(policy / "model.safetensors")[name].bfloat16())
    assert not (tmp_path / "a" / "model" / "master").exists()


@pytest.mark.parametrize("sees", [False, True])
def test_whether_there_are_fp32_weights_is_what_rank_0_says(tmp_path, sees):
    class Second(World):
        def broadcast(self, value):
            assert value is sees
            return not sees

        def gather(self, value):
            return [value]

    if sees:
        (tmp_path / "master").mkdir()
    world = Second(1, 2, torch.device("cpu"), torch.bfloat16, None)
    assert trained_from(tmp_path, world, adapting=False) == (tmp_path if sees else tmp_path / "master")


@pytest.fixture(scope="module")
def exported(base, tmp_path_factory):
    """Read-only: a model in bf16, its tokenizer, and its fp32 weights."""
    directory = tmp_path_factory.mktemp("exported") / "model"
    export(load_causal_lm(base / "policy"), directory, base / "policy", torch.bfloat16, ALONE, master=True)
    return directory


def load(directory):
    """Whatever reads a policy, and training on from it."""
    load_tokenizer(directory)
    load_causal_lm(directory)
    load_causal_lm(trained_from(directory, ALONE, adapting=False))


def other_weights(model):
    path = model / "model.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})


def another_export(model):
    other_weights(model)
    write_sums(model, {})


STALE = {
    "another export": (another_export, "master: not the fp32 weights of the model beside them; remove them"),
    "other weights": (other_weights, "model.safetensors: damaged"),
    "nothing is known of the model": (lambda m: (m / "sums.json").unlink(), "master: not the fp32 weights"),
    "nothing is known of them": (lambda m: (m / "master" / "sums.json").unlink(), "master: not the fp32 weights"),
    "a note without them": (lambda m: write_sums(m / "master", {}), "not the sums of fp32 weights"),
}


@pytest.mark.parametrize("how", STALE)
def test_fp32_weights_of_another_model_are_refused(exported, tmp_path, how):
    """Before anything is sampled, too."""
    model = shutil.copytree(exported, tmp_path / "model")
    spoil, said = STALE[how]
    spoil(model)
    with pytest.raises(InputError, match=said):
        trained_from(model, ALONE, adapting=False)
    given = [f"model.path={model}", "data.task=arithmetic", "model.device=cpu", "model.dtype=bfloat16"]
    config = load_config(overrides=given).at(1)
    if "damaged" not in said:  # found as weights are read
        with pytest.raises(InputError, match=said):
            check_training(config, model)
    shutil.rmtree(model / "master")
    check_training(config, model)


def test_no_flipped_bit_of_a_model_is_read(exported, tmp_path):
    """In weights, config, tokenizer, fp32 weights or the sums of all these."""
    model = shutil.copytree(exported, tmp_path / "model")
    load(model)
    files = sorted(path for path in model.rglob("*") if path.is_file())
    rng = random.Random(5)
    for file in files * (100 // len(files)):
        whole = file.read_bytes()
        place = rng.randrange(8 * len(whole))
        spoilt = bytearray(whole)
        spoilt[place // 8] ^= 1 << place % 8
        file.write_bytes(spoilt)
        with pytest.raises(InputError) as error:
            load(model)
        assert str(model) in str(error.value) and "\n" not in str(error.value), (file, place)
        file.write_bytes(whole)
    load(model)
