"""What every public function asks of its arguments: a ValueError that begins with the argument's name."""

import math
import os
from itertools import pairwise

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
INTEGERS = (torch.int64, torch.int32)


def reads_values(tensor: Tensor) -> bool:
    """Whether looking at the values is free: on a GPU it would wait for the device, so only when debugging.

    Under torch.compile there are none yet; the operators look at them when they run.
    """
    if torch.compiler.is_compiling():
        return False
    return tensor.device.type == "cpu" or os.environ.get("DAPO_KERNELS_DEBUG", "0") == "1"


def is_dtensor(tensor: object) -> bool:
    # By name: importing torch.distributed.tensor costs a second that callers without FSDP need not pay.
    kind = type(tensor)
    return kind is not Tensor and any(base.__name__ == "DTensor" for base in kind.__mro__)


def tensor(name: str, value: object, shape: tuple[int | None, ...], dtypes: tuple[torch.dtype, ...]) -> Tensor:
    """`value` as a plain tensor of the given shape (None: any size) and one of the dtypes."""
    if not isinstance(value, Tensor):
        raise ValueError(f"{name}: expected a tensor, got {type(value).__name__}")
    if is_dtensor(value):
        raise ValueError(
            f"{name}: is a DTensor, still sharded. Call this inside the forward of the FSDP root module (there the "
            "parameters are gathered), or pass a gathered tensor (full_tensor())"
        )
    sizes = value.shape
    if len(sizes) != len(shape) or not all(w is None or w == g for w, g in zip(shape, sizes)):
        wanted = "(" + ", ".join("any" if size is None else str(size) for size in shape) + ")"
        raise ValueError(f"{name}: expected shape {wanted}, got {tuple(sizes)}")
    if value.dtype not in dtypes:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ValueError(f"{name}: expected dtype {allowed}, got {str(value.dtype).removeprefix('torch.')}")
    return value


def same_device(name: str, value: Tensor, hidden: Tensor) -> None:
    if value.device != hidden.device:
        raise ValueError(f"{name}: is on {value.device}, but hidden is on {hidden.device}")


def linear(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    rows: Tensor | None,
    softcap: float | None,
    temperature: float,
    ignore_index: int,
    dtype: torch.dtype | None = None,
    vocabulary: int | None = None,
) -> bool:
    """The arguments that every function over linear log-probabilities shares; True: all targets are known to count.

    `dtype`: what hidden and weight are both cast to (autocast's); None: they must have the same.
    `vocabulary`: its size where weight is a part of it.
    """
    tensor("hidden", hidden, (None, None), FLOATS)
    tensor("weight", weight, (None, hidden.shape[1]), FLOATS)
    same_device("weight", weight, hidden)
    if weight.shape[0] == 0:
        raise ValueError("weight: has no rows, the vocabulary is empty")
    if dtype is None and weight.dtype != hidden.dtype and not torch.is_autocast_enabled(hidden.device.type):
        raise ValueError(f"weight: is {weight.dtype}, but hidden is {hidden.dtype}")
    if rows is not None:
        tensor("rows", rows, (None,), INTEGERS)
        if rows.device.type != "cpu":
            same_device("rows", rows, hidden)
    entries = hidden.shape[0] if rows is None else rows.shape[0]
    tensor("targets", targets, (entries,), INTEGERS)
    same_device("targets", targets, hidden)
    if bias is not None:
        tensor("bias", bias, (weight.shape[0],), FLOATS)
        same_device("bias", bias, hidden)
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap: must be positive, got {softcap}")
    if not temperature > 0:
        raise ValueError(f"temperature: must be positive, got {temperature}")
    if rows is not None and reads_values(rows) and rows.numel():
        low, high = (int(v) for v in torch.aminmax(rows))
        if low < 0 or high >= hidden.shape[0]:
            raise ValueError(f"rows: {low}..{high} is outside hidden's rows 0..{hidden.shape[0] - 1}")
    vocabulary = vocabulary or weight.shape[0]
    if reads_values(targets) and targets.numel():
        low, high = (int(v) for v in torch.aminmax(targets))
        if low < 0 or high >= vocabulary:
            wrong = ((targets < 0) | (targets >= vocabulary)) & (targets != ignore_index)
            if wrong.any():
                at = int(wrong.nonzero()[0])
                raise ValueError(
                    f"targets: entry {at} is {int(targets[at])}, outside the vocabulary 0..{vocabulary - 1} "
                    f"and not the ignore index {ignore_index}"
                )
        return low >= 0 and high < vocabulary and not low <= ignore_index <= high
    return False


def cu_segments(name: str, value: Tensor, entries: int, hidden: Tensor) -> None:
    """Cumulative offsets: from 0, never falling, to the number of entries. May lie on the CPU for any `hidden`."""
    tensor(name, value, (None,), INTEGERS)
    if value.device.type != "cpu":
        same_device(name, value, hidden)
    if value.numel() == 0:
        raise ValueError(f"{name}: is empty; zero segments are the one offset [0]")
    if reads_values(value):
        offsets(name, value, entries)


def offsets(name: str, value: Tensor, entries: int) -> None:
    """The value check of cu_segments, for a tensor that is known to lie on the host."""
    values = value.tolist()  # one operation, where tensors' comparisons are six: a small batch has few segments
    if values[0] != 0 or values[-1] != entries:
        raise ValueError(f"{name}: runs from {values[0]} to {values[-1]}, expected 0 to N = {entries}")
    if values != sorted(values):  # which only walks over what is in order
        at = next(i for i, (before, after) in enumerate(pairwise(values)) if after < before)
        raise ValueError(f"{name}: falls from {values[at]} to {values[at + 1]} at segment {at}")


def constant(name: str, value: object) -> None:
    """A number, or a tensor that the loss does not differentiate: asking for its gradient is an error, not nought."""
    if isinstance(value, Tensor) and value.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{name}: requires a gradient, but is a constant of the loss; pass it detached")


def normalizer(value: object) -> None:
    """A number, or a 0-d tensor on any device."""
    if isinstance(value, Tensor) and value.dim():
        raise ValueError(f"normalizer: expected a number or a 0-d tensor, got shape {tuple(value.shape)}")
    constant("normalizer", value)


def per_segment(name: str, value: Tensor, segments: int, hidden: Tensor) -> None:
    tensor(name, value, (segments,), FLOATS)
    same_device(name, value, hidden)
    constant(name, value)
    # As a list, like offsets; a sum is finite only if all are.
    if reads_values(value) and not math.isfinite(sum(value.tolist())) and not bool(torch.isfinite(value).all()):
        at = int((~torch.isfinite(value)).nonzero()[0])
        raise ValueError(f"{name}: entry {at} is {float(value[at])}")
