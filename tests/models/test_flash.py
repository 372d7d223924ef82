"""FlashAttention-4 where it is known to work, and nowhere else: decided without a GPU, by what one would say."""

import functools
import logging

import pytest
import torch
from transformers import LlamaConfig, Qwen2Config, Qwen3Config

from dapo_fast.models import tree_flex
from dapo_fast.models.attention import heads_of
from dapo_fast.models.tree_flex import FLASH, Heads, kernel_options

CUDA, HEADS = torch.device("cuda", 0), Heads(4, 2, 64)


@pytest.fixture
def gpu(monkeypatch):
    """A machine with FlashAttention-4 and a GPU of the returned list's capability."""
    found = [(9, 0)]
    monkeypatch.setattr(tree_flex.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: found[0])
    monkeypatch.setattr(tree_flex, "_tried_flash", functools.cache(tree_flex._tried_flash.__wrapped__))
    return found


def kernel(calls, wrong=0.0):
    """What torch.compile(flex_attention) is to be, in SDPA under the whole mask."""

    def attend(query, key, value, block_mask, scale, enable_gqa, kernel_options):
        calls.append((kernel_options, block_mask.BLOCK_SIZE))
        rows = torch.arange(query.shape[2])
        mask = block_mask.mask_mod(0, 0, rows[:, None], rows[None, :])
        out = torch.nn.functional.scaled_dot_product_attention(
            *(x.float() for x in (query, key, value)), mask, scale=scale, enable_gqa=enable_gqa
        )
        return (out * (1 + wrong)).to(query.dtype)

    return lambda: attend


def test_where_it_is_known_to_work(gpu, monkeypatch):
    monkeypatch.setattr(tree_flex, "_tried_flash", lambda heads, device: True)
    assert kernel_options(HEADS, CUDA) == FLASH and kernel_options(Heads(28, 4, 128), CUDA) == FLASH
    assert kernel_options(None, CUDA) is None and kernel_options(HEADS, torch.device("cpu")) is None
    assert kernel_options(Heads(4, 2, 192), CUDA) is None
    for capability in ((8, 0), (10, 0), (12, 0)):
        gpu[0] = capability
        assert kernel_options(HEADS, CUDA) is None
    gpu[0] = (9, 0)
    torch.use_deterministic_algorithms(True)
    try:
        assert kernel_options(HEADS, CUDA) is None
    finally:
        torch.use_deterministic_algorithms(False)
    monkeypatch.setattr(tree_flex.importlib.util, "find_spec", lambda name: None)
    assert kernel_options(HEADS, CUDA) is None


@pytest.mark.parametrize("heads", [HEADS, Heads(2, 2, 16)])
def test_it_is_tried_first(gpu, monkeypatch, heads):
    calls = []
    monkeypatch.setattr(tree_flex, "_compiled", kernel(calls))
    assert tree_flex.flash_error(heads, torch.device("cpu")) < 1e-2
    assert calls == [(FLASH, (128, 128))]
    monkeypatch.setattr(tree_flex, "_compiled", kernel(calls, wrong=0.1))
    assert tree_flex.flash_error(heads, torch.device("cpu")) > 5e-2


@pytest.mark.parametrize("failure", [RuntimeError("no kernel image\nand more"), NotImplementedError(), 0.2])
def test_what_fails_is_not_used_and_said_once(gpu, monkeypatch, caplog, failure):
    def fails(heads, device):
        if isinstance(failure, Exception):
            raise failure
        return failure

    monkeypatch.setattr(tree_flex, "flash_error", fails)
    with caplog.at_level(logging.INFO, logger="dapo_fast.attention"):
        assert [kernel_options(HEADS, CUDA) for _ in range(3)] == [None] * 3
    (line,) = caplog.messages
    assert "Triton" in line and "\n" not in line


def test_the_shape_of_a_models_attention():
    assert heads_of(Qwen2Config(hidden_size=896, num_attention_heads=14, num_key_value_heads=2)) == Heads(14, 2, 64)
    assert heads_of(Qwen3Config(num_attention_heads=32, num_key_value_heads=8, head_dim=128)) == Heads(32, 8, 128)
    assert heads_of(LlamaConfig(hidden_size=64, num_attention_heads=4)) == Heads(4, 4, 16)
