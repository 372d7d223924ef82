"""Blocks that are compiled or checkpointed: one graph with the attention in it, and no attention computed twice."""

import pytest
import torch
from test_attention import SMALL, big_tree, pack_of
from torch import Tensor, nn
from transformers import LlamaConfig

from dapo_fast.config import ParallelSettings
from dapo_fast.data.batches import actor_groups
from dapo_fast.data.pack import Pack, pad_lengths
from dapo_fast.data.packing import pack_actor, pack_sequences
from dapo_fast.models.loading import new_causal_lm
from dapo_fast.models.readpath import PolicyReader
from dapo_fast.models.tree_flex import allow_recompiles, compiled_region
from dapo_fast.train.blocks import blocks, prepare_blocks

CONFIG = LlamaConfig(**(SMALL | {"vocab_size": 1000}), pad_token_id=0)


def two_packs(backend: str) -> list[Pack]:
    """Of one length, and different trees (sequences, where only those are read)."""
    if backend == "varlen":
        return [pack_sequences([([1] * n, [2, 3]) for n in (3, 9, last)], 100, [64])[0] for last in (5, 5)]
    trees = [big_tree(seed, steps=3, length=6) for seed in (3, 4)]
    return [pack_actor([tree], actor_groups([tree]), 10**4, [1024])[0] for tree in trees]


@pytest.mark.parametrize("backend", ["flex", "varlen", "dense"])
def test_a_block_is_one_graph(backend):
    """For all layers, and for every pack of a length."""
    torch._dynamo.reset()
    model, packs, graphs = new_causal_lm(CONFIG, 0, attention=backend), two_packs(backend), []
    reader = PolicyReader(model)
    wanted = [reader.step_logps(pack) for pack in packs]

    def counting(graph, inputs):
        graphs.append(graph)
        return graph

    for block in blocks(model):
        block.compile(fullgraph=True, backend=counting)
    for pack, logps in zip(packs, wanted, strict=True):
        torch.testing.assert_close(reader.step_logps(pack), logps)
    assert len(graphs) == 1


def test_on_a_cpu_a_block_breaks_around_its_attention_alone(monkeypatch):
    torch._dynamo.reset()
    model, graphs = new_causal_lm(CONFIG, 0), []
    pack = pack_of(big_tree(3, steps=3, length=6))
    wanted = PolicyReader(model).step_logps(pack)

    def counting(graph, inputs):
        graphs.append(graph)
        return graph

    compile_block = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda block: compile_block(block, backend=counting))
    prepare_blocks(model, ParallelSettings(compile=True))
    torch.testing.assert_close(PolicyReader(model).step_logps(pack), wanted)
    assert len(graphs) == 4  # before and after it, of the layer and of its attention module; the same for every layer


def test_what_a_process_may_compile_is_within_the_limits():
    """Pack lengths, gradients or none, masks with and without a window, and sft, critic, advantages and actor."""
    most = len(pad_lengths(16384, "cuda")) * 2 * 2 * 4
    with torch._dynamo.config.patch(recompile_limit=8, accumulated_recompile_limit=8):
        allow_recompiles()
        # Half is left for lengths of paths over pack_tokens.
        assert 2 * most <= torch._dynamo.config.recompile_limit
        assert 2 * most <= torch._dynamo.config.accumulated_recompile_limit


calls = []


@torch.library.custom_op("dapo_test::attend", mutates_args=())
def attend(x: Tensor) -> Tensor:
    """Stands for FlexAttention, which a CPU has no backward of: an operator that inductor calls as it is."""
    calls.append(len(x))
    return x.sin()


@torch.library.custom_op("dapo_test::attend_backward", mutates_args=())
def attend_backward(x: Tensor, upstream: Tensor) -> Tensor:
    """An operator too: nothing is left that inductor would have to call a C++ compiler for."""
    return upstream * x.cos()


attend.register_fake(torch.empty_like)
attend_backward.register_fake(lambda x, upstream: torch.empty_like(x))
attend.register_autograd(
    lambda ctx, upstream: attend_backward(ctx.saved_tensors[0], upstream),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[0]),
)


class Block(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.before, self.after, self.attention = nn.Linear(8, 8), nn.Linear(8, 8), attention

    def forward(self, x):
        return x + self.after(self.attention(self.before(x)))


@pytest.mark.parametrize(("checkpointing", "again"), [("none", 0), ("selective", 0), ("full", 1)])
def test_selective_checkpointing_keeps_a_compiled_attention(checkpointing, again):
    torch._dynamo.reset()
    attention = compiled_region(attend)
    torch.manual_seed(0)
    model = nn.Module()
    model.layers = nn.ModuleList([Block(attention), Block(attention)])
    plain = [Block(torch.sin), Block(torch.sin)]
    for block, other in zip(plain, model.layers, strict=True):
        block.load_state_dict(other.state_dict())
    prepare_blocks(model, ParallelSettings(activation_checkpointing=checkpointing))
    x = torch.randn(5, 8)
    calls.clear()
    for layers in (plain, model.layers):
        y = x
        for block in layers:
            y = block(y)
        y.square().sum().backward()
    assert len(calls) == 2 * (1 + again)
    for block, other in zip(plain, model.layers, strict=True):
        for a, b in zip(block.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad)
