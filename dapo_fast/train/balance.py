"""The routers' load-balancing loss (Switch Transformer, equations 4–6), as transformers' ``load_balancing_loss_func``.

E · Σ_e f_e · P_e over all tokens and routed layers of an optimizer step's batch, on all ranks: f_e is how often a token
chooses expert e, P_e the mean probability that a router gives it. f has no gradient, but it is the whole batch's: so a
batch is read twice, once for f and once to train, and packs and ranks only add up.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import register_fsdp_forward_method
from transformers import PreTrainedModel

from dapo_fast.data.pack import Pack
from dapo_fast.data.shares import token_shares
from dapo_fast.errors import InputError
from dapo_fast.models.attention import backbone_inputs
from dapo_fast.models.padded import reads_padded
from dapo_fast.models.size import chosen_experts
from dapo_fast.train.parallel import World


def routers(model: PreTrainedModel) -> tuple[list[nn.Module], int]:
    """The routers of ``model``'s layers, and which of a router's outputs are its logits.

    Raises:
        InputError: transformers knows no such loss for this family: a dense one, or one that is balanced otherwise.
    """
    if reads_padded(model.config):
        raise InputError("router_aux: a model with a recurrent state reads padded rows, whose padding it would count")
    family = [sys.modules[base.__module__] for base in type(model).__mro__]
    recorder = (getattr(model, "_can_record_outputs", None) or {}).get("router_logits")
    if recorder is None or not any(hasattr(module, "load_balancing_loss_func") for module in family):
        kind = model.config.get_text_config().model_type
        raise InputError(f"router_aux: transformers has no load-balancing loss of a {kind} model's routers")
    return [module for module in model.modules() if isinstance(module, recorder.target_class)], recorder.index


class Balance:
    """The load-balancing loss of a model that is being trained.

    Attributes:
        value: The loss of the batch at hand, without its coefficient.
    """

    def __init__(self, root: nn.Module, model: PreTrainedModel, world: World, coefficient: float) -> None:
        """Listen to the routers of ``model`` within ``root``, whose forward gathers the weights.

        Raises:
            InputError: as ``routers``.
        """
        found, index = routers(model)
        self.value = 0.0
        self._root, self._model, self._world, self._coefficient = root, model, world, coefficient
        self._chosen = chosen_experts(model.config.get_text_config())
        self._layers = len(found)
        self._heard: list[Tensor] | None = None
        self._shares: list[Tensor] = []
        self._price = torch.zeros(0)  # (E,): what a token pays for the probability of each expert
        for place, router in enumerate(found):
            router.register_forward_hook(functools.partial(self._hear, place, index))
        if any(module._compiled_call_impl is not None for module in model.modules()):
            torch.compiler.reset()  # what was compiled before it had its hooks would not call them
        root.read_backbone = lambda inputs: model.base_model(**inputs)
        register_fsdp_forward_method(root, "read_backbone")

    def _hear(self, place: int, index: int, module: nn.Module, inputs: Any, output: Any) -> None:
        # Not when a block is computed again for its gradients.
        if self._heard is not None:
            self._heard[place] = output[index]

    @contextmanager
    def listening(self) -> Iterator[list[Tensor]]:
        """A forward within the block leaves the logits ``(T, E)`` of every routed layer in what this gives."""
        self._heard = heard = [torch.zeros(0)] * self._layers
        try:
            yield heard
        finally:
            self._heard = None

    @torch.no_grad()
    def measure(self, ranks: Sequence[Sequence[Pack]]) -> None:
        """Read a batch for the choices and probabilities of all its tokens; a collective of all ranks.

        Args:
            ranks: The packs of every rank, as many on each.
        """
        shares = token_shares([pack for rank in ranks for pack in rank])
        mine = ranks[self._world.rank]
        first = self._world.rank * len(mine)
        self._shares = [share.to(self._world.device) for share in shares[first : first + len(mine)]]
        sums = []
        for pack, share in zip(mine, self._shares, strict=True):
            with self.listening() as heard:
                self._root.read_backbone(backbone_inputs(self._model, pack.to(self._world.device)))
            sums += [self._sums(logits, share).double() for logits in heard]
        rows = self._layers * sum(share.double().sum().item() for share in shares)
        load, mean = self._world.all_sum(torch.stack(sums).sum(0)) / rows
        self.value = load.numel() * (load @ mean).item()
        self._price = (self._coefficient * load.numel() / rows * load).float()

    def _sums(self, logits: Tensor, share: Tensor) -> Tensor:
        """``(2, E)``: how often a layer's tokens choose each expert, and its probability summed over them."""
        probabilities = logits.float().softmax(-1)
        chosen = probabilities.topk(self._chosen).indices
        counts = torch.zeros_like(probabilities).scatter_(1, chosen, 1.0)
        return torch.stack([share @ counts, share @ probabilities])

    def loss(self, heard: list[Tensor], number: int) -> Tensor:
        """What pack ``number`` of this rank adds to coefficient · loss, with gradients, from its routers' logits."""
        mean = torch.stack([self._shares[number] @ logits.float().softmax(-1) for logits in heard]).sum(0)
        return mean @ self._price
