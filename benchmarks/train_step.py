"""Where one optimizer step of the actor spends its time, and what FSDP2 at world size 1 costs.

The loop's own pieces are timed one by one on made-up step trees: building the packs (in training that happens in a
thread, one step ahead), forward, backward, norm and clipping, AdamW, the wait for an asynchronous checkpoint to be
copied aside. Rounds with and without FSDP2 alternate; figures are medians over rounds. On a GPU: Qwen2.5-1.5B's shape
in bf16 (random weights), and then "plain" holds bf16 weights, since fp32 ones behind bf16 are what FSDP2 is for.
Run it as ``python benchmarks/train_step.py [--quick]``.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from transformers import Qwen2Config

from dapo_fast.config import ActorSettings, ModelSettings, ParallelSettings
from dapo_fast.data.tree import Candidate, State, Tree, Trunk
from dapo_fast.models.loading import new_causal_lm, resolve_device
from dapo_fast.models.readpath import PolicyReader
from dapo_fast.train.actor import ActorTask
from dapo_fast.train.checkpoint import Checkpoints, training_state
from dapo_fast.train.dealer import Dealer
from dapo_fast.train.optim import clip_gradients, make_optimizer, set_rate
from dapo_fast.train.parallel import World, open_world, shard
from dapo_fast.train.telemetry import Meter

SUITE = "train_step"
PIECES = ("packs", "forward", "backward", "clip", "optimizer", "checkpoint")
# (name, width, layers, heads, key-value heads, MLP, vocabulary, tokens a step of a response, pairs a batch)
GPU = ("qwen2.5-1.5b", 1536, 28, 12, 2, 8960, 151936, 40, 2048)
CPU = ("built-in task", 96, 2, 4, 4, 256, 35, 8, 128)
QUICK = ("width 32", 32, 2, 2, 1, 64, 35, 8, 64)


def make_trees(count: int, vocabulary: int, step_tokens: int, steps: int, seed: int = 0) -> list[Tree]:
    """Trees of two trunks with ``steps`` steps and eight candidates on every second state."""
    rng = random.Random(seed)

    def tokens(n: int) -> list[int]:
        return [rng.randrange(vocabulary) for _ in range(n)]

    trees = []
    for index in range(count):
        trunks, states = [], []
        for number in range(2):
            lengths = [rng.randrange(step_tokens // 2, 2 * step_tokens) for _ in range(steps)]
            ends = [sum(lengths[: i + 1]) for i in range(steps)]
            trunks.append(Trunk(tokens(ends[-1]), ends, float(number), True))
            for step in range(number, steps, 2):
                candidates = [
                    Candidate(tokens(rng.randrange(step_tokens // 2, 2 * step_tokens)), 1, False, 0.0,
                              advantage=rng.uniform(-0.5, 0.5), ref_logp=-float(step_tokens))
                    for _ in range(8)
                ]  # fmt: skip
                states.append(State(number, step, [0.0, 1.0], candidates, kept=True))
        trees.append(Tree(str(index), "", "", tokens(2 * step_tokens), trunks, states, 2, 1))
    return trees


class Bench:
    """One layout of the model, ready to time steps."""

    def __init__(self, shape: tuple, world: World, directory: Path) -> None:
        width, layers, heads, kv, mlp, vocabulary, step_tokens, pairs = shape[1:]
        config = Qwen2Config(
            vocab_size=vocabulary, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
            num_key_value_heads=kv, intermediate_size=mlp, use_sliding_window=False, tie_word_embeddings=width > 1000,
        )  # fmt: skip
        dtype = torch.float32 if world.mesh is not None else world.dtype
        model = new_causal_lm(config, 0, world.device, dtype)
        self.world, self.model = world, model
        self.reader = PolicyReader(model)
        shard(self.reader, model, world, ParallelSettings())
        self.settings = ActorSettings(batch_pairs=pairs, lr=1e-6, steps=1000)
        trees = make_trees(4 * max(1, pairs // 64), vocabulary, step_tokens, 16 if width > 1000 else 8)
        self.task = ActorTask(self.reader, trees, self.settings, Dealer(world, model, self.settings.pack_tokens), 0)
        self.optimizer = make_optimizer(self.reader, self.settings)
        set_rate(self.optimizer, 1e-6)
        self.checkpoints = Checkpoints(directory, world, 1, "bench")
        self.meter = Meter(model, world)

    def step(self, number: int) -> tuple[dict[str, float], dict[str, float]]:
        """Seconds of every piece of one step, and the loop's own telemetry of it."""
        took = dict.fromkeys(PIECES, 0.0)

        def timed(piece: str, work: Callable[[], object]) -> object:
            self._wait()
            began = time.perf_counter()
            result = work()
            self._wait()
            took[piece] += time.perf_counter() - began
            return result

        batch = timed("packs", lambda: self.task.batch(number))
        for pack in batch.packs:
            pack = pack.to(self.world.device)
            loss: Tensor = timed("forward", lambda p=pack: self.task.loss(p, batch.count)[0])
            timed("backward", loss.backward)
        timed("clip", lambda: clip_gradients(self.reader.parameters(), 1.0))
        timed("optimizer", self.optimizer.step)
        self.optimizer.zero_grad()
        return took, self.meter.read(batch.ranks, sum(took.values()))

    def save(self, number: int) -> float:
        """Seconds that training waits for a checkpoint."""
        self._wait()
        began = time.perf_counter()
        self.checkpoints.save(number, training_state(self.model, self.optimizer))
        took = time.perf_counter() - began
        self.checkpoints.wait()
        return took

    def _wait(self) -> None:
        if self.world.device.type == "cuda":
            torch.cuda.synchronize()


def run(quick: bool) -> list[dict]:
    """One row a layout: seconds of every piece, and the step's time against the plain layout's."""
    device = resolve_device("auto")
    shape = QUICK if quick else GPU if device.type == "cuda" else CPU
    rounds = 5 if quick else 15
    sharded = ModelSettings(dtype="bfloat16")
    with tempfile.TemporaryDirectory() as directory, open_world(sharded, ParallelSettings()) as world:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        plain = World(0, 1, world.device, dtype, None)
        same = World(0, 1, world.device, dtype, world.mesh)
        benches = {
            "plain": Bench(shape, plain, Path(directory) / "a"),
            "fsdp2": Bench(shape, same, Path(directory) / "b"),
        }
        samples: dict[str, list[dict[str, float]]] = {name: [] for name in benches}
        last: dict[str, dict[str, float]] = {}
        for number in range(rounds + 2):
            for name, bench in benches.items():
                took, last[name] = bench.step(number)
                if number >= 2:
                    samples[name].append(took)
        saves = {name: statistics.median(bench.save(n) for n in range(1, 4)) for name, bench in benches.items()}
    rows = []
    for name, taken in samples.items():
        pieces = {piece: statistics.median(t[piece] for t in taken) for piece in PIECES[:-1]}
        rows.append(
            {"suite": SUITE, "case": shape[0], "peer": name, "device": device.type, "dtype": str(dtype)[6:]}
            | {f"{piece}_s": seconds for piece, seconds in pieces.items()}
            | {"checkpoint_s": saves[name], "step_s": sum(pieces.values())}
            | {key: last[name][key] for key in ("tokens", "packs", "dedup_ratio", "mfu") if key in last[name]}
        )
    for row in rows:
        row["ratio_to_plain"] = row["step_s"] / rows[0]["step_s"]
    return rows


def table(rows: list[dict]) -> str:
    """The rows for people: milliseconds and shares."""
    lines = [f"{'case':<16}{'layout':<8}" + "".join(f"{p:>12}" for p in PIECES) + f"{'step':>10}{'to plain':>10}  ms"]
    for row in rows:
        pieces = "".join(f"{1000 * row[f'{piece}_s']:12.1f}" for piece in PIECES)
        lines.append(
            f"{row['case']:<16}{row['peer']:<8}{pieces}{1000 * row['step_s']:10.1f}{row['ratio_to_plain']:10.2f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    print(table(run(parser.parse_args().quick)))
