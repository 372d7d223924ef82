"""Direct advantages in a bare PyTorch loop with FSDP2.

The loss is computed inside the root module's forward: only there are the sharded parameters gathered, so that the
lm_head's weight is a plain tensor. The loss is divided by the GLOBAL number of steps: FSDP sums, not averages.

    python examples/fsdp2_loop.py                                      # one process
    torchrun --nproc-per-node 2 examples/fsdp2_loop.py                 # CPU (gloo) or CUDA (nccl)
"""

import os

import torch
import torch.distributed as dist
from dapo_kernels import hidden_states_and_weight, linear_direct_advantage_loss, linear_step_logprobs
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import LlamaConfig, LlamaForCausalLM

BETA, VOCABULARY, STATES, PREFIX, STEP = 0.1, 64, 32, 6, 4


class Policy(nn.Module):
    """A causal LM whose forward is the loss of its steps (or their log-probabilities, without advantages)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids, targets, rows, cu_steps, advantages=None, ref_logps=None, normalizer=None):
        head = hidden_states_and_weight(self.model, input_ids=input_ids)
        arguments = (head.hidden.flatten(0, 1), head.weight, targets, cu_steps)
        if advantages is None:
            return linear_step_logprobs(*arguments, rows=rows, **head.options)
        return linear_direct_advantage_loss(
            *arguments, advantages, ref_logps, BETA, normalizer, rows=rows, **head.options
        )


def batch_of(rank: int, world: int, device: torch.device) -> dict[str, torch.Tensor]:
    """This rank's share of random states, two candidate steps each: the first is good, the second bad."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randint(0, VOCABULARY, (STATES, 1, PREFIX), generator=generator).expand(-1, 2, -1)
    steps = torch.randint(0, VOCABULARY, (STATES, 2, STEP), generator=generator)
    ids = torch.cat([states, steps], -1)[rank::world].flatten(0, 1)
    position = torch.arange(PREFIX - 1, PREFIX + STEP - 1)
    rows = torch.arange(len(ids))[:, None] * (PREFIX + STEP) + position
    return {
        "input_ids": ids.to(device),
        "targets": ids[:, PREFIX:].flatten().to(device),
        "rows": rows.flatten(),  # rows and cu_steps may stay on the CPU: then nothing waits for the GPU
        "cu_steps": torch.arange(0, rows.numel() + 1, STEP, dtype=torch.int32),
        "advantages": torch.tensor([0.5, -0.5], device=device).repeat(len(ids) // 2),
    }


def main(updates: int = 30) -> tuple[float, float]:
    """Train; return the global loss of the first and of the last update."""
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29533")
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(kind, int(os.environ.get("LOCAL_RANK", 0)) if kind == "cuda" else None)
    dist.init_process_group("nccl" if kind == "cuda" else "gloo", rank=rank, world_size=world)
    mesh = init_device_mesh(kind, (world,))

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    policy = Policy(LlamaForCausalLM(config)).to(device)
    sharded = [*policy.model.model.layers, policy]
    for module in sharded:
        fully_shard(module, mesh=mesh)
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3)

    batch = batch_of(rank, world, device)
    with torch.no_grad():
        scored = {k: batch[k] for k in ("input_ids", "targets", "rows", "cu_steps")}
        batch["ref_logps"] = policy(**scored)
    losses = []
    for _ in range(updates):
        out = policy(**batch, normalizer=2 * STATES)
        out.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        total = out.loss.detach().clone()
        dist.all_reduce(total)
        losses.append(total.item())
    dist.barrier()  # nobody leaves while another still talks
    dist.destroy_process_group()
    return losses[0], losses[-1]


if __name__ == "__main__":
    first, last = main()
    if int(os.environ.get("RANK", 0)) == 0:
        print(f"loss of the first update {first:.3f}, of the last {last:.3f}")
