"""Attention of flat packs (SFT, one sequence a candidate) on a GPU: the fastest variable-length kernel there is.

In this order: flash-attn through transformers, PyTorch's own varlen_attn, and SDPA one sequence at a time. Layers with
windows, softcaps or sinks go through FlexAttention, as trees do.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import logging

import torch
from torch import Tensor

from dapo_fast.data.pack import Pack
from dapo_fast.models.dense import Dense
from dapo_fast.models.tree_flex import TreeFlex
from dapo_fast.models.variants import PLAIN, Variant

log = logging.getLogger("dapo_fast.attention")


@torch.compiler.assume_constant_result  # a compiled block does not trace into it; it would into a cached function
def varlen_kernel(dtype: torch.dtype) -> str:
    """Which kernel flat packs of ``dtype`` use: ``"flash_attn"``, ``"torch_varlen"`` or ``"sdpa"``."""
    return _chosen_kernel(dtype)


@functools.cache
def _chosen_kernel(dtype: torch.dtype) -> str:
    kernel = "sdpa"
    if torch.cuda.is_available() and dtype in (torch.float16, torch.bfloat16):
        if importlib.util.find_spec("flash_attn") is not None:
            from transformers.utils import is_flash_attn_2_available

            kernel = "flash_attn" if is_flash_attn_2_available() else kernel
        if kernel == "sdpa" and importlib.util.find_spec("torch.nn.attention.varlen") is not None:
            kernel = "torch_varlen"
    log.info("flat packs: %s attention", kernel)
    return kernel


@torch.compiler.assume_constant_result
def _varlen_arguments() -> tuple[str, ...]:
    from torch.nn.attention.varlen import varlen_attn

    return tuple(inspect.signature(varlen_attn).parameters)


class FlatVarlen:
    """Attention of one flat pack, ready to be called by every layer."""

    def __init__(self, pack: Pack) -> None:
        self.pack = pack
        lengths = pack.runs[:, 1]
        self.bounds = torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0)).tolist()
        self.longest = int(lengths.max())
        self.cu_lengths = torch.tensor(self.bounds, dtype=torch.int32, device=pack.input_ids.device)

    @functools.cached_property
    def _by_mask(self) -> TreeFlex | Dense:
        """For layers that a variable-length kernel does not know: a flat pack is a tree as well."""
        pack = self.pack
        return TreeFlex(pack) if pack.input_ids.is_cuda else Dense(pack.subtree_end, pack.position_ids)

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        variant: Variant = PLAIN,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """``query`` (1, Hq, T, D), ``key`` (1, Hkv, T, D) and ``value`` (1, Hkv, T, Dv) → (1, T, Hq, Dv)."""
        if variant != PLAIN or sinks is not None or value.shape[-1] != query.shape[-1]:
            return self._by_mask(query, key, value, scale, variant, sinks)
        kernel = varlen_kernel(query.dtype)
        if kernel == "flash_attn":
            from transformers.modeling_flash_attention_utils import _flash_attention_forward

            lengths = {
                "cu_seq_lens_q": self.cu_lengths,
                "cu_seq_lens_k": self.cu_lengths,
                "max_length_q": self.longest,
                "max_length_k": self.longest,
            }
            rows = [x.transpose(1, 2) for x in (query, key, value)]
            return _flash_attention_forward(
                *rows, None, query_length=query.shape[2], is_causal=True, softmax_scale=scale,
                attn_implementation="flash_attention_2", **lengths,
            )  # fmt: skip
        group = query.shape[1] // key.shape[1]
        if kernel == "torch_varlen":
            return self._torch_varlen(*(x[0].transpose(0, 1) for x in (query, key, value)), scale)[None]
        parts = [
            torch.nn.functional.scaled_dot_product_attention(
                query[:, :, start:stop], key[:, :, start:stop], value[:, :, start:stop],
                is_causal=True, scale=scale, enable_gqa=group > 1,
            )
            for start, stop in zip(self.bounds[:-1], self.bounds[1:], strict=True)
        ]  # fmt: skip
        return torch.cat(parts, dim=2).transpose(1, 2)

    def _torch_varlen(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        from torch.nn.attention.varlen import varlen_attn

        # The arguments grew from release to release; what a release lacks is done by hand.
        known = _varlen_arguments()
        options: dict = {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
        if "scale" in known:
            options["scale"] = scale
        else:
            query = query * (scale * query.shape[-1] ** 0.5)
        group = query.shape[1] // key.shape[1]
        if "enable_gqa" in known:
            options["enable_gqa"] = group > 1
        elif group > 1:
            key, value = (x.repeat_interleave(group, dim=1) for x in (key, value))
        bounds, longest = self.cu_lengths, self.longest
        return varlen_attn(query, key, value, bounds, bounds, longest, longest, **options)
