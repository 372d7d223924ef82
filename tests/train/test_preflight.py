"""What cannot be trained is refused before anything is sampled, for the very world that is asked for."""

import shutil

import pytest
import torch
import train_cases as cases
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, Gemma3Config, LlamaConfig

from dapo_fast.config import load_config
from dapo_fast.errors import InputError
from dapo_fast.models.loading import causal_lm_skeleton, load_value_model
from dapo_fast.pipeline import Pipeline
from dapo_fast.rundir import RunDirectory
from dapo_fast.train import export as exports
from dapo_fast.train.preflight import check_training, try_first_layers

MAMBA = {"hidden_size": 16, "num_hidden_layers": 1, "vocab_size": 40, "num_heads": 4, "head_dim": 8, "n_groups": 1}

RWKV = {"hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 40}
ZAMBA = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 5,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    "n_mamba_heads": 2,
}


HTTP = ["engine.kind=http", "engine.urls=[http://localhost:1]"]
SHARED = ["parallel.processes=2", "parallel.context_parallel_degree=2"]
HELD = ["parallel.processes=2", "parallel.tensor_parallel_degree=2"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    base = tmp_path_factory.mktemp("models")
    cases.write_model(base / "dense", family="llama")
    cases.write_model(base / "sampled only", family="llama")
    weights = base / "sampled only" / "model.safetensors"
    save_file(load_file(weights) | {"model.more": load_file(weights)["lm_head.weight"]}, weights)
    cases.write_model(base / "nemotron", family="nemotron")
    kinds = ["sliding_attention", "full_attention"] * 2
    cases.write_model(base / "windows", family="gemma3_text", head_dim=16, num_hidden_layers=4, layer_types=kinds)
    AutoModelForCausalLM.from_config(AutoConfig.for_model("mamba2", **MAMBA)).save_pretrained(base / "recurrent")
    AutoModelForCausalLM.from_config(AutoConfig.for_model("rwkv", **RWKV)).save_pretrained(base / "changing")
    AutoModelForCausalLM.from_config(AutoConfig.for_model("zamba", **ZAMBA)).save_pretrained(base / "shared")
    return base


def check(path, *settings):
    given = [f"model.path={path}", "data.task=arithmetic", "model.device=cpu", *settings]
    check_training(load_config(overrides=given).at(1), path)


@pytest.mark.parametrize(
    "settings", [[], ["parallel.processes=2"], SHARED, ["model.dtype=bfloat16"], ["actor.lora_rank=2"]]
)
def test_what_can_be_trained_passes(models, settings):
    check(models / "dense", *settings)


def test_recurrent_models(models):
    """Read as rows in every world; a backend for trees is refused."""
    for settings in ([], ["parallel.processes=2"], ["advantages.source=response"]):
        check(models / "recurrent", *settings)
    with pytest.raises(InputError, match=r"model\.attention: 'dense' reads packs, and a mamba2 model reads one"):
        check(models / "recurrent", "model.attention=dense")


def test_families_that_stay_refused(models):
    for settings in ([], ["parallel.processes=2"]):
        with pytest.raises(InputError, match="changing: a rwkv model cannot be trained on step trees: its weights"):
            check(models / "changing", *settings)
    check(models / "shared")
    with pytest.raises(InputError, match="ZambaForCausalLM: its blocks share parameters"):
        check(models / "shared", "parallel.processes=2")


def test_files_are_compared_before_anything_is_sampled(models):
    for settings in (HTTP, ["parallel.processes=2"], ["model.dtype=bfloat16"]):
        with pytest.raises(InputError, match=r"sampled only/model.safetensors: model.more has no place"):
            check(models / "sampled only", *settings)


def test_what_is_to_be_trained_is_tried_before_anything_is_sampled(models):
    """Whoever samples: a server takes any model."""
    words = "nemotron: Nemotron.* does not honour tree attention: a small pack and its separate sequences differ"
    for settings in ([], HTTP, ["parallel.processes=2"], ["actor.lora_rank=2"], ["model.dtype=bfloat16"]):
        with pytest.raises(InputError, match=words):
            check(models / "nemotron", *settings)
    check(models / "dense", *HTTP)
    with pytest.raises(InputError, match=words):  # which no engine loads
        check(models / "dense", f"critic.init={models / 'nemotron'}")


def test_of_a_model_that_is_tried_a_layer_of_each_kind_is_read(models):
    model = causal_lm_skeleton(models / "windows")
    try_first_layers(model, models / "windows")
    assert len(model.model.layers) == 2


def test_of_a_model_that_is_tried_the_weights_are_finite(models, tmp_path):
    shutil.copytree(models / "windows", tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    weights["model.layers.0.self_attn.q_proj.weight"][0, 0] = torch.nan
    save_file(weights, tmp_path / "model" / "model.safetensors")
    with pytest.raises(InputError, match=r"safetensors: model\.layers\.0\.self_attn\.q_proj\.weight holds values that"):
        check(tmp_path / "model", *HTTP)


@pytest.mark.parametrize("stage", ["sft", "critic", "actor"])
def test_every_stage_is_built_with_its_own_settings(models, stage):
    start = ["sft.steps=1"] if stage == "sft" else []
    check(models / "dense", "sft.router_aux=0.1")  # there is no supervised start
    with pytest.raises(InputError, match="router_aux: transformers has no load-balancing loss of a llama"):
        check(models / "dense", f"{stage}.router_aux=0.1", *start)


def test_what_an_export_would_lose_is_refused(models, monkeypatch):
    whole = exports.as_stored

    def lossy(model, tensors):
        return {name: parts for name, parts in whole(model, tensors).items() if "norm" not in name}

    monkeypatch.setattr(exports, "as_stored", lossy)
    with pytest.raises(InputError, match=r"model\.layers\.0\.input_layernorm\.weight of a Llama.* would not"):
        check(models / "dense")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["parallel.processes=3", "parallel.replicas=2"], "parallel.replicas 2: does not divide the 3 processes"),
        (["model.attention=varlen"], "model.attention: 'varlen' reads flat packs only"),
        ([*SHARED[1:], "parallel.processes=3"], "parallel.context_parallel_degree 2: does not divide the 3 processes"),
        ([*SHARED, "parallel.compile=true"], "parallel.context_parallel_degree: not with parallel.compile"),
        ([HELD[1], "parallel.processes=3"], "parallel.tensor_parallel_degree 2: does not divide the 3 processes"),
        (
            [*HELD, "parallel.replicas=2"],
            "parallel.replicas × parallel.tensor_parallel_degree 4: does not divide the 2",
        ),
        ([*HELD, SHARED[1]], "parallel.tensor_parallel_degree: not with parallel.context_parallel_degree"),
        ([*HELD, "parallel.compile=true"], "parallel.tensor_parallel_degree: not with parallel.compile"),
        ([*HELD, "parallel.cpu_offload=true"], "parallel.tensor_parallel_degree: not with parallel.cpu_offload"),
        ([*SHARED, "model.attention=tree_sdpa"], "model.attention: 'tree_sdpa' is not for parallel.context_parallel"),
    ],
)
def test_settings_that_no_rank_could_start_with(models, settings, said):
    with pytest.raises(InputError, match=said):
        check(models / "dense", *settings)


@pytest.mark.parametrize(
    ("family", "changes", "said"),
    [
        ("mistral", {"sliding_window": 6}, "mistral model, whose attention is not full in every layer"),
        ("gemma", {"head_dim": 16}, "gemma model, only for llama, qwen2, qwen3, mistral"),
    ],
)
def test_models_that_cannot_share_packs(tmp_path, family, changes, said):
    cases.write_model(tmp_path, family=family, **changes)
    check(tmp_path, "parallel.processes=2")
    with pytest.raises(InputError, match=f"parallel.context_parallel_degree: not for this {said}"):
        check(tmp_path, *SHARED)


EVEN = {"num_key_value_heads": 2}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 16}


@pytest.mark.parametrize(
    ("family", "changes", "settings", "said"),
    [
        ("qwen3_moe", EXPERTS, [], ": not for this qwen3_moe model, only for llama, qwen2, qwen3, mistral"),
        ("llama", {}, [], " 2: does not divide the model's num_key_value_heads of 1"),
        ("llama", {"num_attention_heads": 1}, [], " 2: does not divide the model's num_attention_heads of 1"),
        ("llama", EVEN | {"intermediate_size": 63}, [], " 2: does not divide the model's intermediate_size of 63"),
        ("llama", EVEN, ["actor.lora_rank=2"], ": not with lora_rank"),
        ("llama", EVEN, ["critic.optimizer_state=bfloat16"], ": not with optimizer_state bfloat16"),
    ],
)
def test_models_that_ranks_cannot_hold_together(tmp_path, family, changes, settings, said):
    cases.write_model(tmp_path, family=family, **changes)
    check(tmp_path, "parallel.processes=2")
    with pytest.raises(InputError, match=f"parallel.tensor_parallel_degree{said}"):
        check(tmp_path, *HELD, *settings)


def test_a_plan_that_asks_for_more(tmp_path, monkeypatch):
    cases.write_model(tmp_path, family="llama", **EVEN)
    check(tmp_path, *HELD)
    plan = LlamaConfig.base_model_tp_plan | {"layers.*.mlp.up_proj": "packed_colwise"}
    monkeypatch.setattr(LlamaConfig, "base_model_tp_plan", plan)
    with pytest.raises(InputError, match=r"tensor_parallel_degree: not for this llama model, whose .* packed_colwise"):
        check(tmp_path, *HELD)


def test_a_critic_is_needed_only_where_it_says_q(models, monkeypatch):
    import dapo_fast.models.value as value

    value.token_classifier.cache_clear()
    monkeypatch.setattr(value, "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING", {})
    monkeypatch.setattr(value, "MODEL_MAPPING", {})
    check(models / "dense", "advantages.source=response")
    with pytest.raises(InputError, match="llama: transformers has no backbone for this family"):
        check(models / "dense")


def test_a_run_refuses_before_it_samples(models, tmp_path):
    overrides = [f"model.path={models / 'dense'}", "parallel.processes=3", "parallel.replicas=2"]
    config = load_config(preset="arithmetic", overrides=[*overrides, "model.device=cpu"])
    with pytest.raises(InputError, match=r"parallel\.replicas"):
        Pipeline(RunDirectory(tmp_path / "run", config)).run()
    assert not (tmp_path / "run" / "sft").exists()


def test_what_fails_in_bf16_only_is_refused_where_that_is_asked_for(tmp_path):
    """transformers' own MiniMax adds fp32 states to bf16 ones."""
    cases.write_model(tmp_path, family="minimax", head_dim=16, layer_types=["linear_attention", "full_attention"])
    check(tmp_path, "model.dtype=float32")
    with pytest.raises(InputError, match="MiniMaxForCausalLM cannot read a small pack"):
        check(tmp_path, "model.dtype=bfloat16")


def test_a_model_of_several_models_is_refused(tmp_path):
    parts = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma3Config(
        text_config=parts | {"vocab_size": 64, "head_dim": 16, "num_key_value_heads": 1},
        vision_config=parts | {"image_size": 28, "patch_size": 14},
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="made of several models"):
        check(tmp_path)


def test_a_family_whose_classifier_has_a_head_of_its_own_kind_gets_ours(tmp_path):
    """Its files call the policy's head "embed_out", which a critic leaves out."""
    cases.write_model(tmp_path, family="gpt_neox")
    for settings in ([], ["parallel.processes=2"]):
        check(tmp_path, *settings)
    assert load_value_model(tmp_path, init="causal_lm").value_head.out_features == 1
