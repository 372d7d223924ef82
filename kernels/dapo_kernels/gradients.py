"""The gradients of hidden states, weight and bias: filled chunk by chunk, then cast and scaled in one pass."""

from functools import reduce
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dapo_kernels.chunk_torch import Dlogits, add_outer, project_back
from dapo_kernels.plan import Piece, row_index

if TYPE_CHECKING:
    from dapo_kernels.call import Call


class Gradients:
    """The gradients of hidden, weight and bias, filled piece by piece; None where not needed."""

    def __init__(self, call: "Call", needs: tuple[bool, bool, bool]) -> None:
        like, total = call.hidden, call.logits_dtype
        self.shard = call.shard
        self.hidden = self.weight = self.bias = None
        if needs[0]:
            # Rows that several pieces or processes read are summed, so in fp32; others are written once, cast.
            if call.rows is None and call.shard is not None:
                self.hidden = torch.empty_like(like, dtype=total)
            elif call.rows is None:
                self.hidden = torch.empty_like(like)
            else:
                self.hidden = torch.zeros_like(like, dtype=total)
        if needs[1]:
            self.weight = torch.empty(call.weight.shape, dtype=total, device=like.device)
        self.fresh = True  # nothing is in the weight's yet: the first piece writes it
        if needs[2]:
            self.bias = torch.zeros(call.bias.shape, dtype=total, device=like.device)

    def add(self, dlogits: Dlogits, x: Tensor, weight: Tensor, piece: Piece) -> None:
        """What a piece's dlogits (U, V) make of the rows x (U, H) that it read."""
        for words, part in dlogits.splits():
            self._add_to_words(words, part, x)
        self.fresh = False
        if self.hidden is not None:
            self._add_to_rows(dlogits, weight, piece)

    def _add_to_words(self, words: slice, dlogits: Dlogits, x: Tensor) -> None:
        values = dlogits.values
        scale = None if dlogits.scale is None else dlogits.scale[:, None]
        if self.weight is not None:
            add_outer(self.weight[words], values, x if scale is None else (x * scale).to(x.dtype), self.fresh)
        if self.bias is None:
            return
        bias = self.bias[words]
        if scale is None:
            bias += values.sum(0, dtype=bias.dtype)
        elif values.dtype == bias.dtype:
            torch.addmv(bias, values.t(), scale[:, 0], out=bias)
        else:  # a scale of 16 bits would round all of a row alike: in two parts it does not
            high = scale.to(values.dtype)
            parts = torch.cat([high, (scale - high).to(values.dtype)], 1)
            bias += project_back(parts.t(), values, bias.dtype).sum(0)

    def _add_to_rows(self, dlogits: Dlogits, weight: Tensor, piece: Piece) -> None:
        values = dlogits.values
        scale = None if dlogits.scale is None else dlogits.scale[..., None]
        if piece.rows is not None:
            # A piece's rows are distinct, so the order of the additions is that of the pieces: deterministic.
            product = project_back(values, weight, self.hidden.dtype)
            self.hidden.index_add_(0, row_index(self.hidden, piece), product if scale is None else product.mul_(scale))
            return
        out = self.hidden[piece.start : piece.stop]
        if dlogits.words is not None:
            products = (
                project_back(part.values, weight[words], scale.dtype).mul_(part.scale[:, None])
                for words, part in dlogits.splits()
            )
            out.copy_(reduce(Tensor.add_, products))
        elif scale is not None:
            torch.mul(project_back(values, weight, scale.dtype), scale, out=out)
        elif out.dtype == values.dtype:
            torch.mm(values, weight, out=out)
        else:
            out.copy_(project_back(values, weight, torch.promote_types(out.dtype, values.dtype)))

    def finished(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """As they were summed: in fp32 (fp64), or in hidden's dtype where nothing of it is summed."""
        if self.weight is not None and self.fresh:
            self.weight.zero_()
        if self.shard is not None and self.hidden is not None:
            self.shard.sum(self.hidden)
        return self.hidden, self.weight, self.bias

    def cast(self, call: "Call") -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """In the dtypes of the arguments."""
        like = (call.hidden, call.weight, call.bias)
        return tuple(None if g is None else g.to(t.dtype) for g, t in zip(self.finished(), like))


def apply(function: type[torch.autograd.Function], *args: Any) -> tuple[Tensor | None, ...]:
    """function.apply(*args), which binds args to forward's signature every time: only torch.func needs that."""
    if torch._C._are_functorch_transforms_active():
        return function.apply(*args)
    return super(torch.autograd.Function, function).apply(*args)


def refuse_nested(function: str) -> None:
    """NotImplementedError within two torch.func transforms: the outer one would take the gradients for constants."""
    if (torch._C._functorch.maybe_current_level() or 0) > 1:
        raise NotImplementedError(
            f"{function}: is differentiable once; it has no rule for nested transforms of torch.func (a gradient's "
            "gradient, a Hessian, vmap)"
        )


def save_gradients(ctx: Any, gradients: tuple[Tensor | None, ...], like: tuple[Tensor | None, ...]) -> None:
    """Keep for ``scaled`` the gradients of `like` by a scalar loss, in whatever dtype they were summed."""
    ctx.save_for_backward(*gradients)
    ctx.gradient_dtypes = [None if tensor is None else tensor.dtype for tensor in like]


def scaled(ctx: Any, upstream: Tensor) -> list[Tensor | None]:
    """The saved gradients times `upstream`, in the dtypes of their tensors: one pass each, none where upstream is 1.

    Where the graph is not kept for another backward, the saved memory itself is scaled and handed over; else it stays
    as it is. An upstream on a GPU is not looked at, which would wait for the device.
    """
    # A subclass (of tracing) or a wrapper (of vmap) has no value to look at, and nothing may be written with it.
    plain = type(upstream) is Tensor and not _is_wrapped(upstream)
    one = plain and upstream.device.type == "cpu" and upstream.item() == 1
    ours = plain and not _graph_is_kept()
    return [_scaled(g, upstream, dtype, one, ours) for g, dtype in zip(ctx.saved_tensors, ctx.gradient_dtypes)]


def _scaled(g: Tensor | None, upstream: Tensor, dtype: torch.dtype | None, one: bool, ours: bool) -> Tensor | None:
    if g is None:
        return None
    if g.dtype != dtype:
        if one:
            return g.to(dtype)
        return torch.mul(g, upstream, out=torch.empty_like(g, dtype=dtype)) if ours else (g * upstream).to(dtype)
    if not ours:
        return g * upstream
    return g if one else g.mul_(upstream)


def _is_wrapped(tensor: Tensor) -> bool:
    of_torch = torch._C._functorch  # is_grads_batched goes through the older of torch's two vmaps
    return of_torch.is_functorch_wrapped_tensor(tensor) or of_torch.is_legacy_batchedtensor(tensor)


def _graph_is_kept() -> bool:
    # Private, and what AOTAutograd asks before it donates buffers; without it every graph counts as kept.
    return getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)()
