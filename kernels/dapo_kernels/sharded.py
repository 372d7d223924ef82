"""A vocabulary that is shared out: every process of a group holds some rows of the weight, and all of hidden.

What a softmax takes from the whole vocabulary is reduced over the group, three numbers a row: the largest logit, the
sum of exponentials, the target's logit. The logits themselves stay where they are made.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from dapo_kernels import checks
from dapo_kernels.chunk_torch import TorchLogits, entropies
from dapo_kernels.plan import Piece

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class Shard:
    """This process's rows of a weight: start and up, out of `total`."""

    group: "ProcessGroup"
    start: int
    total: int
    widest: int  # rows of the largest shard: chunks are cut by it, so that all processes cut the same

    @classmethod
    def of(cls, weight: Tensor, group: "ProcessGroup") -> "Shard":
        """Asks every process for its number of rows, in the order of their ranks; on a GPU that waits for the device.

        Raises ValueError, on all of them, where one has no rows.
        """
        sizes = torch.zeros(dist.get_world_size(group), dtype=torch.int64, device=weight.device)
        rank = dist.get_rank(group)
        sizes[rank] = weight.shape[0]
        dist.all_reduce(sizes, group=group)
        rows = sizes.tolist()
        if 0 in rows:
            raise ValueError(f"weight: process {rows.index(0)} of process_group has no rows of it")
        return cls(group, sum(rows[:rank]), sum(rows), max(rows))

    def sum(self, tensor: Tensor) -> Tensor:
        """`tensor`, summed over the group in place."""
        dist.all_reduce(tensor, group=self.group)
        return tensor

    def largest(self, tensor: Tensor) -> Tensor:
        """`tensor`, the largest of the group in place."""
        dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self.group)
        return tensor


def local_rows(name: str, value: Tensor, group: "ProcessGroup") -> Tensor:
    """A plain tensor as it is; of a DTensor that `group` shares by rows, this process's, differentiably."""
    if not checks.is_dtensor(value):
        return value
    mesh, placements = value.device_mesh, value.placements
    sharded = [i for i, placement in enumerate(placements) if not placement.is_replicate()]
    if len(sharded) != 1 or not placements[sharded[0]].is_shard(0) or mesh.get_group(sharded[0]) != group:
        raise ValueError(f"{name}: is a DTensor placed {placements}, not shared by rows over process_group alone")
    return value.to_local()


class ShardedLogits(TorchLogits):
    """The logits of this process's words; log-probabilities, sums and statistics are those of the whole vocabulary."""

    def __init__(self, shard: Shard, *options: object) -> None:
        super().__init__(*options)
        self.shard = shard

    def forward(self, x: Tensor, targets: Tensor, piece: Piece, keep: bool) -> Tensor:
        """As TorchLogits.forward; all processes call it with the same arguments."""
        logits, shard = self._final(x, keep), self.shard
        rows, width = logits.shape
        self.ignored = None if self.ignore_index is None else targets == self.ignore_index
        columns = targets - shard.start
        self.own = (columns >= 0) & (columns < width)
        self._locate(columns.clamp(0, width - 1), piece)
        # Always without the maximum: whether sums need it would have to be agreed on.
        self.highest = shard.largest(logits.amax(1))
        picked = logits.sub_(self.highest[:, None]).view(-1).index_select(0, self.at).masked_fill_(~self.own, 0)
        self.exponentials = logits.exp_()
        both = shard.sum(torch.cat([logits.sum(1), picked]))
        self.sums, picked = both.split([rows, targets.numel()])
        if self.statistics:
            self.entropy = shard.sum(entropies(logits, self.sums[:, None]))
        return self._logps(picked)
