"""Program: losses and log-probabilities of a vocabulary that processes share out, against one process with all of it.

Takes numbers of processes; exits 0 if all agree.
"""

import sys
import tempfile

import dapo_kernels as dk
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from kernel_cases import error, make_case
from torch.distributed.tensor import DeviceMesh, Shard, distribute_tensor

CASES = [
    {"vocabulary": 37, "chunk_rows": 5},
    {"vocabulary": 37, "bias": True, "ignore": True, "softcap": 3.0, "temperature": 0.7},
    {"vocabulary": 301, "shared_rows": True, "chunk_rows": 6, "ignore": True},
    {"vocabulary": 4, "dtype": torch.bfloat16, "bias": True},
    {"vocabulary": 50, "dtype": torch.float64, "shared_rows": True},
]


def losses(case):
    """name → what a call with (hidden, weight, bias) of the case and further options makes: (scalar, other results)."""
    data = (case.targets, case.cu, case.advantages, case.ref_logps)
    options = {**case.options, "chunk_rows": case.chunk_rows}
    old = -torch.rand(case.targets.numel(), generator=torch.Generator().manual_seed(0)) * 4

    def direct(hidden, weight, **more):
        out = dk.linear_direct_advantage_loss(hidden, weight, *data, 0.3, statistics=True, **options, **more)
        return out.loss, *out[1:]

    def steps(hidden, weight, **more):
        found = dk.linear_step_logprobs(hidden, weight, case.targets, case.cu, **options, **more)
        return (found * case.advantages).sum(), found

    def clipped(hidden, weight, **more):
        objective = dk.ClippedPolicyGradient(old.cos(), old)
        out = dk.linear_segment_loss(hidden, weight, case.targets, None, objective, **options, **more)
        return out.loss, out.token_logps

    def statistics(hidden, weight, **more):
        out = dk.linear_token_statistics(hidden, weight, case.targets, **options, **more)
        return out.logps.sum(), *out

    def entropy(hidden, weight, **more):
        penalties = {"z_loss": 1e-2, "label_smoothing": 0.0 if case.softcap else 0.1}
        return (dk.linear_cross_entropy(hidden, weight, case.targets, **penalties, **options, **more),)

    return [direct, steps, clipped, statistics, entropy]


def agrees(case, rank, world):
    # As unequal as shards can be: the last process has what the others leave, one row each.
    bounds = [*range(world), case.weight.shape[0]]
    own = slice(bounds[rank], bounds[rank + 1])
    tolerance = 2e-2 if case.weight.dtype == torch.bfloat16 else 1e-5
    for call in losses(case):
        whole, parts = case.leaves(), case.leaves()
        parts[1:] = [t.detach()[own].clone().requires_grad_() for t in parts[1:]]
        wanted = call(*whole[:2], bias=whole[2] if case.bias is not None else None)
        got = call(*parts[:2], bias=parts[2] if case.bias is not None else None, process_group=dist.group.WORLD)
        (3 * wanted[0]).backward()
        (3 * got[0]).backward()
        whole[1:] = [t.grad[own] for t in whole[1:]]
        gradients = zip([p.grad for p in parts], [whole[0].grad, *whole[1:]])
        for mine, theirs in [*zip(got, wanted), *gradients]:
            scale = theirs.detach().abs().max().clamp(min=1e-2)  # a word's gradient may be nought
            assert ((mine - theirs).abs() <= tolerance * scale).all(), (call.__name__, mine, theirs)


def dtensors(rank, world):
    """A DTensor gives a gradient that is one; sharded otherwise, or empty on a process, it is refused on all."""
    case = make_case([4, 6, 2], 37, bias=True)
    mesh = DeviceMesh("cpu", list(range(world)))
    whole = case.leaves()
    dk.linear_cross_entropy(whole[0], whole[1], case.targets, bias=whole[2]).backward()
    hidden = case.hidden.clone().requires_grad_()
    weight, bias = (distribute_tensor(t, mesh, [Shard(0)]).requires_grad_() for t in (case.weight, case.bias))
    dk.linear_cross_entropy(hidden, weight, case.targets, bias=bias, process_group=mesh.get_group()).backward()
    for got, wanted in zip((hidden.grad, weight.grad.full_tensor(), bias.grad.full_tensor()), whole):
        assert error(got, wanted.grad) < 1e-5
    by_columns = distribute_tensor(case.weight, mesh, [Shard(1)])
    few = case.weight[: 1 if rank else 0]
    for wrong, said in [(by_columns, "weight: is a DTensor placed"), (few, "weight: process 0 of process_group")]:
        try:
            dk.linear_token_logprobs(hidden, wrong, case.targets, process_group=mesh.get_group())
        except ValueError as refusal:
            assert str(refusal).startswith(said), refusal
        else:
            raise AssertionError(f"not refused: {said}")


def worker(rank, world, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/{world}", rank=rank, world_size=world)
    for number, options in enumerate(CASES):
        agrees(make_case([4, 1, 0, 9, 2], seed=number, **options), rank, world)
    dtensors(rank, world)
    dist.destroy_process_group()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for world in map(int, sys.argv[1:]):
            mp.start_processes(worker, (world, folder), nprocs=world, start_method="fork")
            print(f"shared vocabularies of {world} agree")
