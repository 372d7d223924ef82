"""What training exports is the model: plain transformers reloads it and says the same, whatever the family holds."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from dapo_fast.config import ActorSettings
from dapo_fast.train import export as exports
from dapo_fast.train.export import export
from dapo_fast.train.parallel import World
from dapo_fast.train.weights import add_lora

SMALL = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
EXPERTS = {"moe_intermediate_size": 8, "n_routed_experts": 4, "num_experts": 4, "num_experts_per_tok": 2}
ROUTED = SMALL | EXPERTS | {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "n_shared_experts": 1}
LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
FAMILIES = {
    "llama": SMALL,
    "qwen2": SMALL | {"tie_word_embeddings": True},
    "apertus": SMALL,
    "gpt_neox": SMALL,
    "nemotron": SMALL,
    "qwen3_moe": SMALL | EXPERTS,
    "glm4_moe": ROUTED,
    "deepseek_v3": ROUTED | LATENT | {"num_key_value_heads": 2, "head_dim": 4},
}


def made(family):
    """A model of which every value that ``state_dict()`` holds is random, buffers too."""
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **FAMILIES[family])).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() and "norm" not in name:
                tensor.copy_(0.3 * torch.randn(tensor.shape))
    return model


def exported(model, directory, dtype, master=False, world=World):
    (directory / "source").mkdir()
    alone = world(0, 1, torch.device("cpu"), dtype, None)
    export(model, directory / "model", directory / "source", dtype, alone, master)
    return directory / "model"


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_reloads_what_is_exported(tmp_path, family):
    model = made(family)
    model.save_pretrained(tmp_path / "theirs")
    out = exported(model, tmp_path, torch.float32)
    # Experts too are named as on the hub, and as transformers itself saves them.
    ours, theirs = (load_file(directory / "model.safetensors") for directory in (out, tmp_path / "theirs"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    reloaded = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    ids = torch.tensor([[1, 5, 9, 20, 3, 7]])
    with torch.no_grad():
        torch.testing.assert_close(reloaded(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-5)


def test_the_experts_of_one_tensor_may_lie_in_several_files(tmp_path, monkeypatch):
    monkeypatch.setattr(exports, "SHARD_BYTES", 1024)
    model = made("qwen3_moe")
    out = exported(model, tmp_path, torch.float32)
    index = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    name = "model.layers.0.mlp.experts.{}.up_proj.weight"
    assert index[name.format(0)] != index[name.format(3)]
    again = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())


def test_adapters_are_there_for_peft_too(tmp_path):
    peft = pytest.importorskip("peft")
    model = made("llama")
    model.save_pretrained(tmp_path / "base")
    add_lora(model, ActorSettings(lora_rank=2, lora_alpha=6.0))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape))
    merged = exported(model, tmp_path, torch.float32)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        unlike = base(ids).logits
        said = peft.PeftModel.from_pretrained(base, merged / "adapter")(ids).logits
        expected = AutoModelForCausalLM.from_pretrained(merged)(ids).logits
    torch.testing.assert_close(said, expected, rtol=1e-4, atol=1e-4)
    assert (unlike - expected).abs().max() > 0.1
    assert json.loads((merged / "adapter" / "adapter_config.json").read_text())["r"] == 2


def test_buffers_keep_their_type(tmp_path):
    model = made("glm4_moe")
    model.register_buffer("steps_seen", torch.tensor([2**24 + 1], dtype=torch.int64))
    model.register_buffer("computed", torch.ones(3), persistent=False)
    stored = load_file(exported(model, tmp_path, torch.bfloat16) / "model.safetensors")
    name = "model.layers.1.mlp.gate.e_score_correction_bias"
    assert torch.equal(stored[name], model.get_buffer(name)) and stored[name].dtype == torch.float32
    assert torch.equal(stored["steps_seen"], model.steps_seen)
    assert "computed" not in stored
    assert stored["lm_head.weight"].dtype == torch.bfloat16


def test_all_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    synced, fsync, replace, out = [], os.fsync, os.replace, tmp_path / "model"

    def record(handle):
        synced.append(Path(os.readlink(f"/proc/self/fd/{handle}")))
        fsync(handle)

    def publish(source, target):
        if target == out:
            synced.append("published")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", record)
    monkeypatch.setattr(os, "replace", publish)
    exported(made("llama"), tmp_path, torch.bfloat16, master=True)
    published = synced.index("published")
    written = [path.relative_to(out) for path in (out, *out.rglob("*"))]
    assert Path("master/model.safetensors") in written
    assert {tmp_path / "model.tmp" / path for path in written} <= set(synced[:published])
    assert tmp_path in synced[published:]


def test_the_others_wait_for_one_file_at_a_time(tmp_path, monkeypatch):
    events, save = [], exports.save_file

    class Waiting(World):
        def barrier(self):
            events.append("wait")

    monkeypatch.setattr(exports, "save_file", lambda *args, **kwargs: events.append("file") or save(*args, **kwargs))
    monkeypatch.setattr(exports, "SHARD_BYTES", 4096)
    out = exported(made("llama"), tmp_path, torch.float32, world=Waiting)
    files = len(list(out.glob("*.safetensors")))
    assert files > 2 and events == ["file", "wait"] * files + ["wait"]
