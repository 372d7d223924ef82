"""Rotary frequencies that change with the longest sequence at hand: read where they hold, never sampled beyond."""

import random

import pytest
import torch
import transformers as hf
from family_cases import SIZES, tokenizer
from tree_cases import random_tree, separate_logps, shaken

from dapo_fast.data.batches import actor_groups
from dapo_fast.data.packing import pack_actor
from dapo_fast.errors import InputError
from dapo_fast.models.readpath import PolicyReader
from dapo_fast.rollout.in_process import InProcessEngine

MOST = 16
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0, 1.5],
    "long_factor": [3.0, 5.0],
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
CONFIGS = {
    "longrope": lambda: hf.Phi3Config(**SIZES, original_max_position_embeddings=MOST, rope_parameters=LONGROPE),
    "dynamic": lambda: hf.LlamaConfig(**SIZES | {"max_position_embeddings": MOST}, rope_parameters=DYNAMIC),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_packs_are_read_as_far_as_the_frequencies_hold(kind):
    model = shaken(CONFIGS[kind]())
    assert InProcessEngine(model, tokenizer()).context == MOST
    model.set_attn_implementation("dapo_auto")
    trees = [random_tree(random.Random(seed), f"p{seed}", steps=2, width=3) for seed in (3, 5)]
    (pack,) = pack_actor(trees, actor_groups(trees), 10_000)
    read = PolicyReader(model).step_logps(pack)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        alone = separate_logps(model, trees, [tuple(key) for key in pack.step_keys.tolist()])
    torch.testing.assert_close(read.double(), alone, rtol=2e-5, atol=2e-5)
    model.set_attn_implementation("dapo_auto")
    deep = [random_tree(random.Random(3), steps=9)]
    (pack,) = pack_actor(deep, actor_groups(deep), 10_000)
    with pytest.raises(InputError, match=f"{int(pack.position_ids.max()) + 1} tokens: beyond {MOST} the rotary"):
        PolicyReader(model).step_logps(pack)
