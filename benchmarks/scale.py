"""The data's side of a run at the paper's size, on made-up trees: memory a rank, packing, dealing, the report.

Run it as ``python -m benchmarks.scale [--problems 750] [--states 100000]``; docs/scale.md shows its tables. Trees are
written to a temporary store, in shards as a collection writes them. Times are CPU times of the process.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from dapo_fast.data.batches import actor_batches, critic_batches
from dapo_fast.data.dealing import Ranks, deal
from dapo_fast.data.mapped import MappedTrees
from dapo_fast.data.pack import pack_cost
from dapo_fast.data.packing import pack_actor, pack_critic
from dapo_fast.data.store import write_columns, write_shard
from dapo_fast.data.tree import Candidate, State, Tree, Trunk
from dapo_fast.report.read import Iteration, Stage
from dapo_fast.report.trees import summarise

TRUNKS, STEPS, CANDIDATES, STEP_TOKENS, PROMPT_TOKENS = 6, 20, 16, 20, 100
SHARD = 16  # problems, as collect.shard_problems
HIDDEN = 1536  # of the model that work is counted for
MOST = 16384  # actor.pack_tokens
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
        ("2,048 pairs", pack_actor, actor_batches(trees, 2048, 0, 0)[0]),
        ("512 states", pack_critic, critic_batches(trees, 512, 0, 0)[0]),
    )
    for name, pack, groups in batches:
        whole = sum(p.tokens for p in pack(trees, groups, 10**9))
        for size in (1, 2, 8, 64):
            ranks = Ranks(size, BUSY, HIDDEN)
            packs = pack(trees, groups, MOST, ranks=ranks)
            work = [sum(pack_cost(p, HIDDEN) for p in rank) for rank in deal(packs, ranks)]
            path = float(ranks.work(np.array(max(int(p.position_ids.max()) + 1 for p in packs))))
            yield {
                "batch": name,
                "ranks": size,
                "packs": len(packs),
                "imbalance": max(work) * size / sum(work),
                "of what is possible": max(work) / max(sum(work) / size, path),
                "tokens ÷ ideal": sum(p.tokens for p in packs) / whole,
            }


def long_trunks() -> Iterator[dict]:
    """Tokens of one trunk's tree over those of a tree that is never cut."""
    for steps in LONG:
        tree = made_tree(np.random.default_rng(1), "long", trunks=1, steps=steps)
        groups = [(0, state) for state in range(len(tree.states))]
        ideal, packed = (sum(p.tokens for p in pack_actor([tree], groups, most)) for most in (10**9, MOST))
        yield {"trunk": len(tree.trunks[0].ids), "ideal tree": ideal, "packed": packed, "ratio": packed / ideal}


def growth(trees: Sequence[Tree], most: int) -> Iterator[dict]:
    """CPU time of drawing an epoch's batches, packing and dealing to 64 ranks: a tenth of ``most`` states, and all."""
    per_tree = len(trees[0].states)
    ranks = Ranks(64, BUSY, HIDDEN)
    for states in (most // 10, most):
        part = trees[: max(1, states // per_tree)]
        began = time.process_time()
        batches = actor_batches(part, 2048, 0, 0)
        drawn = time.process_time()
        tokens = 0
        for groups in batches:
            packs = pack_actor(part, groups, MOST, ranks=ranks)
            deal(packs, ranks)
            tokens += sum(p.tokens for p in packs)
        packing = time.process_time() - drawn
        yield {
            "states": len(part) * per_tree,
            "drawing s": drawn - began,
            "packing and dealing s": packing,
            "tokens/s": tokens / packing,
            "own GiB": memory()[0],
        }


def report_reading(store: Path) -> dict:
    """What the report reads of an iteration's trees: seconds of CPU and GiB."""
    names = ("collect", "critic", "advantages", "actor", "evaluate")
    stages = {name: Stage(name, 1, store / name, None, [], None) for name in names}
    stages["advantages"].path = store
    summary, seconds = cpu(lambda: summarise(Iteration(1, stages, None, None, None), 64, 0.1))
    return {"states": summary.states, "pairs": summary.pairs, "CPU s": seconds, "own GiB": memory()[0]}


def shown(title: str, rows: Sequence[dict]) -> None:
    """Print ``rows`` as a Markdown table."""
    print(f"\n### {title}\n\n| {' | '.join(rows[0])} |\n|{'---|' * len(rows[0])}")
    for row in rows:
        cells = (f"{v:,.3f}" if isinstance(v, float) and v < 1000 else v if isinstance(v, str) else f"{v:,.0f}"
                 for v in row.values())  # fmt: skip
        print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=7500, help="trees of the store (7500: the paper's)")
    parser.add_argument("--states", type=int, default=100_000, help="states of the longer epoch that is packed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        store = made_store(Path(directory), options.problems)
        before = memory()[0]
        _, seconds = cpu(lambda: write_columns(store, store / "trees.arrow"))
        trees = MappedTrees(store / "trees.arrow")
        batches, drawing = cpu(lambda: actor_batches(trees, 2048, 0, 0))
        own, mapped = memory()
        size = (store / "trees.arrow").stat().st_size / 2**30
        row = {"problems": len(trees), "file GiB": size, "writing s": seconds, "an epoch's batches s": drawing,
               "batches": len(batches), "before GiB": before, "own GiB": own, "mapped GiB": mapped}  # fmt: skip
        shown("Memory of a rank", [row])
        del batches
        shown("Dealing", list(imbalance(trees)))
        shown("Long trunks", list(long_trunks()))
        shown("An epoch", list(growth(trees, options.states)))
        shown("What the report reads", [report_reading(store)])


if __name__ == "__main__":
    main()
