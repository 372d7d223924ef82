"""Tree attention in bf16 against separate sequences: what it computes, how long it takes, its share of a step."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from copy import deepcopy
from functools import partial

import torch
from fused_loss import seconds
from step_tree import BETA, SHAPES, generated_trees, time_shares
from torch import Tensor

from dapo_fast.data.batches import actor_groups
from dapo_fast.data.pack import Pack, pad_lengths
from dapo_fast.data.packing import pack_actor
from dapo_fast.models.attention import plan_attention
from dapo_fast.models.loading import new_causal_lm
from dapo_fast.models.readpath import PolicyReader

from .actor import DRY
from .sections import Setup

PACK_TOKENS = 16384


def rows(setup: Setup) -> Iterator[dict]:
    """Agreement of the log-probabilities first, then times of attention alone, then shares of a whole pass.

    AssertionError, after the last of them, where the log-probabilities do not agree.
    """
    shape, device = "tiny" if setup.dry else "0.5B", setup.device
    config = SHAPES[shape]
    trees = generated_trees(0, 1, config.vocab_size, **DRY if setup.dry else {"trunks": 2})
    lengths = pad_lengths(PACK_TOKENS, device)
    packs = {
        kind: [p.to(device) for p in pack_actor(trees, actor_groups(trees), PACK_TOKENS, lengths, kind == "flat")]
        for kind in ("tree", "flat")
    }
    model = new_causal_lm(config, 0, device, torch.bfloat16)
    wrong = yield from _agreement(shape, model, packs)
    for kind, of in packs.items():
        forward, backward = _times(config, of)
        yield {"suite": "gpu_attention", "case": shape, "peer": kind, "tokens": sum(p.tokens for p in of)} | {
            "forward_s": forward,
            "backward_s": backward,
        }
    reader = PolicyReader(model)
    pairs = sum(pack.steps for pack in packs["tree"])
    for kind, of in packs.items():

        def run(of: list[Pack] = of) -> None:
            for pack in of:
                reader(pack, BETA, pairs).loss.backward()

        run()
        yield {"suite": "gpu_attention", "case": f"{shape}, shares of a pass", "peer": kind} | time_shares(run, device)
    if wrong:
        raise AssertionError(wrong)


def _agreement(shape: str, model: torch.nn.Module, packs: dict[str, list[Pack]]) -> Generator[dict, None, str | None]:
    """Trees and flat packs against flat packs in fp32: what is wrong where trees are over twice as far away as flat."""
    exact = _scored(deepcopy(model).float(), packs["flat"])
    far = {}
    for kind, of in packs.items():
        found = _scored(model, of)
        far[kind] = max(abs(found[key] - value) for key, value in exact.items())
        yield {"suite": "gpu_attention", "case": f"{shape}, bf16 against fp32 flat", "peer": kind, "error": far[kind]}
    if not far["tree"] <= 2 * far["flat"] + 1e-3:
        return f"trees are {far['tree']:.3g} nats from fp32, flat packs {far['flat']:.3g}"
    return None


def _scored(model: torch.nn.Module, packs: list[Pack]) -> dict[tuple[int, ...], float]:
    found = {}
    for pack in packs:
        logps = PolicyReader(model).step_logps(pack).tolist()
        found |= dict(zip(map(tuple, pack.step_keys.tolist()), logps, strict=True))
    return found


def _times(config: object, packs: list[Pack]) -> tuple[float, float]:
    """Seconds of one layer's attention over all packs, forward and backward: the fastest of three."""
    size = config.hidden_size // config.num_attention_heads
    heads = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
    device = packs[0].input_ids.device
    total = [0.0, 0.0]
    for pack in packs:
        shapes = [(1, pack.length, count, size) for count in heads]
        tensors = [torch.randn(s, device=device, dtype=torch.bfloat16).transpose(1, 2).requires_grad_() for s in shapes]
        attend = partial(plan_attention(pack, "auto"), *tensors, size**-0.5)
        times = [_once(attend, tensors) for _ in range(4)][1:]  # the first one compiles
        total = [before + min(t[index] for t in times) for index, before in enumerate(total)]
    return total[0], total[1]


def _once(attend: Callable[[], Tensor], tensors: list[Tensor]) -> tuple[float, float]:
    out: list[Tensor] = []
    device = tensors[0].device.type
    forward = seconds(lambda: out.append(attend()), device)
    upstream = torch.randn_like(out[0])
    return forward, seconds(lambda: torch.autograd.grad(out[0], tensors, upstream), device)
