"""AdamW: what decays, states of few bits, the rate."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, Cohere2Config, GptOssConfig, Qwen3Config

from dapo_fast.config import OptimSettings
from dapo_fast.train.checkpoint import Checkpoints, training_state
from dapo_fast.train.optim import learning_rate, make_optimizer, set_rate
from dapo_fast.train.parallel import World

TINY = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8,
}  # fmt: skip


def moved_by_decay(model):
    """Names of the parameters that a step without any gradient moves."""
    for parameter in model.parameters():
        torch.nn.init.ones_(parameter)
    optimizer = make_optimizer(model, OptimSettings(weight_decay=0.5))
    set_rate(optimizer, 0.1)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return {name for name, parameter in model.named_parameters() if (parameter != 1).any()}


@pytest.mark.parametrize(
    "config, moved, still",
    [
        (Qwen3Config(**TINY, attention_bias=True), ["q_proj.weight", "embed_tokens.weight"], ["q_norm.weight"]),
        (Cohere2Config(**TINY, pad_token_id=0), ["q_proj.weight"], ["input_layernorm.weight"]),
        (
            GptOssConfig(**TINY, num_local_experts=2, num_experts_per_tok=1),
            ["mlp.experts.gate_up_proj", "mlp.router.weight"],
            ["mlp.experts.gate_up_proj_bias", "mlp.experts.down_proj_bias", "self_attn.sinks", "q_proj.bias"],
        ),
    ],
)
def test_matrices_decay_and_norms_and_biases_do_not(config, moved, still):
    model = AutoModelForCausalLM.from_config(config)
    found = moved_by_decay(model)
    names = {name for name, _ in model.named_parameters()}
    for suffix in (*moved, *still):
        mine = {name for name in names if name.endswith(suffix)}
        assert mine and mine & found == (mine if suffix in moved else set()), suffix
    assert not any("norm" in name or name.endswith("bias") for name in found)


def test_a_value_head_does_not_decay():
    critic = AutoModelForTokenClassification.from_config(Qwen3Config(**TINY, num_labels=1))
    assert {name.split(".")[0] for name in moved_by_decay(critic)} == {"model"}


@pytest.mark.parametrize("kind", ["bfloat16", "int8"])
def test_small_optimizer_states_train_alike_and_resume(tmp_path, kind, monkeypatch):
    """Five steps, a checkpoint, five more in another process' shoes: the same bits; near fp32 states all the way."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)  # torchao's update as it stands, uncompiled

    def learner(states):
        torch.manual_seed(0)
        layer = torch.nn.Linear(128, 64)
        return layer, make_optimizer(layer, OptimSettings(lr=1e-2, optimizer_state=states))

    def steps(layer, optimizer, first, last):
        for step in range(first, last):
            set_rate(optimizer, 1e-2)
            x = torch.randn(32, 128, generator=torch.Generator().manual_seed(step))
            (layer(x) - x[:, :64]).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        return layer.weight.detach().clone()

    layer, optimizer = learner(kind)
    steps(layer, optimizer, 0, 5)
    checkpoints = Checkpoints(tmp_path, World(0, 1, torch.device("cpu"), torch.float32, None), 2, "d")
    checkpoints.save(5, training_state(layer, optimizer, kind))
    straight = steps(layer, optimizer, 5, 10)  # the save is still under way: it must not see this
    checkpoints.wait()
    layer, optimizer = learner(kind)
    assert checkpoints.resume(training_state(layer, optimizer, kind)) == 5
    assert torch.equal(steps(layer, optimizer, 5, 10), straight)
    exact = steps(*learner("float32"), 0, 10)
    assert not torch.equal(straight, exact)
    assert (straight - exact).abs().mean() < 0.1 * (exact - learner("float32")[0].weight).abs().mean()


def test_learning_rate():
    warm = OptimSettings(lr=1.0, warmup_steps=4, schedule="cosine")
    assert [learning_rate(s, 12, warm) for s in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert learning_rate(4, 12, warm) == 1.0
    assert learning_rate(8, 12, warm) == pytest.approx(0.5)
    assert 0 < learning_rate(11, 12, warm) < 0.05
    constant = OptimSettings(lr=0.5, warmup_steps=0)
    assert {learning_rate(s, 3, constant) for s in range(3)} == {0.5}


def test_optimizer_states_exist_before_the_first_step_and_change_nothing():
    layer = torch.nn.Linear(3, 1, bias=False)
    parameter = layer.weight
    torch.nn.init.ones_(parameter)
    optimizer = make_optimizer(layer, OptimSettings(weight_decay=0.1))
    assert parameter.tolist() == [[1, 1, 1]]
    state = optimizer.state[parameter]
    assert float(state["step"]) == 0 and not state["exp_avg"].any() and not state["exp_avg_sq"].any()
    assert math.isclose(optimizer.param_groups[0]["weight_decay"], 0.1)
