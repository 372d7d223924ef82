"""The data's side of a run at the paper's size, on made-up trees: memory a rank, packing, dealing, the report.

Run it as ``python -m benchmarks.scale [--problems 8704] [--states 100000 1000000] [--parts trunks] [--record]``;
docs/scale.md shows its tables, and its figure where it records. Trees are written to a temporary store, in shards as a
collection writes them. Times are CPU times of a process.
"""

from __future__ import annotations

import argparse
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks.recorder import Recorder
from dapo_fast.config import load_config
from dapo_fast.data.batches import actor_batches, critic_batches
from dapo_fast.data.dealing import Ranks, deal
from dapo_fast.data.mapped import MappedTrees
from dapo_fast.data.pack import pack_cost
from dapo_fast.data.packing import pack_actor, pack_critic
from dapo_fast.data.store import write_columns, write_shard
from dapo_fast.data.tree import Candidate, State, Tree, Trunk
from dapo_fast.models.context import shares
from dapo_fast.rundir import RunDirectory

TRUNKS, STEPS, CANDIDATES, STEP_TOKENS, PROMPT_TOKENS = 6, 20, 16, 20, 100
SHARD = 16  # problems, as collect.shard_problems
HIDDEN = 1536  # of the model that work is counted for
MOST = 16384  # actor.pack_tokens
SHARING = 8  # ranks that share a pack, where whole paths are too much for one
ROWS = 16  # of a block that such ranks deal
EVERY = 8  # batches of a long epoch, of which one is packed and counted for all
FIGURE = Path(__file__).parents[1] / "docs" / "scale-growth.png"
LONG = (200, 400, 800, 1600)  # steps of long trunks
BUSY = 64  # tokens that keep a rank busy: as few as a core's, so that nothing but the trees limits the dealing


def made_tree(rng: np.random.Generator, name: str, trunks: int = TRUNKS, steps: int = STEPS) -> Tree:
    """A tree of ``trunks × steps`` states, each with a different step in every one of its completions."""

    def tokens(count: int) -> list[list[int]]:
        lengths = np.maximum(1, rng.lognormal(np.log(STEP_TOKENS) - 0.32, 0.8, count).astype(int))
        ids = rng.integers(0, 150_000, int(lengths.sum())).tolist()
        stops = np.cumsum(lengths).tolist()
        return [ids[stop - size : stop] for stop, size in zip(stops, lengths.tolist(), strict=True)]

    responses, states = [], []
    for trunk in range(trunks):
        own = tokens(steps)
        for step in range(steps if trunk == 0 else steps - 1):
            at = step if trunk == 0 else step + 1  # s_0 is the first trunk's
            advantages = rng.uniform(-0.5, 0.5, CANDIDATES).tolist()
            paths = [own[at], *tokens(CANDIDATES - 1)]
            candidates = [
                Candidate(ids, 1, False, 0.0, value=0.5, q=0.5, advantage=a, ref_logp=None)
                for ids, a in zip(paths, advantages, strict=True)
            ]
            rewards = (rng.random(CANDIDATES) < 0.5).astype(float).tolist()
            states.append(State(trunk, at, rewards, candidates, 0.5, kept=True))
        ends = np.cumsum([len(step) for step in own]).tolist()
        responses.append(Trunk([token for step in own for token in step], ends, float(trunk % 2), True))
    prompt = rng.integers(0, 150_000, PROMPT_TOKENS).tolist()
    return Tree(name, "a question", "42", prompt, responses, states, TRUNKS, TRUNKS / 2)


def made_store(directory: Path, problems: int) -> Path:
    """A store of ``problems`` trees. Shards repeat one: what a tree takes does not depend on its tokens."""
    rng = np.random.default_rng(0)
    first = directory / "shard-00000.parquet"
    write_shard(first, [made_tree(rng, f"p{index}") for index in range(SHARD)])
    for number in range(1, -(-problems // SHARD)):
        (directory / f"shard-{number:05d}.parquet").write_bytes(first.read_bytes())
    return directory


def memory() -> tuple[float, float]:
    """GiB of this process: its own, and of files that it has mapped, which the system shares and takes back."""
    said = Path("/proc/self/status").read_text()
    own, mapped = (int(re.search(rf"{kind}:\s+(\d+) kB", said)[1]) / 2**20 for kind in ("RssAnon", "RssFile"))
    return own, mapped


def cpu(work: Callable[[], object]) -> tuple[object, float]:
    """What ``work`` gives, and the seconds of CPU that it took."""
    began = time.process_time()
    return work(), time.process_time() - began


def imbalance(trees: Sequence[Tree]) -> Iterator[dict]:
    """The fullest rank's work over the mean, of the first batch of an epoch."""
    batches = (
        ("2,048 pairs", pack_actor, actor_batches(trees, 2048, 0, 0)[0], 1),
        ("512 states", pack_critic, critic_batches(trees, 512, 0, 0)[0], 1),
        (f"512 states, {SHARING} ranks a pack", pack_critic, critic_batches(trees, 512, 0, 0)[0], SHARING),
    )
    for name, pack, groups, sharing in batches:
        whole = sum(p.tokens for p in pack(trees, groups, 10**9))
        for size in (1, 2, 8, 64) if sharing == 1 else (64,):
            ranks = Ranks(size // sharing, BUSY * sharing, HIDDEN)
            packs = pack(trees, groups, MOST, [ROWS * sharing] if sharing > 1 else None, ranks=ranks)
            dealt = deal(packs, ranks)
            work = [sum(pack_cost(p, HIDDEN) for p in rank) for rank in dealt]
            if sharing > 1:
                parts = [[shares(p, sharing, ROWS) for p in rank] for rank in dealt]
                work = [sum(pack_cost(p[i], HIDDEN) for p in rank) for rank in parts for i in range(sharing)]
            path = float(ranks.work(np.array(max(int(p.position_ids.max()) + 1 for p in packs)))) / sharing
            yield {
                "batch": name,
                "ranks": size,
                "packs": len(packs),
                "imbalance": max(work) * size / sum(work),
                "of what is possible": max(work) / max(sum(work) / size, path),
                "tokens ÷ ideal": sum(p.tokens for p in packs) / whole,
            }


def long_trunks() -> Iterator[dict]:
    """Tokens of one trunk's tree over those of a tree that is never cut, with and without memory for longer packs."""
    for steps in LONG:
        tree = made_tree(np.random.default_rng(1), "long", trunks=1, steps=steps)
        groups = [(0, state) for state in range(len(tree.states))]
        ideal = sum(p.tokens for p in pack_actor([tree], groups, 10**9))
        cut, grown = (pack_actor([tree], groups, MOST, ranks=Ranks(longest=most)) for most in (0, 10**9))
        packed, tokens = (sum(p.tokens for p in packs) for packs in (cut, grown))
        yield {"trunk": len(tree.trunks[0].ids), "ideal tree": ideal, "packed": packed, "ratio": packed / ideal,
               "packed, growing": tokens, "ratio, growing": tokens / ideal,
               "longest pack": max(p.tokens for p in grown)}  # fmt: skip


def growth(trees: Sequence[Tree], sizes: Sequence[int]) -> Iterator[dict]:
    """CPU time of drawing an epoch's batches, and of packing and dealing them to 64 ranks."""
    per_tree = len(trees[0].states)
    ranks = Ranks(64, BUSY, HIDDEN)
    for states in sizes:
        part = trees[: max(1, round(states / per_tree))]
        batches, drawing = cpu(lambda part=part: actor_batches(part, 2048, 0, 0))
        some = batches[::EVERY]
        began = time.process_time()
        tokens = 0
        for groups in some:
            packs = pack_actor(part, groups, MOST, ranks=ranks)
            deal(packs, ranks)
            tokens += sum(p.tokens for p in packs)
        packing = time.process_time() - began
        yield {
            "states": len(part) * per_tree,
            "batches": len(batches),
            "drawing s": drawing,
            "packing and dealing s": packing * len(batches) / len(some),
            "tokens/s": tokens / packing,
            "own GiB": memory()[0],
        }


def plot(rows: Sequence[dict], path: Path) -> None:
    """CPU time of an epoch against its states, and the line through the first."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(5, 3.2), layout="constrained")
    states = [row["states"] for row in rows]
    seconds = [row["drawing s"] + row["packing and dealing s"] for row in rows]
    linear = [seconds[0] * count / states[0] for count in states]
    axis.plot(states, linear, color="tab:gray", linestyle="--", linewidth=1, label="in proportion to the first")
    axis.plot(states, seconds, "o-", color="tab:orange", label="drawn, packed, dealt to 64 ranks")
    axis.set(xscale="log", yscale="log", xlabel="states of an epoch", ylabel="CPU seconds")
    axis.legend(frameon=False)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def report_made(store: Path, run: Path) -> dict:
    """The report of a run whose one iteration has ``store`` as its trees: of the process, seconds of CPU and GiB."""
    RunDirectory(run, load_config(None, "arithmetic", ["iterations=1"])).save_config()
    (run / "iter1").mkdir()
    for stage in ("collect", "advantages"):
        (run / "iter1" / stage).symlink_to(store)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "dapo_fast", "report", str(run)], check=True, stdout=subprocess.DEVNULL)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    return {"problems": sum(1 for _ in store.glob("shard-*")) * SHARD, "CPU s": seconds,
            "peak GiB": used.ru_maxrss / 2**20, "page MiB": (run / "report.html").stat().st_size / 2**20}  # fmt: skip


def shown(title: str, rows: Sequence[dict]) -> None:
    """Print ``rows`` as a Markdown table."""
    print(f"\n### {title}\n\n| {' | '.join(rows[0])} |\n|{'---|' * len(rows[0])}")
    for row in rows:
        cells = (f"{v:,.3f}" if isinstance(v, float) and v < 1000 else v if isinstance(v, str) else f"{v:,.0f}"
                 for v in row.values())  # fmt: skip
        print(f"| {' | '.join(cells)} |", flush=True)


def memory_of_a_rank(trees: MappedTrees, file: Path, before: float, writing: float) -> dict:
    """What mapped trees take, with an epoch drawn from them."""
    batches, drawing = cpu(lambda: actor_batches(trees, 2048, 0, 0))
    own, mapped = memory()
    return {"problems": len(trees), "file GiB": file.stat().st_size / 2**30, "writing s": writing,
            "an epoch's batches s": drawing, "batches": len(batches), "before GiB": before, "own GiB": own,
            "mapped GiB": mapped}  # fmt: skip


def main() -> None:
    names = ("memory", "dealing", "trunks", "epoch", "report")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=8704, help="trees of the store (the paper's has 7,500)")
    parser.add_argument("--states", type=int, nargs="+", default=[100_000, 300_000, 1_000_000], help="of the epochs")
    parser.add_argument("--parts", nargs="+", choices=names, default=names)
    parser.add_argument("--record", action="store_true", help="keep the rows, and draw the figure of the epochs")
    options = parser.parse_args()
    record = Recorder(quick=False) if options.record else None
    with tempfile.TemporaryDirectory() as directory:
        store, file = made_store(Path(directory), options.problems), Path(directory) / "trees.arrow"
        before = memory()[0]
        _, writing = cpu(lambda: write_columns(store, file))
        trees = MappedTrees(file)
        parts = {
            "memory": ("Memory of a rank", lambda: [memory_of_a_rank(trees, file, before, writing)]),
            "dealing": ("Dealing", lambda: list(imbalance(trees))),
            "trunks": ("Long trunks", lambda: list(long_trunks())),
            "epoch": ("An epoch", lambda: list(growth(trees, options.states))),
            "report": ("The report", lambda: [report_made(store, Path(directory) / "run")]),
        }
        for name in options.parts:
            title, measured = parts[name]
            rows = measured()
            shown(title, rows)
            if record is not None:
                record([{"suite": f"scale-{name}", **row} for row in rows])
                if name == "epoch":
                    plot(rows, FIGURE)


if __name__ == "__main__":
    main()
