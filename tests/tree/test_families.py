"""Every family: a pack reads and trains as its separate sequences do under transformers' own eager attention."""

import random

import pytest
import recurrent_cases
import torch
from families import MORE, ROWS, SERVER, TREES, names, of
from family_cases import FAMILIES, tokenizer
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

from dapo_fast.config import ActorSettings, load_config
from dapo_fast.data.batches import actor_groups, critic_groups
from dapo_fast.data.packing import pack_actor, pack_critic
from dapo_fast.errors import InputError
from dapo_fast.models.loading import causal_lm_skeleton, load_value_model
from dapo_fast.models.readpath import PolicyReader, ValueReader
from dapo_fast.rollout.engine import SamplingParams
from dapo_fast.rollout.in_process import InProcessEngine
from dapo_fast.train.cost import Lengths, iteration_cost
from dapo_fast.train.export import check_export, export
from dapo_fast.train.memory import estimate
from dapo_fast.train.parallel import ALONE
from dapo_fast.train.preflight import try_first_layers
from dapo_fast.train.weights import add_lora

BETA = 0.1


def model_of(family):
    return shaken(FAMILIES[family]())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tree_reads_and_trains_as_its_sequences(family):
    rng = random.Random(3)
    trees = [random_tree(rng, f"p{index}", steps=9) for index in range(2)]
    model = model_of(family)
    groups = actor_groups(trees)
    keys = [(t, s, c) for t, s in groups for c in range(len(trees[t].states[s].candidates))]
    (pack,) = pack_actor(trees, groups, 10_000)
    assert int(pack.position_ids.max()) >= 12  # three windows deep
    out = PolicyReader(model)(pack, BETA, len(keys))
    out.loss.backward()
    actual = gradients(model)
    model.set_attn_implementation("eager")
    expected = separate_logps(model, trees, [tuple(k) for k in pack.step_keys.tolist()])
    loss = separate_loss(expected, trees, [tuple(k) for k in pack.step_keys.tolist()], BETA, len(keys))
    loss.backward()
    torch.testing.assert_close(out.step_logps.double(), expected.detach(), rtol=2e-5, atol=2e-5)
    assert out.loss.item() == pytest.approx(loss.item(), rel=2e-5)
    assert_same_gradients(actual, gradients(model), 2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_reloads_the_export(family, tmp_path):
    model = model_of(family)
    (tmp_path / "source").mkdir()
    export(model, tmp_path / "model", tmp_path / "source", torch.float32, ALONE)
    check_export(model, tmp_path)
    try_first_layers(causal_lm_skeleton(tmp_path / "model"), tmp_path / "model")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32, attn_implementation="eager")
    model.set_attn_implementation("eager")
    ids = torch.tensor([[5, 6, 7, 8, 9, 3, 4, 5]])
    with torch.inference_mode():
        torch.testing.assert_close(again.eval()(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["phi3", "gemma3n_text", "gpt_oss", "deepseek_v3", "glm4_moe", "qwen3_moe"])
def test_adapters_are_exported_within_the_weights(family, tmp_path):
    """Beside every linear layer, fused, latent and of shared experts; routed experts and routers stay as they are."""
    model = model_of(family)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    add_lora(model, ActorSettings(lora_rank=2, lora_alpha=8.0))
    adapted = {name.partition(".lora_")[0] for name, _ in model.named_parameters() if ".lora_" in name}
    linear = {name for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and ".lora_" not in name}
    assert adapted == {name.removesuffix(".base_layer") for name in linear} - {"lm_head"}
    assert any("mlp" in name for name in adapted) or family in ("gpt_oss", "qwen3_moe")  # whose MLPs are all routed
    generator = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    (tmp_path / "source").mkdir()
    export(model, tmp_path / "model", tmp_path / "source", torch.float32, ALONE)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32, attn_implementation="eager")
    model.set_attn_implementation("eager")
    ids = torch.tensor([[5, 6, 7, 8, 9, 3, 4, 5]])
    with torch.inference_mode():
        torch.testing.assert_close(again.eval()(ids).logits, model(ids).logits, atol=1e-4, rtol=1e-4)
    changed = {
        name.removesuffix(".weight") for name, tensor in again.state_dict().items() if (tensor != before[name]).any()
    }
    assert changed == adapted


def test_the_families_of_the_page_are_those_that_are_tested():
    assert names(TREES) == {*FAMILIES, "llama", "qwen3"}
    assert names(ROWS) == {*recurrent_cases.FAMILIES}
    assert sum(len(row.families) for row in (*TREES, *ROWS, *MORE)) == len(names(TREES, ROWS, MORE))


@pytest.mark.parametrize("family", FAMILIES)
def test_memory_and_work_are_counted(family, tmp_path):
    FAMILIES[family]().save_pretrained(tmp_path)
    config = load_config(overrides=[f"model.path={tmp_path}", "data.problems=x"])
    assert not estimate(tmp_path, config, 1, 24, "cpu").warnings()
    assert "sampled" in str(iteration_cost(tmp_path, config, 10, Lengths(5, 50, 5)))


@pytest.mark.parametrize("family", FAMILIES)
def test_samples_are_the_models(family):
    """Log-probs of samples, decoded over shared prefixes, against a fresh eager forward."""
    model = model_of(family)
    if of(family).sampled == SERVER:
        with pytest.raises(InputError, match="different sizes in different layers"):
            InProcessEngine(model, tokenizer())
        return
    engine = InProcessEngine(model, tokenizer(), max_rows=5)
    prompts = [[5, 6, 7, 8, 9, 3, 4, 5], [5, 6, 7, 8], [9]]
    groups = engine.generate(prompts, SamplingParams(2, 12, seed=1, logprobs=True))
    model.set_attn_implementation("eager")
    for prompt, samples in zip(prompts, groups, strict=True):
        for sample in samples:
            with torch.inference_mode():
                logits = model(torch.tensor([prompt + sample.ids]), use_cache=False).logits[0, len(prompt) - 1 : -1]
            expected = logits.float().log_softmax(-1).gather(1, torch.tensor(sample.ids)[:, None])[:, 0]
            torch.testing.assert_close(torch.tensor(sample.logprobs), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_critic_starts_from_the_policy_and_survives_its_file(family, tmp_path):
    """The policy's backbone with a head; values and gradients of separate sequences; saved and read again."""
    trees = [random_tree(random.Random(3), f"p{index}", steps=9) for index in range(2)]
    policy = model_of(family)
    policy.save_pretrained(tmp_path / "policy")
    critic = load_value_model(tmp_path / "policy", init="causal_lm")
    backbone = dict(critic.backbone.named_parameters())
    assert all(torch.equal(p, backbone[name]) for name, p in policy.base_model.named_parameters())
    torch.nn.init.normal_(critic.value_head.weight, generator=torch.Generator().manual_seed(3))
    (pack,) = pack_critic(trees, critic_groups(trees), 10_000)
    out = ValueReader(critic)(pack, normalizer=1.0)
    out.loss.backward()
    actual = gradients(critic.model)
    keys = [tuple(k) for k in pack.value_keys.tolist()]
    critic.model.set_attn_implementation("eager")
    logits = separate_values(critic, trees, keys)
    separate_value_loss(logits, trees, keys).backward()
    torch.testing.assert_close(out.values.double(), logits.sigmoid().detach(), rtol=2e-5, atol=2e-6)
    assert_same_gradients(actual, gradients(critic.model), 2e-5)
    critic.model.set_attn_implementation("dapo_auto")
    check_export(critic.model, tmp_path)
    critic.save_pretrained(tmp_path / "critic")
    again = load_value_model(tmp_path / "critic", init="saved")
    torch.testing.assert_close(ValueReader(again).values(pack), out.values, rtol=1e-6, atol=1e-6)
