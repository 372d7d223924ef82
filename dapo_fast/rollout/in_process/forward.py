"""The model's forward, with attention that keeps its own keys and values: a prefill, then one token a row at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

from dapo_fast.models.attention import already_4d, without_plan
from dapo_fast.models.dense import attend
from dapo_fast.models.variants import PLAIN, Variant, variant_of

if TYPE_CHECKING:
    from dapo_fast.rollout.in_process.rows import Rows

ATTENTION = "dapo_rollout"


class Prefill:
    """Causal attention over a right-padded batch; keeps the keys and values. Padding comes after, so none is seen."""

    def __init__(self) -> None:
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}
        self.once = True  # no layer has attended twice

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        variant: Variant = PLAIN,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """``query`` (rows, Hq, T, D), ``key`` and ``value`` (rows, Hkv, T, D or Dv) → (rows, Hq, T, Dv)."""
        self.once = self.once and layer not in self._keys
        self._keys[layer], self._values[layer] = key.transpose(1, 2), value.transpose(1, 2)
        positions = torch.arange(query.shape[2], device=query.device)
        oldest = variant.oldest(positions)
        grouped = query.shape[1] != key.shape[1]
        if oldest is None and variant.softcap is None and sinks is None:
            return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=grouped)
        visible = positions[None, :] <= positions[:, None]
        if oldest is not None:
            visible = visible & (positions[None, :] >= oldest[:, None])
        return attend(query, key, value, scale, visible, variant.softcap, sinks)

    @property
    def alike(self) -> bool:
        """Whether the keys of all layers are of one size, and the values."""
        return all(len({x.shape for x in kept.values()}) == 1 for kept in (self._keys, self._values))

    def result(self) -> tuple[Tensor, Tensor]:
        """Keys and values: (layers, rows, tokens, heads, size) each."""
        layers = sorted(self._keys)
        return torch.stack([self._keys[i] for i in layers]), torch.stack([self._values[i] for i in layers])


class Decode:
    """One query a row, against the row's part of its trunk and the row's own tokens.

    Rows are dealt to the trunks, as many places a trunk as the fullest one needs: ``place`` (trunks, places) says which
    row sits where, ``trunk`` and ``seat`` (rows,) where a row sits. An empty place computes row 0 once more, unread.
    """

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        count, device = rows.count, rows.device
        cached, drawn = rows.cached[:count], rows.drawn[:count]
        trunk = np.fromiter((prefix.slot for prefix in rows.prefixes[:count]), dtype=np.int64, count=count)
        sizes = np.bincount(trunk, minlength=rows.trunks.count)
        order = np.argsort(trunk, kind="stable")
        seat = np.empty(count, dtype=np.int64)
        seat[order] = np.arange(count) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        place = np.zeros((rows.trunks.count, sizes.max()), dtype=np.int64)
        place[trunk, seat] = np.arange(count)
        # One copy of a few numbers a row; what is of rows and keys is made on the device.
        per_row = torch.from_numpy(np.stack([trunk, seat, cached, drawn])).to(device)
        self.trunk, self.seat, self.cached, self.drawn = per_row.unbind()
        self.place = torch.from_numpy(place).to(device)
        heads = rows.kv[0].shape[2]
        first = torch.arange(count * heads, device=device).view(count, heads) * rows.length
        self.write = (first + self.drawn[:, None]).flatten()
        self.prefix_depths = torch.arange(int(cached.max()), device=device)
        self.own_depths = torch.arange(int(drawn.max()) + 1, device=device)  # from the end of the row's prompt
        self.prefix_width, self.own_width = self.prefix_depths.numel(), self.own_depths.numel()
        self.unseen = {
            PLAIN: self._hidden(self.prefix_depths >= self.cached[:, None], self.own_depths > self.drawn[:, None])
        }
        self.position = torch.from_numpy(cached + drawn)  # of queries; stays here, since ``oldest`` looks at the values

    @staticmethod
    def _hidden(of_prefix: Tensor, own: Tensor) -> Tensor:
        """(rows, 1, 1, keys) from (rows, prefix width) and (rows, own width)."""
        return torch.cat([of_prefix, own], 1)[:, None, None]

    def _unseen(self, variant: Variant) -> Tensor:
        """(rows, 1, 1, keys): what the query of a row does not see in layers of a kind."""
        variant = Variant(variant.window, variant.chunk)
        if variant not in self.unseen:
            oldest = variant.oldest(self.position)
            unseen = self.unseen[PLAIN]
            if oldest is not None:
                oldest = oldest.to(unseen.device)[:, None]
                own = self.own_depths < oldest - self.cached[:, None]
                unseen = unseen | self._hidden(self.prefix_depths < oldest, own)
            self.unseen[variant] = unseen
        return self.unseen[variant]

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        variant: Variant = PLAIN,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """``query`` (rows, Hq, 1, D), ``key`` and ``value`` (rows, Hkv, 1, D) → (rows, Hq, 1, Dv)."""
        rows, heads, _, size = query.shape
        kv_heads = key.shape[1]
        own_keys, own_values = (
            self._own(buffer[layer], new) for buffer, new in zip(self.rows.kv, (key, value), strict=True)
        )
        # The queries of a key head stand side by side, so that grouped heads need no copies of keys.
        query = (query * scale).reshape(rows, kv_heads, heads // kv_heads, size)
        trunk_keys, trunk_values = (
            buffer[layer, : self.place.shape[0], :, : self.prefix_width]
            for buffer in (self.rows.trunks.keys, self.rows.trunks.values)
        )
        own_scores = torch.bmm(query.flatten(0, 1), own_keys.transpose(1, 2)).unflatten(0, (rows, kv_heads))
        scores = torch.cat([self._by_trunk(query, trunk_keys.transpose(2, 3)), own_scores], -1)
        if variant.softcap is not None:
            scores = variant.softcap * torch.tanh(scores / variant.softcap)
        scores = scores.float().masked_fill_(self._unseen(variant), float("-inf"))
        if sinks is not None:
            column = sinks.float().view(1, kv_heads, -1, 1).expand(*scores.shape[:3], 1)
            scores = torch.cat([scores, column], -1)
        weights = scores.softmax(-1)[..., : self.prefix_width + self.own_width].to(value.dtype)
        on_trunk, on_own = weights.split([self.prefix_width, self.own_width], -1)
        own = torch.bmm(on_own.flatten(0, 1), own_values).unflatten(0, (rows, kv_heads))
        return (self._by_trunk(on_trunk, trunk_values) + own).reshape(rows, heads, 1, -1)

    def _own(self, buffer: Tensor, new: Tensor) -> Tensor:
        """The rows' own keys or values with ``new`` written: (rows · heads, own width, size)."""
        buffer.view(-1, buffer.shape[-1]).index_copy_(0, self.write, new.flatten(0, 2))
        return buffer.view(-1, *buffer.shape[2:])[: new.shape[0] * new.shape[1], : self.own_width]

    def _by_trunk(self, left: Tensor, right: Tensor) -> Tensor:
        """``left`` (rows, heads, n, x) times its trunk's ``right`` (trunks, heads, x, y): (rows, heads, n, y)."""
        dealt = left[self.place].transpose(1, 2)  # trunks, heads, places, n, x
        product = torch.matmul(dealt.flatten(2, 3), right).unflatten(2, dealt.shape[2:4])
        return product[self.trunk, :, self.seat]


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    dapo_rollout: Prefill | Decode | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    if dapo_rollout is None:  # called by someone else
        return without_plan(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    variant = variant_of(module, kwargs)
    out = dapo_rollout.attend(module.layer_idx, query, key, value, scale, variant, kwargs.get("s_aux"))
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def forward(model: PreTrainedModel, ids: Tensor, positions: Tensor | None, attention: Prefill | Decode) -> Tensor:
    """Logits of the last column of ``ids``: (rows, 1, vocabulary)."""
    if positions is None:
        positions = torch.arange(ids.shape[1], device=ids.device)[None]
    return model(
        input_ids=ids,
        position_ids=positions,
        attention_mask=already_4d(ids.device),
        use_cache=False,
        logits_to_keep=1,
        dapo_rollout=attention,
    ).logits
