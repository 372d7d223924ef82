"""``python benchmarks/roofline.py N H V``: what a forward and backward of the fused loss must cost on a GPU.

Counted from the shape, in bf16, and set against the makers' data sheets; nothing is measured. A pass takes as long as
its operations at the peak or its bytes at the memory's bandwidth, whichever is longer. The floor is the three matrix
products alone (logits, hidden's gradient, weight's gradient), each tensor read or written once in bf16.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

import torch
from dapo_kernels.plan import sizes

Shape = tuple[int, int, int]  # (N, H, V): scored tokens, hidden size, vocabulary


# Qwen2.5-0.5B, -1.5B, -7B and Llama-3.1-8B: what the benchmarks measure on a GPU.
GPU_SHAPES = [(8192, 896, 151936), (16384, 1536, 151936), (16384, 3584, 152064), (8192, 4096, 128256)]


@dataclass(frozen=True)
class Peak:
    """One device by its maker's data sheet (SXM boards)."""

    flops: float  # dense bf16, a second
    bandwidth: float  # bytes a second


PEAKS = {"H100": Peak(989e12, 3.35e12), "H200": Peak(989e12, 4.8e12)}
OTHER_BOARDS = {"NVL", "PCIe"}  # the same chip with other clocks and memory


@dataclass(frozen=True)
class Pass:
    """What one pass over a call's data computes and moves, all chunks together."""

    name: str
    flops: float
    bytes: float

    def seconds(self, peak: Peak) -> float:
        return max(self.flops / peak.flops, self.bytes / peak.bandwidth)


def peak_of(device: str) -> Peak | None:
    """The data sheet of a device by its name, such as "NVIDIA H100 80GB HBM3"; None: not one that is listed."""
    words = set(re.split(r"\W+", device))
    return next((peak for name, peak in PEAKS.items() if name in words and not words & OTHER_BOARDS), None)


def passes(shape: Shape, chunk_rows: int | None = None) -> list[Pass]:
    """The passes of one forward and backward as the Triton path makes them, with a bf16 hidden and weight.

    Where each hidden row is one entry.
    """
    entries, width, vocabulary = shape
    chunks = ceil(entries / sizes(chunk_rows, vocabulary, torch.device("cuda")).chunk)
    logits, weight, hidden = entries * vocabulary, vocabulary * width, entries * width
    product = 2 * logits * width
    return [
        Pass("logits", product, 4 * logits + 2 * hidden + 2 * weight * chunks),  # fp32, the weight once a chunk
        Pass("softmax", 0, (4 + 2) * logits),
        Pass("hidden's gradient", product, 2 * logits + 2 * hidden + 2 * weight * chunks),
        # Summed in fp32: the first chunk writes it, every other reads and writes it.
        Pass("weight's gradient", product, 2 * logits + 2 * hidden + 4 * weight * (2 * chunks - 1)),
        Pass("its cast", 0, (4 + 2) * weight),
    ]


def shared_passes(shape: Shape, chunk_rows: int | None = None) -> list[Pass]:
    """The same where every chunk has a row of several entries, and so reads its logits once more.

    The rows that are spared are not counted.
    """
    entries, _, vocabulary = shape
    logits, softmax, *others = passes(shape, chunk_rows)
    return [logits, Pass("softmax", 0, softmax.bytes + 4 * entries * vocabulary), *others]


def epilogue_passes(shape: Shape, chunk_rows: int | None = None) -> list[Pass]:
    """The same where the logits' product leaves exponentials in bf16 (DAPO_KERNELS_EPILOGUE=1): no pass over logits."""
    entries, _, vocabulary = shape
    logits, _, *others = passes(shape, chunk_rows)
    blocks = 2 * 4 * entries * ceil(vocabulary / 64)  # the origin of each row's 64 words, written and read
    return [Pass("exponentials", logits.flops, logits.bytes - 2 * entries * vocabulary + blocks), *others]


def floor(shape: Shape) -> list[Pass]:
    """The three matrix products alone."""
    entries, width, vocabulary = shape
    moved = 2 * (entries * vocabulary + vocabulary * width + entries * width)
    names = ("logits", "hidden's gradient", "weight's gradient")
    return [Pass(name, 2 * entries * vocabulary * width, moved) for name in names]


def floor_seconds(shape: Shape, peak: Peak) -> float:
    """The least that the three matrix products take."""
    return sum(p.seconds(peak) for p in floor(shape))


def expected_ratio(
    shape: Shape, peak: Peak, chunk_rows: int | None = None, counted: Callable[..., list[Pass]] = passes
) -> float:
    """All passes over the floor, each at its peak."""
    return sum(p.seconds(peak) for p in counted(shape, chunk_rows)) / floor_seconds(shape, peak)


def rows(shapes: list[Shape]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the table."""
    header = ["N, H, V", "TFLOP", *(f"{p.name} (GB)" for p in passes(shapes[0]))]
    ways = {"ratio": passes, "ratio, shared rows": shared_passes, "ratio, epilogue": epilogue_passes}
    header += ["logits and softmax, epilogue (GB)"]
    header += [f"{name}: {what}" for name in PEAKS for what in ("floor (ms)", *ways)]
    cells = []
    for shape in shapes:
        counted = passes(shape)
        line = [", ".join(map(str, shape)), f"{sum(p.flops for p in counted) / 1e12:.1f}"]
        line += [f"{p.bytes / 1e9:.1f}" for p in counted]
        line.append(f"{epilogue_passes(shape)[0].bytes / 1e9:.1f}")
        for peak in PEAKS.values():
            ratios = (expected_ratio(shape, peak, counted=counted) for counted in ways.values())
            line += [f"{1e3 * floor_seconds(shape, peak):.1f}", *(f"{ratio:.2f}" for ratio in ratios)]
        cells.append(line)
    return header, cells


def main() -> int:
    """Print the table of one shape. Exit code 2 for other words than three whole numbers."""
    if len(sys.argv) != 4 or not all(word.isdecimal() and int(word) for word in sys.argv[1:]):
        print(__doc__, file=sys.stderr)
        return 2
    header, cells = rows([tuple(map(int, sys.argv[1:]))])
    for name, cell in zip(header, cells[0]):
        print(f"{name:36} {cell:>20}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
