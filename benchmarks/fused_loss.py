"""The fused direct advantage loss, forward and backward, against what others would use for it.

Where a peer can compute the same loss it does: log-probabilities per token, summed into steps of 20 to 60 tokens, then
the squared loss ("step loss"). The others compute their nearest, which needs no sum over steps: the mean token cross
entropy, or GRPO's clipped loss ("token loss"). Rounds are interleaved, so that a busy machine slows all of them;
figures are medians over rounds, and ratios to the FLOOR: the same three matrix products through torch.mm in the
inputs' dtype, measured in the same rounds. Run it as ``python benchmarks/fused_loss.py [--quick]``.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from dapo_kernels import linear_direct_advantage_loss
from roofline import GPU_SHAPES, Peak, Shape, expected_ratio, floor_seconds, peak_of
from torch import Tensor
from torch.nn import functional as F

SUITE, BETA = "fused_loss", 0.01
# (N, H, V) on a CPU: what two cores finish; the last is the built-in task's.
CPU_SHAPES = [(1024, 512, 16384), (2048, 256, 8192), (3000, 96, 35)]
QUICK_SHAPES = [(512, 128, 4096), (3000, 96, 35)]


@dataclass
class Problem:
    """Inputs of one shape."""

    hidden: Tensor  # (N, H)
    weight: Tensor  # (V, H)
    targets: Tensor  # (N,)
    cu_steps: Tensor  # (S+1,)
    step_of: Tensor  # (N,) each token's step
    advantages: Tensor  # (S,)
    ref_logps: Tensor  # (S,)

    def step_loss(self, token_logps: Tensor) -> Tensor:
        """The loss from per-token log-probabilities, as one would write it."""
        steps = torch.zeros_like(self.ref_logps).index_add(0, self.step_of, token_logps.float())
        return 0.5 * (self.advantages / BETA - (steps - self.ref_logps)).square().mean()


def dtype_on(device: str) -> torch.dtype:
    return torch.bfloat16 if device == "cuda" else torch.float32


def make_problem(shape: tuple[int, int, int], device: str) -> Problem:
    entries, width, vocabulary = shape
    generator = torch.Generator().manual_seed(0)
    large = torch.Generator(device).manual_seed(1)  # a CPU takes longer to draw a head than a GPU for all its rounds
    bounds = [0]
    while bounds[-1] < entries:
        bounds.append(min(bounds[-1] + int(torch.randint(20, 61, (), generator=generator)), entries))
    cu, steps = torch.tensor(bounds, dtype=torch.int32), len(bounds) - 1
    problem = Problem(
        torch.randn(entries, width, generator=large, device=device),
        torch.randn(vocabulary, width, generator=large, device=device) / width**0.5,
        torch.randint(0, vocabulary, (entries,), generator=generator),
        cu,
        torch.repeat_interleave(torch.arange(steps), cu.diff()),
        torch.randn(steps, generator=generator) / 10,
        torch.randn(steps, generator=generator) * 5 - 300,
    )
    for name, value in vars(problem).items():
        setattr(problem, name, value.to(device, dtype_on(device)) if name in ("hidden", "weight") else value.to(device))
    problem.cu_steps = cu  # stays on the CPU, so that cutting chunks does not wait for the GPU
    problem.hidden.requires_grad_()
    problem.weight.requires_grad_()
    return problem


def ours(p: Problem, chunk_rows: int | None = None, rows: Tensor | None = None) -> Tensor:
    data = (p.hidden, p.weight, p.targets, p.cu_steps, p.advantages, p.ref_logps)
    return linear_direct_advantage_loss(*data, BETA, chunk_rows=chunk_rows, rows=rows).loss


def ours_with_shared_rows(p: Problem) -> Tensor:
    """A tree's branches in small: every 64th entry reads the row of the one before it, so every chunk has a pair."""
    rows = torch.arange(len(p.hidden))  # on the CPU, as cu_steps
    rows[1::64] -= 1
    return ours(p, rows=rows)


def naive(p: Problem) -> Tensor:
    log_p = torch.log_softmax((p.hidden @ p.weight.T).float(), -1)
    return p.step_loss(log_p.gather(1, p.targets[:, None])[:, 0])


compiled_naive = torch.compile(naive, dynamic=False)


def torch_linear_cross_entropy(p: Problem) -> Tensor:
    options = torch.nn.LinearCrossEntropyOptions()
    return F.linear_cross_entropy(p.hidden, p.weight, p.targets, options=options)


def liger_cross_entropy(p: Problem) -> Tensor:
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

    return LigerFusedLinearCrossEntropyFunction.apply(p.hidden, p.weight, p.targets)[0]


def liger_grpo(p: Problem) -> Tensor:
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    length = next(n for n in range(64, 0, -1) if len(p.targets) % n == 0)  # it wants a rectangle of sequences
    targets = p.targets.view(-1, length)
    loss = LigerFusedLinearGRPOLoss(beta=0.0, use_ref_model=False)
    return loss(
        p.hidden.view(*targets.shape, -1),
        p.weight,
        targets,
        torch.ones_like(targets),
        torch.ones(len(targets), device=targets.device),
    )[0]


def apple_cce(p: Problem) -> Tensor:
    from cut_cross_entropy import linear_cross_entropy

    return p.step_loss(-linear_cross_entropy(p.hidden, p.weight, p.targets, reduction="none", impl="cce"))


def quack(p: Problem) -> Tensor:
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    return chunked_linear_cross_entropy(p.hidden, p.weight, p.targets, reduction="mean")


def trl(p: Problem) -> Tensor:
    from trl.kernels import ChunkedLogProbFunction

    # 8192 vocabulary columns a tile: what its trainers pass.
    return p.step_loss(ChunkedLogProbFunction.apply(p.hidden, p.weight, None, p.targets, 1.0, 8192, None, 1.0, ())[0])


@dataclass(frozen=True)
class Peer:
    loss: Callable[[Problem], Tensor]
    package: str
    math: str = "step loss"
    needs_cuda: bool = False
    expected: Callable[[Shape, Peak], float] | None = None  # ratio to the floor, counted


PEERS = {
    "dapo-fast": Peer(ours, "dapo-fast", expected=expected_ratio),
    "naive": Peer(naive, "torch"),
    "naive, torch.compile": Peer(compiled_naive, "torch"),
    "F.linear_cross_entropy": Peer(torch_linear_cross_entropy, "torch", "token loss"),
    "Liger fused linear cross entropy": Peer(liger_cross_entropy, "liger-kernel", "token loss", True),
    "Liger chunked GRPO": Peer(liger_grpo, "liger-kernel", "token loss"),
    "Apple CCE": Peer(apple_cce, "cut-cross-entropy", needs_cuda=True),
    "quack": Peer(quack, "quack-kernels", "token loss", True),
    "TRL chunked log-probs": Peer(trl, "trl"),
}


class Floor:
    """Logits, dX and dW of the same shapes, into memory that is already there."""

    def __init__(self, p: Problem) -> None:
        self.x, self.w = p.hidden.detach(), p.weight.detach()
        self.logits = torch.empty(len(self.x), len(self.w), dtype=self.x.dtype, device=self.x.device)
        self.dx, self.dw = torch.empty_like(self.x), torch.empty_like(self.w)

    def __call__(self) -> None:
        torch.mm(self.x, self.w.T, out=self.logits)
        torch.mm(self.logits, self.w, out=self.dx)
        torch.mm(self.logits.T, self.x, out=self.dw)


def step(p: Problem, peer: Peer) -> Tensor:
    """One forward and backward; the loss."""
    p.hidden.grad = p.weight.grad = None
    loss = peer.loss(p)
    loss.backward()
    return loss.detach()


def seconds(work: Callable[[], object], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def why_not(peer: Peer, device: str) -> str | None:
    """Why a peer cannot run here; None: it can be tried."""
    if peer.needs_cuda and device != "cuda":
        return "needs a GPU"
    return None if version(peer.package) else "not installed"


def version(package: str) -> str | None:
    """A package's version; ours is this checkout where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "this checkout" if package == "dapo-fast" else None


def peak_bytes(name: str, shape: tuple[int, int, int], device: str) -> int:
    """Peak memory of one forward and backward over the inputs', gradients included."""
    if device == "cuda":
        p = make_problem(shape, device)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step(p, PEERS[name])
        return torch.cuda.max_memory_allocated() - before
    # A CPU process only knows its highest mark ever: so a process for each.
    command = [sys.executable, __file__, "--peak", name, *map(str, shape)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def cpu_peak_here(name: str, shape: tuple[int, int, int]) -> int:
    step(make_problem((64, shape[1], 64), "cpu"), PEERS[name])  # the libraries' own buffers
    torch.compiler.reset()
    p = make_problem(shape, "cpu")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step(p, PEERS[name])
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


def described(shape: Shape, device: str, name: str, peer: Peer) -> dict:
    """What a peer's row says before anything is measured."""
    case = "N={} H={} V={} {}".format(*shape, str(dtype_on(device)).removeprefix("torch."))
    return {"suite": SUITE, "case": case, "device": device, "peer": name, "math": peer.math}


def run_shape(
    shape: tuple[int, int, int],
    device: str,
    rounds: int,
    peaks: bool,
    peers: dict[str, Peer] = PEERS,
    problem: Problem | None = None,  # of this shape, where there already is one
) -> list[dict]:
    """One row a peer; those that cannot run say why."""
    torch.compiler.reset()  # what a peer compiles, it compiles for this shape
    p = problem or make_problem(shape, device)
    rows, times, exact = {}, {"floor": []}, None
    for name, peer in peers.items():
        row = rows[name] = described(shape, device, name, peer)
        reason = why_not(peer, device)
        if reason is None:
            row["peer_version"] = version(peer.package)
            try:
                loss = step(p, peer)  # the first one compiles
                gradients = [t.grad.float() for t in (p.hidden, p.weight)]
                step(p, peer)
            except Exception as failure:
                # Other people's code on unknown machines: the table says what happened instead of ending.
                reason = f"{type(failure).__name__}: {str(failure).splitlines()[0][:200]}" if str(failure) else "failed"
                if name == "dapo-fast":
                    raise
        if reason is not None:
            row["unavailable"] = reason
            continue
        times[name] = []
        if peer.math == "step loss":
            # The same math must give the same answer, or the comparison means nothing.
            exact = exact or [loss, *gradients]
            pairs = zip(exact, [loss, *gradients])
            row["difference_from_ours"] = max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)
        if peaks:
            row["peak_bytes"] = peak_bytes(name, shape, device)
    del exact
    floor = Floor(p)
    floor()
    for _ in range(rounds):
        times["floor"].append(seconds(floor, device))
        for name in list(times)[1:]:
            times[name].append(seconds(lambda name=name: step(p, peers[name]), device))
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, row in rows.items():
        if name in medians:
            row |= {"median_s": medians[name], "floor_s": medians["floor"], "rounds": rounds}
            row["ratio_to_floor"] = medians[name] / medians["floor"]
    if device == "cuda" and (peak := peak_of(torch.cuda.get_device_name())):
        for name in medians.keys() & rows.keys():
            if (expected := peers[name].expected) is not None:
                counted = {"floor_at_peak_s": floor_seconds(shape, peak), "expected_ratio": expected(shape, peak)}
                rows[name] |= counted
    return list(rows.values())


def run(quick: bool) -> list[dict]:
    """All shapes that fit this machine; without a GPU, rows that say the GPU's are not measured."""
    if torch.cuda.is_available():
        return [row for shape in GPU_SHAPES for row in run_shape(shape, "cuda", 5 if quick else 20, True)]
    rows = []
    for shape in QUICK_SHAPES if quick else CPU_SHAPES:
        rows += run_shape(shape, "cpu", 5 if quick else 7, not quick and shape[2] > 1000)
    for shape in GPU_SHAPES:
        case = "N={} H={} V={} bfloat16".format(*shape)
        rows.append(
            {"suite": SUITE, "case": case, "device": "cuda", "peer": "all", "unavailable": "not measured: no GPU"}
        )
    return rows


def table(rows: list[dict]) -> str:
    """Rows for people."""
    lines = []
    for case in dict.fromkeys(row["case"] for row in rows):
        lines.append(case)
        for row in (row for row in rows if row["case"] == case):
            if "unavailable" in row:
                lines.append(f"  {row['peer']:<34} {row['unavailable']}")
                continue
            memory = f"{row['peak_bytes'] / 2**20:9.0f} MiB" if "peak_bytes" in row else ""
            times = f"{row['median_s'] * 1e3:10.2f} ms {row['ratio_to_floor']:7.2f}× floor"
            counted = ""
            if "expected_ratio" in row:
                counted = f" (roofline: {row['expected_ratio']:.2f}, floor {row['floor_at_peak_s'] * 1e3:.2f} ms)"
            lines.append(f"  {row['peer']:<34} {row['math']:<11}{times} {memory}{counted}")
    return "\n".join(lines)


def plot(rows: list[dict], path: Path) -> None:
    """Ratio to the floor of each peer, a panel a shape."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    measured = [row for row in rows if "ratio_to_floor" in row]
    cases = list(dict.fromkeys(row["case"] for row in measured))
    figure, axes = pyplot.subplots(1, len(cases), figsize=(5 * len(cases), 3.2), squeeze=False, layout="constrained")
    for axis, case in zip(axes[0], cases):
        bars = sorted((row for row in measured if row["case"] == case), key=lambda row: -row["ratio_to_floor"])
        colors = ["tab:orange" if row["peer"] == "dapo-fast" else "tab:gray" for row in bars]
        axis.barh([row["peer"] for row in bars], [row["ratio_to_floor"] for row in bars], color=colors)
        axis.axvline(1, color="black", linewidth=0.8, linestyle="--")
        axis.set(title=case, xlabel="time / three matrix products")
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--plot", type=Path, help="write a PNG here")
    parser.add_argument("--peak", nargs=4, metavar=("PEER", "N", "H", "V"), help="print one peak, in bytes, and leave")
    given = parser.parse_args()
    if given.peak:
        print(cpu_peak_here(given.peak[0], tuple(map(int, given.peak[1:]))))
        return
    rows = run(given.quick)
    print(table(rows))
    if given.json:
        temporary = given.json.with_suffix(".tmp")
        temporary.write_text(json.dumps(rows, indent=1) + "\n")
        os.replace(temporary, given.json)
    if given.plot:
        plot(rows, given.plot)


if __name__ == "__main__":
    main()
