"""A model directory whose files are not the whole model is refused in one line, on every path that loads."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, Qwen2Config

from dapo_fast.config import ActorSettings, CriticSettings, ModelSettings, ParallelSettings
from dapo_fast.errors import InputError
from dapo_fast.models.loading import load_causal_lm, load_value_model, new_causal_lm
from dapo_fast.train.parallel import open_world
from dapo_fast.train.readers import policy_reader, value_reader

SIZES = {
    "vocab_size": 19,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
Q = "model.layers.1.self_attn.q_proj.weight"
ALONE, SHARDED = ModelSettings(device="cpu", dtype="float32"), ModelSettings(device="cpu", dtype="bfloat16")


def policy(settings):
    def load(directory):
        with open_world(settings, ParallelSettings()) as world:
            return policy_reader(directory, ActorSettings(), settings, ParallelSettings(), world)

    return load


def critic(settings):
    def load(directory):
        with open_world(settings, ParallelSettings()) as world:
            return value_reader(directory, "causal_lm", CriticSettings(), settings, ParallelSettings(), world, 0)

    return load


PATHS = {
    "sampler and evaluate": load_causal_lm,
    "policy": policy(ALONE),
    "policy, sharded": policy(SHARDED),
    "critic": critic(ALONE),
    "critic, sharded": critic(SHARDED),
}


@pytest.fixture
def directory(tmp_path):
    new_causal_lm(LlamaConfig(**SIZES), seed=5).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def change(directory, edit):
    path = directory / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def set_nan(tensors):
    tensors[Q][3, 2] = float("nan")


def set_inf(tensors):
    tensors["model.norm.weight"][-1] = float("inf")


EDITS = {
    "missing": (lambda t: t.pop(Q), rf"model: no tensor {Q} in"),
    "unexpected": (
        lambda t: t.update({"model.extra": torch.ones(1)}),
        r"model\.safetensors: model\.extra has no place",
    ),
    "mismatched": (lambda t: t.update({Q: torch.ones(8, 7)}), rf"model\.safetensors: {Q} has shape \(8, 7\)"),
    "nan": (set_nan, rf"model\.safetensors: {Q} holds values that are not finite"),
    "inf": (set_inf, r"model\.safetensors: model\.norm\.weight holds values that are not finite"),
    "int8": (lambda t: t.update({Q: torch.ones(8, 8, dtype=torch.int8)}), rf"model\.safetensors: {Q} is I8"),
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("fault", EDITS)
def test_a_file_that_is_not_the_model_is_one_line(directory, path, fault):
    edit, pattern = EDITS[fault]
    change(directory, edit)
    with pytest.raises(InputError, match=pattern) as error:
        PATHS[path](directory)
    assert "\n" not in str(error.value)


def test_a_saved_critic_is_checked_too(directory, tmp_path):
    load_value_model(directory, init="causal_lm").save_pretrained(tmp_path / "critic")
    load_value_model(tmp_path / "critic")
    change(tmp_path / "critic", lambda tensors: tensors.pop("score.weight"))
    with pytest.raises(InputError, match=r"no tensor score\.weight"):
        load_value_model(tmp_path / "critic")


def test_a_layer_more_in_the_config_is_missing_and_one_less_has_no_place(directory):
    config = json.loads((directory / "config.json").read_text())
    for layers, pattern in (
        (3, r"no tensor model\.layers\.2\.\S+ \(and 8 more\)"),
        (1, r"\(and 8 more\) has no place"),
    ):
        (directory / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers}))
        for name in ("policy", "policy, sharded"):
            with pytest.raises(InputError, match=pattern):
                PATHS[name](directory)


@pytest.mark.parametrize("path", PATHS)
def test_what_is_right_loads(tmp_path, path, caplog):
    """A tied lm_head stands in no file; a critic's head is new, and the causal LM's has no place in it."""
    for tied in (True, False):
        config = Qwen2Config(**SIZES, tie_word_embeddings=tied)
        new_causal_lm(config, seed=5).save_pretrained(tmp_path / f"{tied}")
        assert ("lm_head.weight" in load_file(tmp_path / f"{tied}" / "model.safetensors")) is not tied
        PATHS[path](tmp_path / f"{tied}")


@pytest.mark.parametrize("path", ["policy", "policy, sharded", "critic"])
def test_formats_that_are_not_read(directory, path):
    config = json.loads((directory / "config.json").read_text())
    quantised = config | {"quantization_config": {"quant_method": "fp8", "weight_block_size": [8, 8]}}
    (directory / "config.json").write_text(json.dumps(quantised))
    with pytest.raises(InputError, match="model: its weights are quantised"):
        PATHS[path](directory)
    (directory / "config.json").write_text(json.dumps(config))
    torch.save(load_file(directory / "model.safetensors"), directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"model: no model\.safetensors here"):
        PATHS[path](directory)


@pytest.mark.parametrize("path", ["policy", "policy, sharded"])
def test_files_in_parts(directory, path):
    tensors = load_file(directory / "model.safetensors")
    names = sorted(tensors)
    parts = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for file, held in parts.items():
        save_file({name: tensors[name] for name in held}, directory / file, metadata={"format": "pt"})
    (directory / "model.safetensors").unlink()
    index = directory / "model.safetensors.index.json"
    where = {name: file for file, held in parts.items() for name in held}
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    PATHS[path](directory)
    save_file({name: tensors[name] for name in names}, directory / "two.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"two\.safetensors: holds \S+, and one\.safetensors does so too"):
        PATHS[path](directory)
    (directory / "two.safetensors").write_bytes(b"garbage")
    with pytest.raises(InputError, match=r"two\.safetensors: not a readable safetensors file"):
        PATHS[path](directory)
    (directory / "two.safetensors").unlink()
    with pytest.raises(InputError, match=r"two\.safetensors: missing, though"):
        PATHS[path](directory)
    for garbage in ("[]", "{", '{"weight_map": [1]}', '{"weight_map": {"a": 1}}'):
        index.write_text(garbage)
        with pytest.raises(InputError, match=r"index\.json: not an index"):
            PATHS[path](directory)
