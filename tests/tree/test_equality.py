"""Packs read what separate sequences read: log-probabilities, losses, values and every parameter's gradient."""

import random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tree_cases import (
    FAMILIES,
    assert_same_gradients,
    gradients,
    random_tree,
    separate_logps,
    separate_loss,
    separate_value_loss,
    separate_values,
)

from dapo_fast.data.batches import actor_groups, critic_groups
from dapo_fast.data.packing import pack_actor, pack_candidates, pack_critic
from dapo_fast.models.loading import new_causal_lm
from dapo_fast.models.readpath import PolicyReader, ValueReader
from dapo_fast.models.value import ValueModel

BETA = 0.1
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-5}  # float64: transformers' norms and RoPE compute in float32


def trees_of(seed: int, count: int):
    rng = random.Random(seed)
    return [random_tree(rng, f"p{index}") for index in range(count)]


def policy(family: str, dtype: torch.dtype, attention: str):
    model = new_causal_lm(FAMILIES[family], seed=1, dtype=dtype, attention=attention)
    with torch.no_grad():
        for parameter in model.parameters():  # away from the small initial weights, so that attention matters
            parameter.mul_(3.0)
    return model


def sum_actor(reader, packs, normalizer):
    loss, logps, keys = 0.0, [], []
    for pack in packs:
        out = reader(pack, BETA, normalizer)
        out.loss.backward()
        loss += out.loss.item()
        logps.append(out.step_logps)
        keys += pack.step_keys.tolist()
    return loss, torch.cat(logps), keys


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    budget=st.sampled_from([8, 24, 1000]),
    attention=st.sampled_from(["dense", "tree_sdpa"]),
    flat=st.booleans(),
)
def test_actor(family, dtype, seed, budget, attention, flat):
    trees = trees_of(seed, 2)
    groups = actor_groups(trees)
    pairs = sum(len(trees[t].states[s].candidates) for t, s in groups)
    model = policy(family, dtype, attention)
    packs = pack_actor(trees, groups, budget, flat=flat)
    loss, logps, keys = sum_actor(PolicyReader(model), packs, pairs) if packs else (0.0, torch.zeros(0), [])
    actual = gradients(model)
    assert len({tuple(k) for k in keys}) == pairs == len(keys)
    if not pairs:
        return
    expected_logps = separate_logps(model, trees, keys)
    expected_loss = separate_loss(expected_logps, trees, keys, BETA, pairs)
    expected_loss.backward()
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(logps.double(), expected_logps.detach(), rtol=tolerance, atol=tolerance)
    assert loss == pytest.approx(expected_loss.item(), rel=tolerance)
    assert_same_gradients(actual, gradients(model), tolerance)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(seed=st.integers(0, 10**6), budget=st.sampled_from([6, 1000]), flat=st.booleans())
def test_critic(family, seed, budget, flat):
    trees = trees_of(seed, 2)
    value_model = ValueModel.from_config(FAMILIES[family], seed=2, attn_implementation="dapo_auto")
    torch.nn.init.normal_(value_model.value_head.weight, generator=torch.Generator().manual_seed(3))
    reader = ValueReader(value_model)
    loss, values, keys = 0.0, [], []
    for pack in pack_critic(trees, critic_groups(trees), budget, flat=flat):
        out = reader(pack, normalizer=1.0)
        out.loss.backward()
        loss += out.loss.item()
        values.append(out.values)
        keys += pack.value_keys.tolist()
    actual = gradients(reader.model)
    assert sorted(keys) == [[t, s, -1] for t, s in critic_groups(trees)]
    logits = separate_values(value_model, trees, keys)
    expected = separate_value_loss(logits, trees, keys)
    expected.backward()
    torch.testing.assert_close(torch.cat(values).double(), logits.sigmoid().detach(), rtol=1e-5, atol=1e-6)
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert_same_gradients(actual, gradients(reader.model), 1e-5)

    values, keys = [], []
    for pack in pack_candidates(trees, budget, flat=flat):
        values.append(reader.values(pack))
        keys += pack.value_keys.tolist()
    wanted = [[t, s, -1] for t, tree in enumerate(trees) for s in range(len(tree.states))]
    wanted += [
        [t, s, c]
        for t, tree in enumerate(trees)
        for s, state in enumerate(tree.states)
        for c, candidate in enumerate(state.candidates)
        if not candidate.terminal
    ]
    assert sorted(keys) == sorted(wanted)
    logits = separate_values(value_model, trees, keys)
    torch.testing.assert_close(torch.cat(values).double(), logits.sigmoid().detach(), rtol=1e-5, atol=1e-6)
