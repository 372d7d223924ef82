"""The dry run's work: operations against torch's own counter, tokens against counts by hand."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    GraniteMoeConfig,
    MixtralConfig,
    Qwen2Config,
    Qwen3MoeConfig,
)

from dapo_fast.cli import main
from dapo_fast.config import load_config
from dapo_fast.models.size import active_body
from dapo_fast.train.cost import Lengths, _Flop, iteration_cost, plans, sampled_tokens


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def model(request, tmp_path_factory):
    config = Qwen2Config(
        vocab_size=320, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=96, tie_word_embeddings=request.param, architectures=["Qwen2ForCausalLM"],
    )  # fmt: skip
    path = tmp_path_factory.mktemp("model")
    config.save_pretrained(path)
    return path, AutoModelForCausalLM.from_config(config, attn_implementation="eager")


def test_operations_are_those_that_torch_counts(model):
    path, network = model
    tokens = 96
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, tokens, dtype=torch.long))
    # The counter sees every query with every key: a mean depth of all tokens. Norms and biases are not in it.
    assert _Flop(path)(tokens, tokens, tokens) == pytest.approx(counter.get_total_flops(), rel=0.01)


@pytest.mark.parametrize(
    "config",
    [
        Qwen3MoeConfig(num_experts=8, num_experts_per_tok=2, moe_intermediate_size=24, head_dim=16),
        MixtralConfig(num_local_experts=4, num_experts_per_tok=1),
        DeepseekV3Config(n_routed_experts=8, num_experts_per_tok=2, moe_intermediate_size=24, n_group=1, topk_group=1,
                         first_k_dense_replace=1),
        GraniteMoeConfig(num_local_experts=4, num_experts_per_tok=1),
    ],
    ids=lambda config: config.model_type,
)  # fmt: skip
def test_of_routed_experts_only_those_count_that_a_token_goes_to(config):
    config.update({"vocab_size": 320, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4})
    config.update({"num_key_value_heads": 4, "intermediate_size": 96, "tie_word_embeddings": False})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    stacked = [n for n, p in model.named_parameters() if p.ndim == 3]
    assert len(stacked) >= 4  # two matrices in each routed layer
    outside = sizes["model.embed_tokens.weight"] + sizes["lm_head.weight"]
    routed = sum(sizes[name] for name in stacked)
    share = 1 / 4
    assert active_body(model) == sum(sizes.values()) - outside - (1 - share) * routed


def test_tokens_of_a_small_iteration(model):
    settings = ["collect.samples=4", "collect.kept=2", "collect.completions=3", "critic.epochs=2", "actor.epochs=3"]
    settings.append("collect.reuse_samples=false")
    config = load_config(overrides=[f"model.path={model[0]}", "data.problems=none", *settings])
    cost = iteration_cost(model[0], config, problems=10, lengths=Lengths(prompt=5, response=12, steps=3))
    work = {stage.stage: stage for stage in cost.stages}
    # A prompt, and two responses with two boundaries inside: 5 states a problem. Completions of a response from its
    # three boundaries have 12, 8 and 4 tokens, 8 on average.
    assert work["collect"].sampled == 10 * (4 * 12 + 5 * 3 * 8)
    assert work["critic"].packed == 2 * 10 * (5 + 2 * 12)
    assert work["advantages"].packed == 10 * (5 + 2 * 12 + 5 * 3 * 4)
    assert work["actor"].packed == 3 * work["advantages"].packed
    assert work["actor"].flat == 3 * 10 * 5 * 3 * (5 + 6 + 4)
    more = iteration_cost(model[0], config, problems=20, lengths=Lengths(prompt=5, response=12, steps=3))
    assert [b.flop / a.flop for a, b in zip(cost.stages, more.stages)] == pytest.approx([2] * 4)


def test_tokens_of_plans():
    lengths = Lengths(prompt=5, response=12, steps=3)

    def tokens(**change):
        config = load_config(overrides=["model.path=m", "data.problems=none", "collect.samples=4", "collect.kept=2"])
        return sampled_tokens(config.collect.model_copy(update=change), 10, lengths)

    responses = 10 * 4 * 12
    assert tokens(completions=3, reuse_samples=True) == responses + 10 * 4 * 3 * 8
    assert tokens(completions=3, reuse_samples=True, every_state=2) == responses + 10 * 2 * 3 * 8
    # Without completions every response is a trunk: nine states, with first steps of four tokens.
    assert tokens(completions=0) == responses
    assert tokens(completions=0, first_steps=2) == responses + 10 * 9 * 2 * 4
    config = load_config(preset="paper", overrides=["model.path=m", "data.problems=none"])
    printed = plans(config, 10, lengths)
    assert "16 completions of every state (the paper)" in printed and "100%" in printed


def test_command(model, capsys):
    arguments = ["estimate", str(model[0]), "--problems", "50", "--response-tokens", "64", "--response-steps", "4"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "responses alone" in printed and "50 problems" in printed and "EFLOP" in printed and "one rank" in printed
    assert main([*arguments[:-1], "0"]) == 2
    assert "--response-steps 0: at least 1" in capsys.readouterr().err
