"""Tensor parallelism: the matrices of every layer divided over the ranks of a group, by transformers' own plan.

The world is data × tensor: neighbouring ranks hold one copy of the model together and read the same packs. A parameter
is divided over the group first and what is left of it sharded by FSDP2 over the ranks of its place in the other groups,
so that every parameter is a DTensor of one mesh: gradient norm, optimizer, checkpoints and export know nothing of it.

**Layers.** PyTorch's ``ColwiseParallel`` and ``RowwiseParallel`` on what the plan names: a rank has the rows of some
heads' projections and of some of the inner width, and the hidden states are summed over the group after attention and
after the MLP. Attention reads as many heads as it is given.

**Parameters that stay whole** (norms, a critic's head) are computed with as plain tensors, the same on every rank.
Norms of heads see only a rank's own: the plan says so, and their gradients are summed over the group.

**The vocabulary.** Embedding and head are divided by its words, whether they are one or two. A rank looks up its own
words, and the rows are summed; the fused losses take the group and its rows of the head (``dapo_kernels.sharded``).

**Refused** before weights are read: families other than those tested against one process, plans that ask for more, and
sizes that the group does not divide.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module
from torch.nn import functional as F
from transformers import PreTrainedModel

from dapo_fast.errors import InputError
from dapo_fast.models.checks import check_proved

if TYPE_CHECKING:
    from dapo_fast.config import OptimSettings  # needs pydantic, which reading a model does not

SETTING = "parallel.tensor_parallel_degree"
DIVIDED = ("num_attention_heads", "num_key_value_heads", "intermediate_size")


class _Whole(ParallelStyle):
    """A module whose parameters every rank has whole, and computes with as plain tensors.

    ``gradient``: what a rank's gradient of them is, all of it or one term of a sum.
    """

    def __init__(self, gradient: Placement) -> None:
        self._gradient = gradient

    def _apply(self, module: nn.Module, mesh: DeviceMesh) -> nn.Module:
        _place(module, mesh, Replicate())
        forward = module.forward

        def with_plain(*args: Any, **kwargs: Any) -> Any:
            held = {name: p for name, p in module._parameters.items() if p is not None}
            module._parameters.update({name: p.to_local(grad_placements=[self._gradient]) for name, p in held.items()})
            try:
                return forward(*args, **kwargs)
            finally:
                module._parameters.update(held)

        module.forward = with_plain  # type: ignore[method-assign]
        return module


class _Words(ParallelStyle):
    """An embedding of which every rank looks up its own words.

    PyTorch's style for it makes a gradient of the whole vocabulary on every rank, and knows no ``padding_idx``.
    """

    def _apply(self, module: nn.Module, mesh: DeviceMesh) -> nn.Module:
        _place(module, mesh, Shard(0))
        first = mesh.get_local_rank() * -(-module.num_embeddings // mesh.size())

        def look_up(ids: Tensor) -> Tensor:
            weight = module.weight.to_local()
            words = ids - first
            own = (words >= 0) & (words < len(weight))
            padding = None if module.padding_idx is None else module.padding_idx - first
            if padding is not None and not 0 <= padding < len(weight):
                padding = None
            found = F.embedding(words.clamp(0, len(weight) - 1), weight, padding)
            found = DTensor.from_local(found.masked_fill(~own[..., None], 0), mesh, [Partial()], run_check=False)
            return found.redistribute(placements=[Replicate()]).to_local()

        module.forward = look_up  # type: ignore[method-assign]
        return module


STYLES = {
    "colwise": ColwiseParallel,
    "rowwise": RowwiseParallel,
    "replicated_with_grad_allreduce": lambda: _Whole(Partial()),
}


def check_divided(model: PreTrainedModel, degree: int, settings: OptimSettings) -> None:
    """Refuse a model that ``degree`` ranks cannot hold together, or not as ``settings`` train it; reads no weights.

    Raises:
        InputError: naming the setting and what stands in the way.
    """
    config = model.config.get_text_config()
    check_proved(config, SETTING)
    unknown = sorted(set(_plan(model).values()) - STYLES.keys())
    if unknown or not _plan(model):
        asks = f"asks for {unknown[0]}" if unknown else "is empty"
        raise InputError(f"{SETTING}: not for this {config.model_type} model, whose plan in transformers {asks}")
    for name in DIVIDED:
        if getattr(config, name) % degree:
            raise InputError(f"{SETTING} {degree}: does not divide the model's {name} of {getattr(config, name)}")
    if settings.lora_rank:
        raise InputError(f"{SETTING}: not with lora_rank")
    if settings.optimizer_state != "float32":
        raise InputError(f"{SETTING}: not with optimizer_state {settings.optimizer_state}")


def divide(model: PreTrainedModel, mesh: DeviceMesh) -> None:
    """Divide ``model`` over the ranks of ``mesh``, in place; ``check_divided`` has passed it.

    Args:
        model: On the meta device, or the same on every rank.
    """
    # It warns of sums and copies over both axes of the mesh, one after the other: once a step, and at the export.
    logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is not None and head.weight is embedding.weight
    plan = _plan(model)
    styles: dict[str, ParallelStyle] = {}
    for name, module in model.named_modules():
        style = plan.get(_pattern(name))
        if module is embedding:
            styles[name] = _Words()
        elif style is not None:
            styles[name] = STYLES[style]()
        elif module is not head and module._parameters:
            styles[name] = _Whole(Replicate())
    parallelize_module(model, mesh, styles, src_data_rank=None)
    if tied:
        head.weight = embedding.weight
    elif head is not None:
        _place(head, mesh, Shard(0))


def plain(parameter: Tensor) -> Tensor:
    """A parameter that every rank has whole, as a plain tensor; differentiable."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def _plan(model: PreTrainedModel) -> dict[str, str]:
    """The style of every module that transformers' plan names, by its name's pattern; but for the vocabulary's."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    names = {name for name, module in model.named_modules() if any(module is end for end in ends)}
    return {name: style for name, style in model.tp_plan.items() if name not in names}


def _pattern(name: str) -> str:
    """A module's name as plans write it, with a star for each number."""
    return re.sub(r"\d+", "*", name)


def _place(module: nn.Module, mesh: DeviceMesh, placement: Placement) -> None:
    """Make the parameters of ``module`` DTensors of ``mesh``; nothing is sent."""
    for name, parameter in list(module.named_parameters(recurse=False)):
        placed = distribute_tensor(parameter, mesh, [placement], src_data_rank=None)
        module.register_parameter(name, nn.Parameter(placed, requires_grad=parameter.requires_grad))
