"""The mean (or sum, or each) token cross-entropy, called as Liger's and Apple's fused losses are."""

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from dapo_kernels import checks
from dapo_kernels.call import Backend, Call
from dapo_kernels.logprobs import token_statistics
from dapo_kernels.objectives import CrossEntropy
from dapo_kernels.segment_loss import segment_loss

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def linear_cross_entropy(
    hidden: Tensor,  # (N, H), or (T, H) with `rows`, or (…, T, H)
    weight: Tensor,  # (V, H)
    targets: Tensor,  # (N,), or (…, T)
    normalizer: float | Tensor | None = None,
    *,
    bias: Tensor | None = None,
    rows: Tensor | None = None,
    softcap: float | None = None,
    temperature: float = 1.0,
    ignore_index: int = -100,
    reduction: Literal["mean", "sum", "none"] = "mean",
    shift: int = 0,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    chunk_rows: int | None = None,
    backend: Backend = "auto",
    process_group: "ProcessGroup | None" = None,
) -> Tensor:
    """−Σ log π(token) / normalizer, a scalar; None: the number of tokens that are not ignored (at least 1).

    `reduction` "sum" divides by nothing. "none" returns each token's loss, in the shape of targets (…, T − shift), 0
    where ignored; it computes the logits again in backward: four GEMMs instead of three.
    `shift`: the hidden state at t predicts targets[…, t + shift]; 1 for the labels of a causal LM.

    `label_smoothing` is F.cross_entropy's, `z_loss` the coefficient of each token's squared log-sum-exp (Liger's
    lse_square_scale), part of the loss and divided with it: see CrossEntropy.

    Arguments and errors otherwise as in linear_segment_loss; also ValueError for reduction and shift, for smoothing
    with softcap, and for smoothing or z-loss of reduction "none".
    """
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction: expected mean, sum or none, got {reduction!r}")
    if normalizer is not None and reduction != "mean":
        raise ValueError(f"normalizer: is for reduction mean, not {reduction}")
    if reduction == "none" and (label_smoothing or z_loss):
        name = "label_smoothing" if label_smoothing else "z_loss"
        raise ValueError(f"{name}: is for reduction mean or sum; none gives −log π of each token")
    shape = getattr(targets, "shape", ())
    if isinstance(hidden, Tensor) and (shift or hidden.dim() > 2):
        hidden, targets = _flattened(hidden, targets, rows, shift, ignore_index)
    call = Call(
        hidden, weight, bias, targets, rows, softcap, temperature, ignore_index, chunk_rows, backend, "cu",
        group=process_group,
    )  # fmt: skip
    if reduction == "none":
        return -token_statistics(call).logps.view(shape)[..., : shape[-1] - shift]
    if reduction == "sum":
        normalizer = 1.0
    elif normalizer is None:
        normalizer = (targets != ignore_index).sum().clamp(min=1)
    checks.normalizer(normalizer)
    return segment_loss(call, None, CrossEntropy(normalizer, label_smoothing, z_loss), 1).loss


def _flattened(
    hidden: Tensor, targets: Tensor, rows: Tensor | None, shift: int, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """(N, H) and (N,), with the targets moved instead of the hidden states, which then need no copy."""
    if rows is not None:
        raise ValueError("rows: only with hidden of shape (T, H), and without shift")
    checks.tensor("hidden", hidden, (None,) * max(hidden.dim(), 2), checks.FLOATS)
    if isinstance(targets, Tensor) and hidden.dim() != targets.dim() + 1:
        raise ValueError(f"hidden: shape {tuple(hidden.shape)} is not that of targets, {tuple(targets.shape)}, and H")
    checks.tensor("targets", targets, tuple(hidden.shape[:-1]), checks.INTEGERS)
    length = targets.shape[-1]
    if not 0 <= shift <= length:
        raise ValueError(f"shift: must be from 0 to the length of the sequences, {length}, got {shift}")
    if shift:
        end = targets.new_full((*targets.shape[:-1], shift), ignore_index)
        targets = torch.cat([targets[..., shift:], end], -1)
    return hidden.flatten(0, -2), targets.flatten()
