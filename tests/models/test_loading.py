"""Models and critics to and from Hugging Face directories."""

import importlib.util
import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, LlamaConfig, OPTConfig, Qwen2Config

from dapo_fast.data.packing import pack_sequences
from dapo_fast.errors import InputError
from dapo_fast.models.loading import load_causal_lm, load_value_model, new_causal_lm, use_liger
from dapo_fast.models.readpath import PolicyReader, ValueReader
from dapo_fast.models.value import ValueModel

SIZES = {
    "vocab_size": 19,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


@pytest.fixture
def actor(tmp_path):
    model = new_causal_lm(Qwen2Config(**SIZES, tie_word_embeddings=True), seed=5)
    model.save_pretrained(tmp_path / "actor")
    return model, tmp_path / "actor"


def test_causal_lm_round_trip(actor, tmp_path):
    model, directory = actor
    loaded = load_causal_lm(directory)
    assert loaded.dtype == torch.float32
    assert {n: p.sum().item() for n, p in loaded.named_parameters()} == {
        n: p.sum().item() for n, p in model.named_parameters()
    }
    PolicyReader(loaded).model.save_pretrained(tmp_path / "again")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "again")  # nothing of ours is left in the directory
    assert plain.config._attn_implementation == "sdpa"
    ids = torch.tensor([[1, 2, 3, 4]])
    torch.testing.assert_close(plain(ids).logits, loaded(ids).logits)


def test_weights_are_a_function_of_the_seed():
    config = LlamaConfig(**SIZES)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = new_causal_lm(config, seed=3).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    again, other = new_causal_lm(config, seed=3).state_dict(), new_causal_lm(config, seed=4).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_value_model_from_the_actor(actor):
    model, directory = actor
    value_model = load_value_model(directory, init="causal_lm")
    for name, parameter in model.model.named_parameters():
        assert torch.equal(parameter, value_model.backbone.get_parameter(name)), name
    pack = pack_sequences([([1, 2], [3, 4])], 100)[0]
    pack.value_rows = torch.tensor([0, 1, 2])
    assert torch.equal(ValueReader(value_model).values(pack), torch.full((3,), 0.5))


def test_value_model_round_trip(actor, tmp_path):
    _, directory = actor
    value_model = load_value_model(directory, init="scratch", seed=7)
    torch.nn.init.normal_(value_model.value_head.weight)
    value_model.save_pretrained(tmp_path / "critic")
    loaded = load_value_model(tmp_path / "critic")
    ids = torch.tensor([[1, 2, 3, 4]])
    expected = value_model.value_head(value_model.backbone(ids).last_hidden_state)
    torch.testing.assert_close(loaded.value_head(loaded.backbone(ids).last_hidden_state), expected)
    plain = AutoModelForTokenClassification.from_pretrained(tmp_path / "critic").eval()  # transformers alone reads it
    torch.testing.assert_close(plain(ids).logits, expected)
    assert plain.config.architectures == ["Qwen2ForTokenClassification"]


def test_scratch_differs_by_seed(actor):
    _, directory = actor
    one, two = (load_value_model(directory, init="scratch", seed=seed) for seed in (1, 2))
    again = load_value_model(directory, init="scratch", seed=1)
    weights = [m.backbone.embed_tokens.weight for m in (one, again, two)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_an_untied_value_model_has_no_lm_head():
    value_model = ValueModel.from_config(LlamaConfig(**SIZES), seed=0)
    assert {name.split(".")[0] for name, _ in value_model.model.named_parameters()} == {"model", "score"}


def test_wrong_directories(actor, tmp_path):
    _, directory = actor
    with pytest.raises(InputError, match="not a value model"):
        load_value_model(directory)
    with pytest.raises(InputError, match="nowhere: not a readable model directory"):
        load_causal_lm(tmp_path / "nowhere")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="there is no CUDA device"):
            load_causal_lm(directory, device="cuda")


def test_a_critic_is_no_policy_and_a_damaged_file_is_named(actor, tmp_path):
    _, directory = actor
    load_value_model(directory, init="causal_lm").save_pretrained(tmp_path / "critic")
    with pytest.raises(InputError, match="critic is no policy"):
        load_causal_lm(tmp_path / "critic")
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(InputError, match=r"model\.safetensors: not a readable safetensors file"):
        load_causal_lm(directory)
    with pytest.raises(InputError, match=r"model\.safetensors: not a readable safetensors file"):
        load_value_model(directory, init="causal_lm")


def test_no_critic_on_hidden_states_of_another_width():
    """OPT 350M's last layer is projected: its own head takes what comes of it."""
    sizes = {"hidden_size": 16, "word_embed_proj_dim": 8, "ffn_dim": 16, "num_hidden_layers": 1}
    with pytest.raises(InputError, match="OPTForTokenClassification: no critic, its hidden states are 8 wide"):
        ValueModel.from_config(OPTConfig(vocab_size=19, num_attention_heads=2, **sizes), seed=0)


@pytest.mark.parametrize("named", [3, [None], "LlamaForCausalLM"])
def test_architectures_that_are_no_names(actor, named):
    _, directory = actor
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"architectures": named}))
    for load in (load_causal_lm, load_value_model):
        with pytest.raises(InputError, match=f"^{directory}: .*architectures"):
            load(directory)


def test_without_liger_a_model_for_cuda_stays_as_it_is(actor, monkeypatch, caplog):
    model, _ = actor
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    before = [type(module) for module in model.modules()]
    use_liger(model, torch.device("cuda"))
    assert [type(module) for module in model.modules()] == before
    (record,) = caplog.records
    assert record.levelname == "WARNING" and "without Liger's kernels" in record.message
