"""The CUDA paths: FlexAttention for trees, variable-length kernels for flat packs. Without a GPU nothing here runs."""

import random
import sys
from pathlib import Path

import pytest
import torch
from transformers import Qwen2Config

from dapo_fast.data.batches import actor_groups
from dapo_fast.data.pack import pad_lengths
from dapo_fast.data.packing import pack_actor
from dapo_fast.models.attention import Dense, plan_attention
from dapo_fast.models.loading import new_causal_lm
from dapo_fast.models.readpath import PolicyReader

sys.path.insert(0, str(Path(__file__).parents[1] / "tree"))

from tree_cases import random_tree

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

CONFIG = Qwen2Config(
    vocab_size=64,
    hidden_size=192,
    intermediate_size=256,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    pad_token_id=0,
)


def packs_of(flat: bool, lengths: list[int] | None):
    rng = random.Random(0)
    trees = [random_tree(rng, f"p{index}", words=30, steps=6) for index in range(8)]
    return [pack.to("cuda") for pack in pack_actor(trees, actor_groups(trees), 2048, lengths, flat)]


def scored(model, packs) -> tuple[dict, dict]:
    """Log-probabilities by step, and gradients of the loss by parameter."""
    logps, reader = {}, PolicyReader(model)
    for pack in packs:
        out = reader(pack, 0.1, 100.0)
        out.loss.backward()
        logps |= dict(zip(map(tuple, pack.step_keys.tolist()), out.step_logps.tolist(), strict=True))
    gradients = {name: p.grad.float().clone() for name, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return logps, gradients


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_against_dense(flat, dtype):
    pack = packs_of(flat, pad_lengths(2048, "cuda"))[0]
    shapes = [(1, pack.length, heads, 32) for heads in (6, 2, 2)]
    tensors = [torch.randn(shape, device="cuda", dtype=dtype).transpose(1, 2).requires_grad_() for shape in shapes]
    upstream = torch.randn(1, pack.length, 6, 32, device="cuda", dtype=dtype)
    exact = [x.detach().double().requires_grad_() for x in tensors]
    out = plan_attention(pack, "auto")(*tensors, 0.2)
    wanted = Dense(pack.subtree_end)(*exact, 0.2)
    found = (out, *torch.autograd.grad(out, tensors, upstream))
    expected = (wanted, *torch.autograd.grad(wanted, exact, upstream.double()))
    for a, b in zip(found, expected, strict=True):
        # float32 products of FlexAttention may run in TF32.
        assert (a.double() - b).abs().max() <= (5e-3 if dtype == torch.float32 else 4e-2) * b.abs().max()


def test_bf16_trees_are_as_close_to_flat_packs_as_flat_packs_are_to_each_other():
    pytest.importorskip("liger_kernel")  # what a model on CUDA is trained with
    model = new_causal_lm(CONFIG, 0, "cuda", torch.bfloat16)
    flat, flat_gradients = scored(model, packs_of(True, [2048]))
    other, other_gradients = scored(model, packs_of(True, [4096]))
    tree, tree_gradients = scored(model, packs_of(False, [2048]))
    assert flat.keys() == other.keys() == tree.keys()
    exact, _ = scored(model.float(), packs_of(True, [2048]))

    def distance(one, two):
        return max(abs(one[key] - two[key]) for key in one)

    noise = max(distance(flat, other), distance(flat, exact))
    assert distance(tree, exact) <= 2 * noise
    for name, gradient in flat_gradients.items():
        noise = max((gradient - other_gradients[name]).norm().item(), 2e-2 * gradient.norm().item())
        assert (tree_gradients[name] - gradient).norm() <= 2 * noise, name
