"""Program: the fused loss inside the forward of an FSDP2 root, on two processes, against one unsharded model.

Exits 0 if every gradient agrees and a DTensor weight is refused by name.
"""

import tempfile

import dapo_kernels as dk
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

WORLD, STEPS, LENGTH, WIDTH, VOCABULARY = 2, 6, 4, 16, 31


class Policy(nn.Module):
    """The loss is part of forward: there the parameters of an FSDP root are gathered."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.lm_head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, ids, targets, cu_steps, advantages, ref_logps, normalizer):
        hidden = torch.tanh(self.layer(self.embed(ids)))
        return dk.linear_direct_advantage_loss(
            hidden, self.lm_head.weight, targets, cu_steps, advantages, ref_logps, 0.3, normalizer
        )


def data():
    torch.manual_seed(1)
    ids = torch.randint(0, VOCABULARY, (STEPS, LENGTH))
    return ids, torch.randint(0, VOCABULARY, (STEPS, LENGTH)), torch.randn(STEPS), torch.randn(STEPS)


def make():
    torch.manual_seed(0)
    return Policy()


def loss_of(model, steps):
    ids, targets, advantages, ref = (t[steps] for t in data())
    cu = torch.arange(len(ids) + 1, dtype=torch.int32) * LENGTH
    return model(ids.flatten(), targets.flatten(), cu, advantages, ref, STEPS).loss


def worker(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD)
    mesh = init_device_mesh("cpu", (WORLD,))
    alone = make()
    loss_of(alone, slice(None)).backward()

    model = make()
    fully_shard(model.layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for module in (model.layer, model):
        # The loss is already divided by the GLOBAL number of steps: shards are summed, not averaged.
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
    loss_of(model, slice(rank * STEPS // WORLD, (rank + 1) * STEPS // WORLD)).backward()
    for (name, sharded), whole in zip(model.named_parameters(), alone.parameters()):
        torch.testing.assert_close(sharded.grad.full_tensor(), whole.grad, msg=name)

    model.reshard()
    refused = None
    try:
        dk.linear_token_logprobs(torch.randn(2, WIDTH), model.lm_head.weight, torch.tensor([1, 2]))
    except ValueError as error:
        refused = str(error)
    assert refused is not None and refused.startswith("weight: is a DTensor"), refused
    dist.destroy_process_group()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(worker, (folder,), nprocs=WORLD, start_method="fork")
    print("FSDP2 agrees")
