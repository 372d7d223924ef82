"""Model directories that hold no model, or not the whole of one, through everything that loads them."""

import json
import pickle
import shutil

import pytest
import torch
from malformed_cases import edited, refused, replace, rotated
from safetensors.torch import load_file, save_file

from dapo_fast.cli import main


def evaluation(model, inputs, *more):
    settings = ["evaluate.max_tokens=4", *(more or ["data.template=none"])]
    return ["evaluate", "--model", model, "--benchmark", inputs / "problems.jsonl", "--out", "out", *settings]


def training(model, inputs, *more):
    problems = inputs / "problems.jsonl"
    settings = more or ["data.template=none"]
    return ["run", "out", f"model.path={model}", f"data.problems={problems}", f"data.heldout={problems}", *settings]


def critic_of(model, inputs):
    return [*training(inputs / "model", inputs, "data.template=none"), f"critic.init={model}"]


def estimate(model, inputs):
    return ["estimate", model]


LOADING = [evaluation, training, critic_of]


def test_the_model_that_is_broken_below_is_whole(here, inputs):
    assert main([str(word) for word in evaluation(inputs / "model", inputs)]) == 0


BUILT = [  # what no model can be built of, with or without weights
    {"num_key_value_heads": 0},
    {"num_attention_heads": 0},
    {"num_attention_heads": "two"},
    {"hidden_size": "wide"},
    {"hidden_size": [16]},
    {"hidden_size": -16},
    {"num_hidden_layers": None},
    {"num_hidden_layers": "1"},
    {"vocab_size": -1},
    {"hidden_act": "shout"},
    {"hidden_act": 3},
    {"model_type": "lama"},
    {"model_type": ["llama"]},
    {"model_type": ""},
    {"architectures": 3},
    {"rope_parameters": "far"},
]
OTHERS = [  # which the weights are not of
    {"num_key_value_heads": 3},
    {"num_hidden_layers": 0},
    {"num_hidden_layers": 10**6},
    {"num_hidden_layers": 2},
    {"hidden_size": 32},
    {"vocab_size": 99},
    {"intermediate_size": 8},
    {"head_dim": 4},
    {"quantization_config": {"quant_method": "magic"}},
    {"architectures": ["LlamaForSequenceClassification"]},
    {"hidden_size": 10**9},
]


@pytest.mark.parametrize(("keys", "command"), rotated(BUILT, [*LOADING, estimate]))
def test_configs_that_describe_no_model(keys, command, model, inputs, capsys):
    edited(model / "config.json", **keys)
    refused(capsys, command("model", inputs), "model", keeps=[model])


@pytest.mark.parametrize(("keys", "command"), rotated(OTHERS, [evaluation, training]))
def test_weights_of_another_config(keys, command, model, inputs, capsys):
    edited(model / "config.json", **keys)
    refused(capsys, command("model", inputs), "model", keeps=[model])


SPOILT = ["empty", "cut", "list", "number", "null", "text", "deep", "latin", "binary", "gzip", "directory", "pipe"]
READ = ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"]
FILES = [file for file in rotated(SPOILT, READ, 2) if file != ("directory", "tokenizer_config.json")]  # as good as none


@pytest.mark.parametrize(("file", "command"), rotated(FILES, LOADING))
def test_files_of_a_model_that_are_junk(file, command, model, inputs, capsys):
    junk, name = file
    replace(model / name, junk)
    refused(capsys, command("model", inputs), "model", keeps=[model])


@pytest.mark.parametrize("command", LOADING)
def test_settings_of_a_tokenizer_that_are_wrong_where_they_are_used(command, model, inputs, capsys):
    edited(model / "tokenizer_config.json", model_max_length="long")
    refused(capsys, command("model", inputs), "model: no readable tokenizer", keeps=[model])


def test_logits_that_are_no_numbers_though_weights_are(model, inputs, capsys):
    edited(model / "config.json", rms_norm_eps=float("nan"))
    refused(capsys, evaluation("model", inputs), "logits are not finite", keeps=[model])


@pytest.mark.parametrize(
    ("name", "command"), rotated(["config.json", "tokenizer.json", "model.safetensors"], LOADING, 2)
)
def test_files_of_a_model_that_are_missing(name, command, model, inputs, capsys):
    (model / name).unlink()
    refused(capsys, command("model", inputs), "model", keeps=[model])


NAMES = ["none", "model/config.json", "/dev/null", ".", "loop", "a\0b", "a\udcff", " "]


@pytest.mark.parametrize(("name", "command"), rotated(NAMES, LOADING))
def test_names_of_no_model(name, command, model, inputs, capsys):
    replace(model.parent / "loop", "loop")
    given = json.dumps(name) if command is not evaluation else name
    refused(capsys, command(given, inputs), "critic.init" if command is critic_of else "model", keeps=[model])


@pytest.mark.parametrize("end", ["x", [[1]], -5])
def test_end_tokens_that_are_none(end, model, inputs, capsys):
    edited(model / "generation_config.json", eos_token_id=end)
    refused(capsys, evaluation("model", inputs), "model: generation_config.json: eos_token_id", keeps=[model])


def test_a_name_on_the_hub(here, inputs, capsys):
    words = ("org/name: no such directory", "not in the cache, and the hub cannot be reached")
    refused(capsys, evaluation("org/name", inputs), *words)


def test_a_model_that_is_only_a_pickle(model, inputs, capsys):
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    for command in LOADING:
        refused(capsys, command("model", inputs), "no model.safetensors", keeps=[model])


class Danger:
    """Unpickled, it leaves a file."""

    def __reduce__(self):
        return (open, ("danger", "w"))


def test_a_pickle_in_place_of_weights_is_not_loaded(model, inputs, capsys):
    replace(model / "model.safetensors", pickle.dumps(Danger()))
    replace(model / "pytorch_model.bin", pickle.dumps(Danger()))
    refused(capsys, evaluation("model", inputs), "model.safetensors", keeps=[model])
    assert not (model.parent / "danger").exists()


INDICES = {
    "empty": "",
    "list": [],
    "no map": {"metadata": {}},
    "map a list": {"weight_map": ["model-1.safetensors"]},
    "map of numbers": {"weight_map": {"lm_head.weight": 3}},
    "map of nothing": {"weight_map": {}},
    "a file that is missing": {"weight_map": {"lm_head.weight": "model-1.safetensors"}},
    "a file elsewhere": {"weight_map": {"lm_head.weight": "../other.safetensors"}},
    "the directory": {"weight_map": {"lm_head.weight": "."}},
    "a file that is no safetensors": {"weight_map": {"lm_head.weight": "config.json"}},
    "deep": "[" * 5000,
}


@pytest.mark.parametrize(("kind", "command"), rotated(INDICES, LOADING))
def test_indices_of_no_weights(kind, command, model, inputs, capsys):
    (model / "model.safetensors").rename(model / "model-00001.safetensors")
    replace(model / "model.safetensors.index.json", INDICES[kind])
    refused(capsys, command("model", inputs), "model", keeps=[model])


def named(part, change):
    """A change of the tensor whose name holds ``part``."""

    def of(tensors):
        name = next(name for name in tensors if part in name)
        tensors[name] = change(tensors[name])

    return of


def renamed(tensors):
    tensors["model.layers.7.other.weight"] = tensors.pop("model.norm.weight")


def filled(value):
    return lambda tensor: torch.full_like(tensor, value)


WEIGHTS = {
    "one missing": lambda tensors: tensors.pop("model.layers.0.self_attn.q_proj.weight"),
    "all missing": lambda tensors: tensors.clear(),
    "one more": lambda tensors: tensors.update({"extra.weight": torch.zeros(2)}),
    "another layer": lambda tensors: tensors.update({"model.layers.1.mlp.up_proj.weight": torch.zeros(16, 16)}),
    "renamed": renamed,
    "NaN": named("down_proj", filled(float("nan"))),
    "infinite": named("lm_head", filled(float("-inf"))),
    "whole numbers": named("up_proj", lambda tensor: tensor.to(torch.int8)),
    "true and false": named("k_proj", lambda tensor: tensor > 0),
    "transposed": named("embed_tokens", lambda tensor: tensor.T.contiguous()),
    "narrower": named("o_proj", lambda tensor: tensor[:, :8].contiguous()),
    "flat": named("v_proj", torch.flatten),
    "empty": named("norm", lambda tensor: tensor[:0]),
}


@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights_that_are_not_the_model(kind, model, inputs, capsys):
    tensors = load_file(model / "model.safetensors")
    WEIGHTS[kind](tensors)
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    refused(capsys, evaluation("model", inputs), "model", keeps=[model])


@pytest.mark.parametrize("cut", [0, 1, 8, 100, -1])
def test_weights_that_are_cut(cut, model, inputs, capsys):
    whole = (model / "model.safetensors").read_bytes()
    replace(model / "model.safetensors", whole[:cut])
    refused(capsys, evaluation("model", inputs), "model.safetensors", keeps=[model])


TEMPLATES = [
    "{% for m in",
    "{{ messages[7].content }}",
    "{{ nothing.at.all }}",
    "{{ raise_exception('no\nsystem') }}",
    "{{ 1/0 }}",
    "{{ messages | shout }}",
    "{% include 'x' %}",
    "{{ ''.__class__.__mro__ }}{{ ''.x.y }}",
    "{{ nothing() }}",
    "{{ range(10 ** 9) | list }}",
]


@pytest.mark.parametrize(("template", "command"), rotated(TEMPLATES, [evaluation, training]))
def test_chat_templates_that_do_not_render(template, command, model, inputs, capsys):
    (model / "chat_template.jinja").write_text(template)
    refused(capsys, command("model", inputs, "data.template=chat"), "chat template of model", keeps=[model])


@pytest.mark.parametrize("command", [evaluation, training])
def test_a_model_without_chat_template(command, model, inputs, capsys):
    refused(capsys, command("model", inputs, "data.template=chat"), "no chat template", keeps=[model])


def test_after_a_first_failure_other_settings_are_free(here, inputs, capsys):
    refused(capsys, evaluation(inputs / "model", inputs, "data.template=chat"), "no chat template")
    assert main([str(word) for word in evaluation(inputs / "model", inputs, "data.template=none", "seed=3")]) == 0
    changed = evaluation(inputs / "model", inputs, "data.template=none", "seed=4")
    refused(capsys, changed, "seed (3, now 4)", keeps=[here / "out"])
    shutil.rmtree(here / "out")
    assert main([str(word) for word in changed]) == 0


def test_a_policy_where_a_critic_belongs(run, capsys):
    shutil.rmtree(run / "iter1" / "evaluate")  # which is not measured first
    critic = ["--critic", run / "iter1" / "actor" / "model"]
    refused(capsys, ["evaluate", run, "--iteration", "1", *critic], "model: not a value model", keeps=[run])
