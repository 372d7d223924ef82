"""The critic's scalar head read at given rows, with its loss against soft labels."""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dapo_kernels import checks
from dapo_kernels.call import Backend, choose_triton, kernel_context
from dapo_kernels.gradients import apply, refuse_nested, save_gradients, scaled


class ValueLoss(NamedTuple):
    """What linear_value_loss returns."""

    loss: Tensor  # 0-d, differentiable in hidden, weight and bias
    values: Tensor  # (M,) fp32, detached: sigmoid(logits), the probability of a correct end
    logits: Tensor  # (M,) fp32, detached


def linear_value_loss(
    hidden: Tensor,  # (T, H) bf16, fp16, fp32 or fp64
    weight: Tensor,  # (H,) or (1, H)
    bias: Tensor | None,  # (1,) or 0-d
    rows: Tensor,  # (M,) int64: the rows of hidden to read
    targets: Tensor,  # (M,) in [0, 1], Monte Carlo values
    normalizer: float | Tensor | None = None,
    *,
    weights: Tensor | None = None,  # (M,) ≥ 0: what each value counts; None: 1 each
    kind: Literal["bce", "mse"] = "bce",
    backend: Backend = "auto",
) -> ValueLoss:
    """Σ_i w_i [−m_i log V_i − (1−m_i) log(1−V_i)] / normalizer, V_i = sigmoid(hidden[rows[i]]·weight + bias).

    The critic's loss (arXiv 2412.18279, all w_i = 1); kind="mse" is Σ w_i (V_i − m_i)² / normalizer, its ablation.
    `normalizer` is the GLOBAL sum of the weights, over all packs and ranks of the optimizer's batch, so that their
    losses add up (None: the sum of this call's: M without weights). All arithmetic in fp32 (fp64 for fp64 inputs);
    rows may repeat, in any order. Gradients are made in this call; the weights have none. Deterministic.

    Raises ValueError naming hidden, weight, bias, rows, targets, weights or kind; values are checked as in
    linear_segment_loss.
    """
    checks.tensor("hidden", hidden, (None, None), checks.FLOATS)
    width = hidden.shape[1]
    if isinstance(weight, Tensor) and weight.dim() == 2:
        checks.tensor("weight", weight, (1, width), checks.FLOATS)
    else:
        checks.tensor("weight", weight, (width,), checks.FLOATS)
    checks.same_device("weight", weight, hidden)
    if bias is not None:
        checks.tensor("bias", bias, (1,) if getattr(bias, "shape", ()) else (), checks.FLOATS)
        checks.same_device("bias", bias, hidden)
    checks.tensor("rows", rows, (None,), checks.INTEGERS)
    checks.same_device("rows", rows, hidden)
    checks.tensor("targets", targets, (rows.numel(),), checks.FLOATS)
    checks.same_device("targets", targets, hidden)
    checks.constant("targets", targets)
    if weights is not None:
        checks.tensor("weights", weights, (rows.numel(),), checks.FLOATS)
        checks.same_device("weights", weights, hidden)
        weights = weights.detach()
    if kind not in ("bce", "mse"):
        raise ValueError(f"kind: expected bce or mse, got {kind!r}")
    check_values(hidden, rows, targets, weights)
    if normalizer is not None:
        checks.normalizer(normalizer)
    else:
        normalizer = max(rows.numel(), 1) if weights is None else _sum_or_one(weights)
    needs = tuple(torch.is_grad_enabled() and t is not None and t.requires_grad for t in (hidden, weight, bias))
    if torch.compiler.is_compiling():
        if not isinstance(normalizer, Tensor):
            normalizer = torch.full((), float(normalizer), dtype=torch.float64, device=hidden.device)
        loss, values, logits, *_ = torch.ops.dapo_kernels.value_loss(
            hidden, weight, bias, rows, targets, weights, normalizer, kind, backend, needs
        )
        return ValueLoss(loss, values.detach(), logits.detach())
    refuse_nested("linear_value_loss")
    arguments = (hidden, weight, bias, rows, targets, weights, normalizer, kind, backend, needs)
    return ValueLoss(*apply(_ValueLoss, *arguments)[:3])


def check_values(hidden: Tensor, rows: Tensor, targets: Tensor, weights: Tensor | None) -> None:
    """What linear_value_loss asks of the values of its arguments."""
    if not rows.numel() or not checks.reads_values(rows):
        return
    low, high = (int(v) for v in torch.aminmax(rows))
    if low < 0 or high >= hidden.shape[0]:
        raise ValueError(f"rows: {low}..{high} is outside hidden's rows 0..{hidden.shape[0] - 1}")
    if not bool(((targets >= 0) & (targets <= 1)).all()):
        raise ValueError("targets: soft labels must lie in [0, 1]")
    if weights is not None and not bool(((weights >= 0) & weights.isfinite()).all()):
        raise ValueError("weights: must be finite and not negative")


def compute(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rows: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    normalizer: float | Tensor,
    kind: str,
    backend: Backend,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor, tuple[Tensor | None, Tensor | None, Tensor | None]]:
    """Loss, logits (M,), and the gradients of hidden, weight and bias, by the backend."""
    by_backend = _torch_value
    if choose_triton(backend, hidden.device, hidden.dtype):
        from dapo_kernels.ops.value import value as by_backend
    with kernel_context(hidden):
        return by_backend(hidden, weight, bias, rows, targets, weights, normalizer, kind, needs)


def _sum_or_one(weights: Tensor) -> Tensor:
    # Weights that are all zero then make a loss of zero, as no values do.
    total = weights.sum(dtype=torch.promote_types(weights.dtype, torch.float32))
    return torch.where(total == 0, 1, total)


class _ValueLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        rows: Tensor,
        targets: Tensor,
        weights: Tensor | None,
        normalizer: float | Tensor,
        kind: str,
        backend: Backend,
        needs: tuple[bool, bool, bool],
    ) -> tuple[Tensor | None, ...]:
        loss, logits, gradients = compute(
            hidden, weight, bias, rows, targets, weights, normalizer, kind, backend, needs
        )
        return loss, logits.sigmoid(), logits, *gradients

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor | None, ...]) -> None:
        save_gradients(ctx, output[-3:], inputs[:3])
        ctx.mark_non_differentiable(*(t for t in output[1:] if t is not None))
        ctx.set_materialize_grads(False)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if upstream is None:
            return (None,) * 10
        return *scaled(ctx, upstream), *(None,) * 7


def _torch_value(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rows: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    normalizer: float | Tensor,
    kind: str,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor, tuple[Tensor | None, Tensor | None, Tensor | None]]:
    dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    # On a GPU a wrong row is found only when debugging; clamped, it still never reads or writes out of bounds.
    rows = rows.clamp(0, max(hidden.shape[0] - 1, 0)).long()
    x = hidden.index_select(0, rows).to(dtype)
    head, targets = weight.reshape(-1).to(dtype), targets.to(dtype)
    if isinstance(normalizer, Tensor):
        normalizer = normalizer.to(hidden.device, dtype)
    logits = torch.mv(x, head)
    if bias is not None:
        logits = logits + bias.to(dtype)
    if kind == "bce":
        losses = F.softplus(logits) - targets * logits
        slope = logits.sigmoid() - targets
    else:
        values = logits.sigmoid()
        losses = (values - targets).square() + 0 * logits  # NaN where the logit is infinite, as with bce
        slope = 2 * (values - targets) * values * (1 - values)
    if weights is not None:
        weights = weights.to(dtype)
        losses, slope = losses * weights, slope * weights
    loss, slope = losses.sum() / normalizer, slope / normalizer
    d_hidden = d_weight = d_bias = None
    if needs[0]:
        d_hidden = torch.zeros_like(hidden, dtype=dtype)
        if hidden.is_cuda:
            # index_add_ is not deterministic on a GPU where rows repeat; index_put_ sorts them first.
            d_hidden.index_put_((rows,), torch.outer(slope, head), accumulate=True)
        else:
            d_hidden.index_add_(0, rows, torch.outer(slope, head))
        d_hidden = d_hidden.to(hidden.dtype)
    if needs[1]:
        d_weight = torch.mv(x.t(), slope).reshape(weight.shape).to(weight.dtype)
    if needs[2]:
        d_bias = slope.sum().reshape(bias.shape).to(bias.dtype)
    return loss, logits, (d_hidden, d_weight, d_bias)
