"""Nothing reaches a step but its own prefix: not a sibling, not another tree, not padding."""

import random
from dataclasses import replace

import pytest
import torch
from tree_cases import FAMILIES, VOCABULARY, random_tree

from dapo_fast.data.batches import actor_groups
from dapo_fast.data.pack import empty_pack
from dapo_fast.data.packing import pack_actor, pack_candidates
from dapo_fast.models.attention import implementation
from dapo_fast.models.loading import new_causal_lm
from dapo_fast.models.readpath import PolicyReader, ValueReader
from dapo_fast.models.value import ValueModel


def reader_of(attention: str, family: str = "llama") -> PolicyReader:
    model = new_causal_lm(FAMILIES[family], seed=1, dtype=torch.float32, attention=attention)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
    return PolicyReader(model)


@pytest.mark.parametrize("attention", ["dense", "tree_sdpa", "flex"])
def test_changing_a_branch_leaves_the_others(attention):
    rng = random.Random(5)
    trees = [random_tree(rng, f"p{index}", words=20) for index in range(3)]
    (pack,) = pack_actor(trees, actor_groups(trees), 10**4, lengths=[256])
    reader = reader_of(attention)
    before = reader.step_logps(pack)
    rows = torch.arange(pack.length)
    sees = (rows[None, :] <= rows[:, None]) & (rows[:, None] < pack.subtree_end[None, :])
    step_of_entry = torch.repeat_interleave(torch.arange(pack.steps), pack.cu_steps.diff().long())
    changed_something = 0
    for start, length, _ in pack.runs.tolist()[:40]:
        ids = pack.input_ids.clone()
        ids[start : start + length] = (ids[start : start + length] + 1 + rng.randrange(VOCABULARY - 1)) % VOCABULARY
        after = reader.step_logps(replace(pack, input_ids=ids))
        touched = torch.zeros(pack.steps, dtype=torch.bool)
        touched[step_of_entry[sees[pack.hidden_rows, start : start + length].any(1)]] = True
        assert torch.equal(after[~touched], before[~touched])
        changed_something += int((after[touched] != before[touched]).sum())
    assert changed_something > 0


def test_padding_changes_nothing():
    trees = [random_tree(random.Random(7))]
    (short,) = pack_actor(trees, actor_groups(trees), 10**4)
    (long,) = pack_actor(trees, actor_groups(trees), 10**4, lengths=[512])
    reader = reader_of("tree_sdpa")
    torch.testing.assert_close(reader.step_logps(short), reader.step_logps(long), rtol=0, atol=1e-6)


@pytest.mark.parametrize("objective", ["direct_advantage", "cross_entropy"])
def test_an_empty_pack_gives_zero_gradients(objective):
    reader = reader_of("auto")
    out = reader(empty_pack([8]), normalizer=10.0, objective=objective)
    out.loss.backward()
    assert out.loss.item() == 0
    assert out.step_logps.shape == (0,)
    for name, parameter in reader.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


def test_an_empty_pack_has_no_values():
    value_model = ValueModel.from_config(FAMILIES["qwen3"], seed=0, attn_implementation="dapo_auto")
    reader = ValueReader(value_model)
    out = reader(empty_pack(), normalizer=10.0)
    out.loss.backward()
    assert out.loss.item() == 0
    assert all(p.grad is not None and not p.grad.any() for p in reader.parameters())
    assert reader.values(empty_pack()).shape == (0,)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_backends_agree(dtype):
    trees = [random_tree(random.Random(seed)) for seed in range(4)]
    (pack,) = pack_candidates(trees, 10**4)
    values = {}
    for attention in ("dense", "tree_sdpa", "flex"):
        value_model = ValueModel.from_config(FAMILIES["llama"], 0, dtype, attn_implementation=implementation(attention))
        torch.nn.init.normal_(value_model.value_head.weight, generator=torch.Generator().manual_seed(3))
        values[attention] = ValueReader(value_model).values(pack)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(values["tree_sdpa"], values["dense"], rtol=0, atol=tolerance)
    torch.testing.assert_close(values["flex"], values["dense"], rtol=0, atol=tolerance)
