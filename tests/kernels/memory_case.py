"""Program: print by how many bytes the fused loss, its gradients included, raises this process's peak memory."""

import resource
import sys

import dapo_kernels as dk
import torch


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


entries, vocabulary, width = (int(a) for a in sys.argv[1:4])
torch.set_num_threads(1)
torch.manual_seed(0)


def run(entries, vocabulary):
    hidden = torch.randn(entries, width, requires_grad=True)
    weight = torch.randn(vocabulary, width, requires_grad=True)
    targets = torch.randint(0, vocabulary, (entries,))
    cu_steps = torch.arange(0, entries + 1, 32, dtype=torch.int32)
    advantages = torch.randn(cu_steps.numel() - 1)
    before = peak()
    dk.linear_direct_advantage_loss(hidden, weight, targets, cu_steps, advantages, advantages).loss.backward()
    return peak() - before


run(64, 128)  # the libraries' own buffers
print(run(entries, vocabulary))
