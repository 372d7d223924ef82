"""The routers' load-balancing loss: transformers' own number and gradients, however a batch is packed and dealt."""

import random
import re

import pytest
import torch
import train_cases as cases
from transformers import AutoModelForCausalLM
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from dapo_fast.config import ActorSettings, load_config
from dapo_fast.data.batches import actor_groups
from dapo_fast.data.dealing import Ranks
from dapo_fast.data.packing import pack_actor, pack_sequences
from dapo_fast.data.shares import token_shares
from dapo_fast.errors import InputError
from dapo_fast.models.loading import causal_lm_skeleton, load_causal_lm
from dapo_fast.models.readpath import PolicyReader
from dapo_fast.train.balance import Balance, routers
from dapo_fast.train.parallel import ALONE
from dapo_fast.train.preflight import check_training

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 16}
FAMILIES = {
    "qwen3_moe": EXPERTS,
    "mixtral": {"num_local_experts": 4},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    directory = tmp_path_factory.mktemp("routed")
    cases.write_model(directory / "policy", family="qwen3_moe", **EXPERTS)
    cases.write_trees(directory / "trees")
    return directory


def balanced(directory, packs):
    """Value, and the gradient of every parameter, of 0.5 · the loss over ``packs``, one after another."""
    model = load_causal_lm(directory)
    reader = PolicyReader(model)
    balance = Balance(reader, model, ALONE, 0.5)
    balance.measure([packs])
    total = 0.0
    for number, pack in enumerate(packs):
        with balance.listening() as heard:
            reader(pack, objective="logps")
        loss = balance.loss(heard, number)
        loss.backward()
        total += loss.item()
    assert total == pytest.approx(0.5 * balance.value, rel=1e-5)
    return balance.value, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same(first, second):
    assert first[0] == pytest.approx(second[0], rel=1e-5)
    assert first[1].keys() == second[1].keys()
    for name, gradient in first[1].items():
        torch.testing.assert_close(gradient, second[1][name], rtol=1e-4, atol=1e-7, msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_sequences_without_padding_give_what_transformers_gives(family, tmp_path):
    policy = cases.write_model(tmp_path / "policy", family=family, **FAMILIES[family])
    rng = random.Random(3)
    rows = [[rng.randrange(6, 30) for _ in range(9)] for _ in range(3)]
    rows[1][:4] = rows[0][:4]  # another sequence's, though the tokens are the same
    theirs = AutoModelForCausalLM.from_pretrained(policy, attn_implementation="eager")
    logits = theirs.model(torch.tensor(rows), output_router_logits=True).router_logits
    loss = load_balancing_loss_func(logits, 4, 2)
    (0.5 * loss).backward()
    expected = loss.item(), {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    sequences = [(row[:5], [*row[5:], 5]) for row in rows]
    assert_same(balanced(policy, pack_sequences(sequences, 256)), expected)
    # One a pack, and with padding.
    assert_same(balanced(policy, pack_sequences(sequences, 9)), expected)
    assert_same(balanced(policy, pack_sequences(sequences, 256, [64])), expected)


def test_how_trees_are_packed_changes_nothing(base):
    trees = cases.make_trees(4)
    groups = actor_groups(trees)
    (whole,) = pack_actor(trees, groups, 10_000)
    expected = balanced(base / "policy", [whole])
    for packs in (
        pack_actor(trees, groups, 64),
        pack_actor(trees, groups, 100, [128], ranks=Ranks(2, 32, 32)),
        pack_actor(trees, groups, 256, flat=True),
    ):
        assert sum(pack.tokens for pack in packs) > whole.tokens  # prefixes are read again
        assert sum(share.sum().item() for share in token_shares(packs)) == pytest.approx(whole.tokens)
        assert_same(balanced(base / "policy", packs), expected)


@pytest.mark.parametrize(
    ("family", "changes"),
    [("llama", {}), ("deepseek_v3", {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_key_value_heads": 2})],
)
def test_families_without_such_a_loss_are_refused_before_anything_is_sampled(family, changes, tmp_path):
    policy = cases.write_model(tmp_path / "policy", family=family, **changes)
    words = f"router_aux: transformers has no load-balancing loss of a {family} model's routers"
    with pytest.raises(InputError, match=re.escape(words)):
        routers(causal_lm_skeleton(policy))
    given = [f"model.path={policy}", "data.task=arithmetic", "model.device=cpu"]
    for stage in ("actor", "critic"):
        with pytest.raises(InputError, match="router_aux"):
            check_training(load_config(overrides=[*given, f"{stage}.router_aux=0.1"]).at(1), policy)


def test_settings_say_it_only_where_it_is_on():
    assert "router_aux" not in ActorSettings().model_dump()
    assert ActorSettings(router_aux=0.1).model_dump()["router_aux"] == 0.1
