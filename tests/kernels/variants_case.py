"""Program: how many forms of each Triton kernel a simulated epoch would compile on a GPU; prints them as JSON.

The kernels are not run: a launch is answered by the key under which Triton's launcher looks up what it has compiled.
"""

import json
import os
from collections import defaultdict

import dapo_kernels as dk
import torch
from dapo_kernels.ops import (  # noqa: F401  before the switch
    direct_advantage,
    dlogits,
    exponentials,
    logprob,
    segment_sum,
    value,
)
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

BACKEND = make_backend(GPUTarget("cuda", 90, 32))
forms = defaultdict(set)


def launch(kernel, *args, grid, warmup, **options):
    _, specialization, options = create_function_from_signature(kernel.signature, kernel.params, BACKEND)(
        *args, **options
    )
    forms[kernel.fn.__name__].add(str((specialization, options)))


def pack(generator, lengths, vocabulary, height):
    entries = sum(lengths)
    return {
        "hidden": torch.randn(height, 48, generator=generator).bfloat16(),
        "targets": torch.randint(0, vocabulary, (entries,), generator=generator),
        "cu": torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32),
        "rows": torch.randint(0, height, (entries,), generator=generator),
        "steps": torch.randn(len(lengths), generator=generator),
    }


def epoch(vocabulary):
    """Actor, reference and critic over packs of 1 to 40 steps, cut into chunks of every length."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(vocabulary, 48, generator=generator).bfloat16().requires_grad_()
    head = torch.randn(1, 48, generator=generator).bfloat16().requires_grad_()
    packs = [[1], [16], [15, 17, 1], [1, 16, 16, 16], [3] * 16, [5, 0, 2] * 12, [33, 1, 1, 30, 2], [8, 8]]
    for lengths in packs:
        data = pack(generator, lengths, vocabulary, 16 * len(lengths) + 1)
        hidden = data["hidden"].requires_grad_()
        for normalizer in (7, torch.tensor(7.0)):
            arguments = (hidden, weight, data["targets"], data["cu"], data["steps"], data["steps"], 0.1, normalizer)
            dk.linear_direct_advantage_loss(*arguments, rows=data["rows"], chunk_rows=32, backend="triton")
            # A hidden row an entry, in chunks that hold every step: longer ones are first read forward only.
            alone = (data["hidden"][: len(data["targets"])].requires_grad_(), *arguments[1:])
            dk.linear_direct_advantage_loss(*alone, chunk_rows=64, backend="triton")
        with torch.no_grad():
            dk.linear_step_logprobs(
                hidden, weight, data["targets"], data["cu"], rows=data["rows"], chunk_rows=32, backend="triton"
            )
        for count in {len(lengths), 1}:
            rows = data["rows"].repeat(2)[:count]
            dk.linear_value_loss(hidden, head, None, rows, data["steps"].sigmoid()[:count], backend="triton")


if __name__ == "__main__":
    JITFunction.run = launch
    os.environ["TRITON_INTERPRET"] = "1"  # lets the Triton path be asked for without a GPU; the kernels exist already
    for size in (4096, 4097):
        epoch(size)
    print(json.dumps({name: len(keys) for name, keys in forms.items()}))
