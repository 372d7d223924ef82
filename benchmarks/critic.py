"""The critic's two readings of a step tree against the ways that others would do them.

Training on (state, MC), forward and backward:

- ``padded``: one sequence a state, sorted by length, in padded batches of 8, the value at the last token;
- ``trunks``: one sequence a response, a value at each of its states, as process-reward trainers do;
- ``tree``: step trees.

Q of every candidate, forward alone: ``padded`` (one sequence a candidate) against ``tree``. Rounds are interleaved;
figures are medians. Everybody's values are compared first. Run it as ``python benchmarks/critic.py [--quick]``.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable

import torch
import transformers
from step_tree import PADDED_BATCH, SHAPES, generated_trees
from torch import Tensor
from torch.nn import functional as F

from dapo_fast.data.batches import critic_groups
from dapo_fast.data.pack import pad_lengths
from dapo_fast.data.packing import pack_candidates, pack_critic
from dapo_fast.data.tree import Tree
from dapo_fast.models.loading import resolve_device
from dapo_fast.models.readpath import ValueReader
from dapo_fast.models.value import ValueModel

SUITE = "critic"
PACK_TOKENS = 16384

# One sequence, the positions of its values, and for each the key of its state or candidate.
Sequence = tuple[list[int], list[int], list[tuple[int, int, int]]]


def workload(problems: int, trunks: int, vocabulary: int) -> list[Tree]:
    """Trees of the shape of real responses, with a success rate at every state."""
    rng = random.Random(0)
    trees = generated_trees(0, problems, vocabulary, trunks)
    for tree in trees:
        for state in tree.states:
            state.rewards = [float(rng.random() < 0.5) for _ in range(16)]
    return trees


def states_alone(trees: list[Tree]) -> list[Sequence]:
    """One sequence a state."""
    return [
        (ids, [len(ids) - 1], [(t, s, -1)])
        for t, tree in enumerate(trees)
        for s, state in enumerate(tree.states)
        for ids in [tree.prefix_ids(state)]
    ]


def trunks_whole(trees: list[Tree]) -> list[Sequence]:
    """One sequence a response, as far as its last state."""
    found = []
    for t, tree in enumerate(trees):
        for index in range(len(tree.trunks)):
            own = [(s, tree.prefix_ids(state)) for s, state in enumerate(tree.states) if state.trunk == index]
            if own:
                longest = max((ids for _, ids in own), key=len)
                found.append((longest, [len(ids) - 1 for _, ids in own], [(t, s, -1) for s, _ in own]))
    return found


def candidates_alone(trees: list[Tree]) -> list[Sequence]:
    """One sequence a candidate and one a state."""
    found = states_alone(trees)
    for t, tree in enumerate(trees):
        for s, state in enumerate(tree.states):
            for c, candidate in enumerate(state.candidates):
                ids = tree.prefix_ids(state) + candidate.ids
                found.append((ids, [len(ids) - 1], [(t, s, c)]))
    return found


class Padded:
    """Sequences in padded batches through the plain Hugging Face backbone."""

    def __init__(self, model: torch.nn.Module, sequences: list[Sequence], trees: list[Tree]) -> None:
        self.model = model
        device = next(model.parameters()).device
        ordered = sorted(sequences, key=lambda s: len(s[0]))
        self.keys = [key for sequence in ordered for key in sequence[2]]
        self.batches = []
        for start in range(0, len(ordered), PADDED_BATCH):
            chosen = ordered[start : start + PADDED_BATCH]
            ids = torch.zeros(len(chosen), len(chosen[-1][0]), dtype=torch.int64)
            present = torch.zeros_like(ids)
            for row, (tokens, _, _) in enumerate(chosen):
                ids[row, : len(tokens)] = torch.tensor(tokens)
                present[row, : len(tokens)] = 1
            rows = torch.tensor([row for row, (_, at, _) in enumerate(chosen) for _ in at])
            columns = torch.tensor([column for _, at, _ in chosen for column in at])
            keys = [key for _, _, of in chosen for key in of]
            targets = torch.tensor([trees[t].states[s].mc for t, s, _ in keys])
            self.batches.append([x.to(device) for x in (ids, present, rows, columns, targets)])
        self.tokens = sum(batch[0].numel() for batch in self.batches)

    def logits(self, batch: list[Tensor]) -> Tensor:
        ids, present, rows, columns, _ = batch
        hidden = self.model.base_model(input_ids=ids, attention_mask=present, use_cache=False).last_hidden_state
        return self.model.score(hidden[rows, columns]).float()[:, 0]

    def train(self) -> None:
        for batch in self.batches:
            loss = F.binary_cross_entropy_with_logits(self.logits(batch), batch[4], reduction="sum") / len(self.keys)
            loss.backward()

    @torch.no_grad()
    def values(self) -> dict[tuple[int, int, int], float]:
        found = torch.cat([self.logits(batch).sigmoid() for batch in self.batches]).tolist()
        return dict(zip(self.keys, found, strict=True))


class Packed:
    """Step trees through our reader."""

    def __init__(self, reader: ValueReader, packs: list) -> None:
        self.reader = reader
        self.packs = [pack.to(next(reader.parameters()).device) for pack in packs]
        self.count = sum(pack.value_rows.numel() for pack in packs)
        self.tokens = sum(pack.length for pack in packs)

    def train(self) -> None:
        for pack in self.packs:
            self.reader(pack, self.count).loss.backward()

    def values(self) -> dict[tuple[int, int, int], float]:
        found: dict[tuple[int, int, int], float] = {}
        for pack in self.packs:
            keys = [tuple(key) for key in pack.value_keys.tolist()]
            found |= dict(zip(keys, self.reader.values(pack).tolist(), strict=True))
        return found


def run(quick: bool) -> list[dict]:
    """Rows for both readings; ``ratio``: values per second over those of ``padded``."""
    device = resolve_device("auto")
    shape = "tiny" if quick else "0.5B" if device.type == "cuda" else "small"
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    config = SHAPES[shape]
    trees = workload(1 if device.type == "cpu" else 4, 2 if quick or device.type == "cpu" else 6, config.vocab_size)
    ours = ValueModel.from_config(config, 0, dtype, attn_implementation="dapo_auto").to(device)
    torch.manual_seed(0)
    torch.nn.init.normal_(ours.value_head.weight, std=0.1)  # a head of zeros would agree with anything
    plain = ValueModel.from_config(config, 0, dtype, attn_implementation="sdpa").to(device)
    plain.load_state_dict(ours.state_dict())
    reader = ValueReader(ours)
    lengths = pad_lengths(PACK_TOKENS, device)
    training = pack_critic(trees, critic_groups(trees), PACK_TOKENS, lengths)
    reading = pack_candidates(trees, PACK_TOKENS, lengths)
    peers: dict[str, dict[str, Padded | Packed]] = {
        "training on states": {
            "padded": Padded(plain.model, states_alone(trees), trees),
            "trunks": Padded(plain.model, trunks_whole(trees), trees),
            "tree": Packed(reader, training),
        },
        "Q of every candidate": {
            "padded": Padded(plain.model, candidates_alone(trees), trees),
            "tree": Packed(reader, reading),
        },
    }
    rows = []
    for case, members in peers.items():
        _compare_values(members, 2e-2 if dtype == torch.bfloat16 else 1e-4)
        work = {name: (peer.train if case.startswith("training") else peer.values) for name, peer in members.items()}
        seconds = _interleaved(work, device, 3 if quick else 5)
        for name, peer in members.items():
            rows.append(
                {"suite": SUITE, "case": f"{shape}, {case}", "peer": name}
                | {"peer_version": "dapo-fast" if name == "tree" else f"transformers {transformers.__version__}"}
                | {"tokens": peer.tokens, "median_s": seconds[name], "ratio": seconds["padded"] / seconds[name]}
            )
    return rows


def _compare_values(members: dict[str, Padded | Packed], tolerance: float) -> None:
    expected = members["padded"].values()
    for name, peer in members.items():
        found = peer.values()
        worst = max(abs(found[key] - value) for key, value in expected.items())
        if found.keys() != expected.keys() or worst > tolerance:
            raise AssertionError(f"{name}: other values than padded's, by up to {worst}")


def _interleaved(work: dict[str, Callable[[], object]], device: torch.device, rounds: int) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in work}
    for number in range(rounds + 1):
        for name, do in work.items():
            began = time.perf_counter()
            do()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if number:  # the first round warms up
                times[name].append(time.perf_counter() - began)
    return {name: statistics.median(taken) for name, taken in times.items()}


def table(rows: list[dict]) -> str:
    """The rows as text."""
    lines = [f"{'case':36} {'peer':8} {'tokens':>8} {'median s':>9} {'ratio':>6}"]
    for row in rows:
        lines.append(f"{row['case']:36} {row['peer']:8} {row['tokens']:8d} {row['median_s']:9.3f} {row['ratio']:6.1f}")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny model")
    print(table(run(parser.parse_args().quick)))
