"""Recurrent and hybrid families: padded rows read and train as sequences that transformers reads one at a time."""

import random

import pytest
import torch
import train_cases as cases
import transformers as hf
from families import LOCKSTEP, of
from family_cases import tokenizer
from hypothesis import given
from hypothesis import strategies as st
from recurrent_cases import FAMILIES
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from tree_cases import (
    assert_same_gradients,
    gradients,
    random_tree,
    separate_logps,
    separate_loss,
    separate_value_loss,
    separate_values,
    shaken,
)

from dapo_fast.config import ModelSettings, load_config
from dapo_fast.data.batches import actor_groups, critic_groups
from dapo_fast.data.dealing import Ranks, by_length
from dapo_fast.data.packing import pack_actor, pack_critic, pack_sequences
from dapo_fast.data.store import write_shard
from dapo_fast.models.loading import causal_lm_skeleton, load_causal_lm, load_value_model
from dapo_fast.models.padded import padded_inputs
from dapo_fast.models.readpath import PolicyReader, ValueReader
from dapo_fast.rollout.engine import SamplingParams
from dapo_fast.rollout.in_process import InProcessEngine
from dapo_fast.train.cost import Lengths, iteration_cost
from dapo_fast.train.export import check_export, export
from dapo_fast.train.memory import estimate
from dapo_fast.train.parallel import ALONE
from dapo_fast.train.preflight import check_training, try_first_layers

BETA = 0.1
ROWS = Ranks(padded=True)


TREES = [random_tree(random.Random(seed), f"p{seed}", steps=3, width=2) for seed in (3, 4)]


@pytest.mark.parametrize("family", FAMILIES)
def test_padded_rows_train_as_their_sequences(family):
    model = shaken(FAMILIES[family]())
    (pack,) = pack_actor(TREES, actor_groups(TREES), 10_000, ranks=ROWS)
    assert len(set(pack.position_ids[(pack.position_ids == 0).roll(-1)].tolist())) > 2  # so there is padding
    out = PolicyReader(model)(pack, BETA, pack.steps)
    out.loss.backward()
    actual = gradients(model)
    keys = [tuple(key) for key in pack.step_keys.tolist()]
    expected = separate_logps(model, TREES, keys)
    loss = separate_loss(expected, TREES, keys, BETA, pack.steps)
    loss.backward()
    torch.testing.assert_close(out.step_logps.double(), expected.detach(), rtol=1e-5, atol=1e-5)
    assert out.loss.item() == pytest.approx(loss.item(), rel=1e-5)
    assert_same_gradients(actual, gradients(model), 1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_critic_starts_from_the_policy_and_survives_its_file(family, tmp_path):
    shaken(FAMILIES[family]()).save_pretrained(tmp_path / "policy")
    critic = load_value_model(tmp_path / "policy", init="causal_lm")
    torch.nn.init.normal_(critic.value_head.weight, generator=torch.Generator().manual_seed(3))
    (pack,) = pack_critic(TREES, critic_groups(TREES), 10_000, ranks=ROWS)
    out = ValueReader(critic)(pack, normalizer=1.0)
    out.loss.backward()
    actual = gradients(critic.model)
    keys = [tuple(key) for key in pack.value_keys.tolist()]
    logits = separate_values(critic, TREES, keys)
    separate_value_loss(logits, TREES, keys).backward()
    torch.testing.assert_close(out.values.double(), logits.sigmoid().detach(), rtol=1e-5, atol=1e-6)
    assert_same_gradients(actual, gradients(critic.model), 1e-5)
    critic.save_pretrained(tmp_path / "critic")
    again = load_value_model(tmp_path / "critic", init="saved")
    torch.testing.assert_close(ValueReader(again).values(pack), out.values, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_reloads_the_export(family, tmp_path):
    model = shaken(FAMILIES[family]())
    (tmp_path / "source").mkdir()
    export(model, tmp_path / "model", tmp_path / "source", torch.float32, ALONE)
    check_export(model, tmp_path)
    try_first_layers(causal_lm_skeleton(tmp_path / "model"), tmp_path / "model")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    ids = torch.tensor([[5, 6, 7, 8, 9, 3, 4, 5]])
    with torch.inference_mode():
        torch.testing.assert_close(again(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_samples_are_the_models(family):
    """Log-probs of samples against a fresh forward; and the same samples where each token reads its whole sequence."""
    model = shaken(FAMILIES[family]())
    engine = InProcessEngine(model, tokenizer(), max_rows=5)
    assert engine.cached is (of(family).sampled == LOCKSTEP)
    prompts = [[5, 6, 7, 8], [9], [5, 6, 7, 9]]
    params = SamplingParams(2, (6, 4, 5), seed=1, logprobs=True)
    groups = engine.generate(prompts, params)
    for prompt, samples, budget in zip(prompts, groups, params.max_tokens, strict=True):
        for sample in samples:
            assert len(sample.ids) == budget or sample.finished
            with torch.inference_mode():
                logits = model(torch.tensor([prompt + sample.ids]), use_cache=False).logits[0, len(prompt) - 1 : -1]
            expected = logits.float().log_softmax(-1).gather(1, torch.tensor(sample.ids)[:, None])[:, 0]
            torch.testing.assert_close(torch.tensor(sample.logprobs), expected, atol=1e-4, rtol=1e-4)
    engine.cached = False
    again = engine.generate(prompts, params)
    assert [[s.ids for s in group] for group in again] == [[s.ids for s in group] for group in groups]


@pytest.mark.parametrize("family", FAMILIES)
def test_memory_and_work_are_counted(family, tmp_path):
    FAMILIES[family]().save_pretrained(tmp_path)
    config = load_config(overrides=[f"model.path={tmp_path}", "data.problems=x"])
    assert not estimate(tmp_path, config, 1, 24, "cpu").warnings()
    assert "sampled" in str(iteration_cost(tmp_path, config, 10, Lengths(5, 50, 5)))


def test_supervised_sequences_of_a_recurrent_model():
    model = shaken(FAMILIES["lfm2"]())
    pairs = [([3, 4, 5], [6, 7]), ([8], [4]), ([5, 6], [7, 3, 4, 2])]
    packs = pack_sequences(pairs, 8, ranks=ROWS)
    assert [pack.steps for pack in packs] == [1, 2]  # two rows of five tokens would be over eight
    read = {
        int(key[0]): logp for pack in packs for key, logp in zip(pack.step_keys, PolicyReader(model).step_logps(pack))
    }
    for index, (prompt, response) in enumerate(pairs):
        logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1)[torch.arange(len(response)), torch.tensor(response)].sum()
        torch.testing.assert_close(read[index], expected.detach(), rtol=1e-5, atol=1e-5)


@given(sizes=st.lists(st.integers(1, 30), max_size=20), most=st.integers(1, 60), size=st.integers(1, 3))
def test_padded_packs_keep_to_their_tokens(sizes, most, size):
    packs = by_length(sizes, most, Ranks(size, padded=True))
    assert sorted(index for pack in packs for index in pack) == list(range(len(sizes)))
    assert all(len(pack) == 1 or len(pack) * max(sizes[i] for i in pack) <= most for pack in packs)


def test_a_critic_reads_a_chain_of_states_in_one_row():
    """Of one trunk the last state's row holds all the others; a tree for attention is refused."""
    tree = random_tree(random.Random(0), steps=6)
    tree.trunks, tree.states = tree.trunks[:1], [state for state in tree.states if state.trunk == 0]
    (pack,) = pack_critic([tree], critic_groups([tree]), 10_000, ranks=ROWS)
    assert len(tree.states) > 2 and pack.value_rows.numel() == len(tree.states)
    assert padded_inputs(pack)["input_ids"].shape == (1, len(tree.prefix_ids(tree.states[-1])))
    (tangled,) = pack_actor(TREES, actor_groups(TREES), 10_000)
    with pytest.raises(ValueError, match="a tree, which this model cannot read"):
        padded_inputs(tangled)


@pytest.mark.parametrize("family", ["mamba", "falcon_h1", "jamba", "qwen3_5_text", "lfm2"])
def test_bf16_and_adapters(family, tmp_path, monkeypatch):
    """A step in bf16 moves fp32 weights, which are kept; adapters move linear layers, and nothing else."""
    model = shaken(FAMILIES[family]())
    model.save_pretrained(tmp_path / "policy")
    write_shard(tmp_path / "trees" / "shard-00000.parquet", TREES)
    monkeypatch.setattr(cases, "CPU", ModelSettings(device="cpu", dtype="bfloat16"))
    before = load_file(tmp_path / "policy" / "model.safetensors")
    cases.run("actor", tmp_path, tmp_path / "bf16", {}, steps=1, warmup_steps=0)
    master = load_file(tmp_path / "bf16" / "model" / "master" / "model.safetensors")
    moved = {name: (master[name] - before[name]).abs().max().item() for name in before}
    assert all(tensor.dtype == torch.float32 for tensor in master.values())
    assert 0 < max(moved.values()) < 1.1e-3  # the learning rate; weights rounded to bf16 would be off by more
    cases.run("actor", tmp_path, tmp_path / "lora", {}, steps=1, warmup_steps=0, lora_rank=2)
    after = load_file(tmp_path / "lora" / "model" / "model.safetensors")
    changed = {name for name in before if not torch.equal(after[name], before[name].to(after[name].dtype))}
    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert changed and changed <= {name for name in linear if "dt_proj" not in name and "lm_head" not in name}


def test_of_a_model_of_images_and_text_the_text_is_trained(tmp_path):
    """Qwen3.5's files, which hold its eyes too, as transformers' causal LM of its text reads them."""
    eyes = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    eyes |= {"num_position_embeddings": 16}
    config = hf.Qwen3_5Config(text_config=FAMILIES["qwen3_5_text"]().to_dict(), vision_config=eyes)
    hf.Qwen3_5ForConditionalGeneration(config).save_pretrained(tmp_path)
    asked = [f"model.path={tmp_path}", "data.problems=x", "parallel.processes=2"]
    check_training(load_config(overrides=asked), tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ids = torch.tensor([[5, 6, 7, 8, 9, 3, 4, 5]])
    policy, critic = load_causal_lm(tmp_path), load_value_model(tmp_path, init="causal_lm")
    assert torch.equal(policy(ids).logits, plain(ids).logits)
    backbone = dict(critic.backbone.named_parameters())
    assert all(torch.equal(p, backbone[name]) for name, p in policy.base_model.named_parameters())
