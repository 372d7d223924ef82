"""The dry run against what a real pass keeps, and its words."""

import re
from dataclasses import replace

import pytest
import torch
import train_cases as cases
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, Qwen2Config

from dapo_fast.config import load_config
from dapo_fast.errors import InputError
from dapo_fast.train.memory import _kept, estimate, longest_pack
from dapo_fast.train.place import Place, rank_memory_gib

SETTINGS = ["model.path=x", "data.problems=x", "model.dtype=bfloat16"]


@pytest.fixture(scope="module")
def seven(tmp_path_factory):
    """The config of a 7-billion-parameter Qwen2.5, without weights."""
    directory = tmp_path_factory.mktemp("seven")
    Qwen2Config(
        vocab_size=152064,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        tie_word_embeddings=False,
        use_sliding_window=False,
    ).save_pretrained(directory)
    return directory


def parts(report, name):
    found = next(e for e in report.estimates if e.name == name)
    return found, dict(found.fixed)


def test_weights_gradients_and_states_of_a_7b(seven):
    config = load_config(overrides=SETTINGS)
    actor, fixed = parts(estimate(seven, config, 8, device_gib=80), "actor")
    assert actor.parameters == actor.trainable == 7_615_616_512
    assert fixed["weights, fp32 where trained"] == 4 * actor.parameters / 8
    assert fixed["optimizer states, float32"] == 8 * actor.parameters / 8
    critic, _ = parts(estimate(seven, config, 8, device_gib=80), "critic")
    assert critic.parameters == 7_615_616_512 - 152064 * 3584 + 3584 + 1


def test_what_saves_memory_saves_memory(seven):
    def total(*overrides, processes=1):
        report = estimate(seven, load_config(overrides=[*SETTINGS, *overrides]), processes, device_gib=80)
        return parts(report, "actor")[0]

    plain = total()
    assert plain.longest_pack == 0 and "nothing fits" in str(plain)
    assert (
        total("actor.optimizer_state=int8").total(0) < total("actor.optimizer_state=bfloat16").total(0) < plain.total(0)
    )
    shared = [total(f"parallel.context_parallel_degree={n}", processes=8).per_token for n in (1, 2, 4)]
    assert shared == sorted(set(shared))  # what is gathered of the others' rows
    held = [total(f"parallel.tensor_parallel_degree={n}", processes=8) for n in (1, 2, 4)]
    for taken in ([one.per_token for one in held], [one.total(0) for one in held]):
        assert taken == sorted(set(taken), reverse=True)
    full, selective = (total(f"parallel.activation_checkpointing={k}").per_token for k in ("full", "selective"))
    assert full < selective < plain.per_token
    lora = total("actor.lora_rank=16")
    assert lora.trainable < 0.01 * lora.parameters
    assert lora.total(0) < 0.4 * plain.total(0)
    assert lora.longest_pack > 0
    assert total(processes=8).total(0) < 0.3 * plain.total(0)
    assert "does NOT fit" in str(total("actor.pack_tokens=200000", processes=8))
    # A step's gradients, or its weights, held whole on every rank.
    less = total(processes=8).total(0)
    assert total("parallel.defer_reduction=true", processes=8).total(0) == less + 4 * plain.parameters
    assert total("parallel.reshard_after_forward=false", processes=8).total(0) > less + plain.parameters
    # Replicas hold whole copies.
    hybrid = dict(total("parallel.replicas=2", processes=8).fixed)["weights, fp32 where trained"]
    assert hybrid == dict(total(processes=4).fixed)["weights, fp32 where trained"]


def test_activations_are_what_a_block_keeps():
    """Counted against the tensors that autograd saves in one more layer of a real model, in bf16 on the CPU."""

    def kept(layers):
        config = LlamaConfig(
            vocab_size=64, hidden_size=128, intermediate_size=384, num_hidden_layers=layers, num_attention_heads=4,
            num_key_value_heads=2, attn_implementation="sdpa",
        )  # fmt: skip
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        sizes = {}
        weights = {p.data_ptr() for p in model.parameters()}

        def note(tensor):
            if tensor.data_ptr() not in weights:
                sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            out = model(torch.zeros((1, 256), dtype=torch.long)).logits  # noqa: F841 - held while counting
        return sum(sizes.values()) / 256, config

    (three, config), (two, _) = kept(3), kept(2)
    # transformers' own norms and rotary embedding keep fp32 copies that Liger's kernels do not.
    assert 1.0 < (three - two) / _kept(config, "none", 2, 1) < 2.2


def test_settings_that_do_not_go_together(seven, tmp_path):
    with pytest.raises(InputError, match="replicas 3"):
        estimate(seven, load_config(overrides=[*SETTINGS, "parallel.replicas=3"]), 8)
    with pytest.raises(InputError):
        estimate(tmp_path, load_config(overrides=SETTINGS), 8)


def test_what_does_not_fit_is_a_warning_with_the_remedy(seven):
    config = load_config(overrides=[*SETTINGS, "actor.pack_tokens=200000", "critic.pack_tokens=4096"])
    (line,) = estimate(seven, config, 8, device_gib=80).warnings()
    fits = int(re.fullmatch(r"actor: a pack of 200000 tokens .* set actor.pack_tokens to (\d+) or less", line)[1])
    smaller = load_config(overrides=[*SETTINGS, f"actor.pack_tokens={fits}", "critic.pack_tokens=4096"])
    assert not estimate(seven, smaller, 8, device_gib=80).warnings()
    assert [line.split(":")[0] for line in estimate(seven, config, 1, device_gib=24).warnings()] == ["critic", "actor"]
    assert all("nothing fits" in line for line in estimate(seven, config, 1, device_gib=24).warnings())
    assert rank_memory_gib(torch.device("cpu"), 2) == pytest.approx(rank_memory_gib(torch.device("cpu"), 1) / 2)


def test_packs_of_long_trunks_may_be_as_long_as_what_is_counted_to_fit(seven):
    """In training what the dry run says, in reading more; or what is set."""
    config = load_config(overrides=[*SETTINGS, "parallel.activation_checkpointing=full"])
    place = Place(config.parallel, 8, True, "cuda", 80 * 2**30)
    report = estimate(seven, config, 8, device_gib=80)
    for name, settings in (("actor", config.actor), ("critic", config.critic)):
        longest = longest_pack(name, seven, settings, place)
        assert longest == parts(report, name)[0].longest_pack > settings.pack_tokens
        assert longest_pack(name, seven, config.advantages, place) > longest
    assert longest_pack("actor", seven, config.actor, replace(place, processes=1)) == 0
    small = load_config(overrides=[*SETTINGS, "actor.longest_pack=5000"])
    assert longest_pack("actor", seven, small.actor, place) == 5000


def test_the_dry_run_reads_no_weights(tmp_path):
    cases.write_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert AutoConfig.from_pretrained(tmp_path).hidden_size == 32
    assert "actor" in str(estimate(tmp_path, load_config(overrides=SETTINGS), 2))
