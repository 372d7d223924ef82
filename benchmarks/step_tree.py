"""Step trees against the ways that others would train on the same (state, action) pairs.

Peers, each computing the actor's loss and all gradients of the same pairs:

- ``padded``: Hugging Face batches of 8 sequences (state + candidate), sorted by length, padded, logits for every token;
- ``flat``: one sequence a pair in variable-length packs, with a fused loss (Liger's on a GPU, ours on a CPU, where
  Liger has none): the best that a careful user of today's trainers gets;
- ``statewise``: a state and its candidates as a tree of one level;
- ``tree``: step trees.

Rounds are interleaved, so that a busy machine slows all of them; figures are medians over rounds. Run it as
``python benchmarks/step_tree.py [--quick] [--responses FILE.jsonl] [--shape NAME] [--case NAME]``.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.metadata
import importlib.util
import json
import logging
import math
import random
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from roofline import peak_of
from torch.optim import AdamW
from transformers import Qwen2Config

from dapo_fast.data.batches import actor_groups
from dapo_fast.data.pack import Pack, pack_stats, pad_lengths
from dapo_fast.data.packing import pack_actor
from dapo_fast.data.tree import Candidate, State, Tree, Trunk
from dapo_fast.models.loading import new_causal_lm
from dapo_fast.models.readpath import PolicyReader

BETA = 0.01
PADDED_BATCH = 8  # sequences
PACK_TOKENS = 16384

SHAPES = {
    "tiny": Qwen2Config(
        vocab_size=512, hidden_size=64, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=8192, tie_word_embeddings=False,
    ),
    # The lm_head's share of the work, a quarter, is that of Qwen2.5-0.5B.
    "small": Qwen2Config(
        vocab_size=4096, hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=8192, tie_word_embeddings=False,
    ),
    "0.5B": Qwen2Config(
        vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
        num_key_value_heads=2, max_position_embeddings=32768, tie_word_embeddings=True, rope_theta=1e6,
    ),
    "1.5B": Qwen2Config(
        vocab_size=151936, hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12,
        num_key_value_heads=2, max_position_embeddings=32768, tie_word_embeddings=True, rope_theta=1e6,
    ),
    "7B": Qwen2Config(
        vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
        num_key_value_heads=4, max_position_embeddings=32768, tie_word_embeddings=False, rope_theta=1e6,
    ),
}  # fmt: skip


# ------------------------------------------------------------------------------------------------------- the workload


def _length(rng: random.Random, mean: float, sigma: float) -> int:
    """A log-normal length of the given mean, at least 1."""
    return max(1, round(rng.lognormvariate(math.log(mean) - sigma**2 / 2, sigma)))


def _candidates(rng: random.Random, draw: Callable[[], list[int]], count: int) -> list[Candidate]:
    found: dict[tuple[int, ...], Candidate] = {}
    while len(found) < count:
        ids = draw()
        candidate = Candidate(ids, 1, False, 0.0, advantage=rng.uniform(-0.5, 0.5), ref_logp=-10.0)
        found.setdefault(tuple(ids), candidate)
    return list(found.values())


def generated_trees(
    seed: int,
    problems: int,
    vocabulary: int,
    trunks: int = 6,
    trunk_tokens: int | None = None,
    candidates: int = 10,
    kept: float = 0.5,
) -> list[Tree]:
    """Trees with the statistics of real responses, of random tokens.

    A prompt of 100 tokens; per response a log-normal number of steps (mean 20, σ 0.55), each of log-normal length
    (mean 20, σ 1.0): what 400 Qwen2.5-Math responses to MATH problems show. Candidates are of a step's length and share
    no token with each other or with the trunk, so that nothing is saved but the prefixes. ``trunk_tokens``: steps of
    20 tokens until the trunk has that many.
    """
    rng = random.Random(seed)

    def step() -> list[int]:
        size = min(_length(rng, 20, 1.0), 400) if trunk_tokens is None else 20
        return [rng.randrange(vocabulary) for _ in range(size)]

    trees = []
    for problem in range(problems):
        tree = Tree(f"p{problem}", "", "", [rng.randrange(vocabulary) for _ in range(100)], [], [], trunks, 1)
        for index in range(trunks):
            count = _length(rng, 20, 0.55) if trunk_tokens is None else trunk_tokens // 20
            ids: list[int] = []
            ends: list[int] = []
            for number in range(count):
                if (number or not index) and rng.random() < kept:
                    state = State(index, number, [1.0, 0.0], _candidates(rng, step, candidates), kept=True)
                    tree.states.append(state)
                ids = ids + step()
                ends = [*ends, len(ids)]
            tree.trunks.append(Trunk(ids, ends, 1.0, True))
        trees.append(tree)
    return trees


def response_trees(path: Path, vocabulary: int, problems: int, trunks: int, seed: int = 0) -> list[Tree]:
    """Trees whose trunks are real responses: JSONL of {"problem", "responses"}.

    A byte-pair tokenizer is trained on the file. Ten candidates hang on half of the states, drawn from the steps of
    the same problem's other responses (and of other problems where those are too few): real steps of real lengths.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    texts = [row["problem"] for row in rows] + [text for row in rows for text in row["responses"]]
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=vocabulary, show_progress=False))

    def steps(text: str) -> list[list[int]]:
        return [tokenizer.encode(piece).ids for piece in re.findall(r"[^\n]*\n+|[^\n]+$", text)]

    rng = random.Random(seed)
    split = [[steps(text) for text in row["responses"]] for row in rows]
    anywhere = [step for responses in split for response in responses for step in response]
    # Problems spread evenly over response lengths, so that a few of them stand for the file.
    by_length = sorted(range(len(rows)), key=lambda i: sum(map(len, rows[i]["responses"])))
    chosen = [by_length[(2 * k + 1) * len(rows) // (2 * problems)] for k in range(min(problems, len(rows)))]
    trees = []
    for index in chosen:
        row = rows[index]
        prompt = tokenizer.encode(row["problem"]).ids
        tree = Tree(str(index), row["problem"], "", prompt, [], [], len(split[index]), 1)
        own = [step for response in split[index] for step in response]
        seen: set[tuple[int, ...]] = set()
        for number, response in enumerate(split[index][:trunks]):
            ids: list[int] = []
            ends: list[int] = []
            for step in response:
                if tuple(ids) not in seen and rng.random() < 0.5:
                    pool = own if len({tuple(s) for s in own}) >= 10 else anywhere
                    drawn = _candidates(rng, lambda pool=pool: rng.choice(pool), 10)
                    tree.states.append(State(number, len(ends), [1.0, 0.0], drawn, kept=True))
                seen.add(tuple(ids))
                ids = ids + step
                ends = [*ends, len(ids)]
            tree.trunks.append(Trunk(ids, ends, 1.0, True))
        trees.append(tree)
    return trees


# ----------------------------------------------------------------------------------------------------------- the peers


@dataclass
class Peer:
    """One way to compute the loss and gradients of all pairs."""

    name: str
    version: str
    tokens: int  # processed, padding included
    flops: float  # of the model, on the real tokens among them
    run: Callable[[], float]  # a forward and backward over everything; the loss


def _padded(model: torch.nn.Module, trees: list[Tree], device: torch.device) -> Peer:
    pairs = [
        (tree.prefix_ids(state), candidate) for tree in trees for state in tree.states for candidate in state.candidates
    ]
    pairs.sort(key=lambda pair: len(pair[0]) + len(pair[1].ids))
    batches = []
    for start in range(0, len(pairs), PADDED_BATCH):
        chosen = pairs[start : start + PADDED_BATCH]
        longest = max(len(prefix) + len(c.ids) for prefix, c in chosen)
        ids = torch.zeros(len(chosen), longest, dtype=torch.int64)
        scored = torch.zeros_like(ids, dtype=torch.bool)
        present = torch.zeros_like(ids)
        for row, (prefix, candidate) in enumerate(chosen):
            size = len(prefix) + len(candidate.ids)
            ids[row, :size] = torch.tensor(prefix + candidate.ids)
            scored[row, len(prefix) : size] = True
            present[row, :size] = 1
        advantages = torch.tensor([c.advantage for _, c in chosen])
        references = torch.tensor([c.ref_logp for _, c in chosen])
        batches.append([x.to(device) for x in (ids, present, scored, advantages, references)])

    def run() -> float:
        total = 0.0
        for ids, present, scored, advantages, references in batches:
            logits = model(input_ids=ids, attention_mask=present, use_cache=False).logits[:, :-1].float()
            logps = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
            steps = (logps * scored[:, 1:]).sum(1)
            loss = 0.5 * (advantages / BETA - (steps - references)).square().sum() / len(pairs)
            loss.backward()
            total += loss.item()
        return total

    tokens = sum(batch[0].numel() for batch in batches)
    sizes = [len(prefix) + len(candidate.ids) for prefix, candidate in pairs]
    flops = model_flops(model.config, sum(sizes), sum(sizes), sum(n * (n + 1) / 2 for n in sizes))
    return Peer("padded", f"transformers {transformers.__version__}", tokens, flops, run)


def _packed(name: str, version: str, reader: PolicyReader, packs: list[Pack], pairs: int, device: torch.device) -> Peer:
    moved = [pack.to(device) for pack in packs]

    def run() -> float:
        total = 0.0
        for pack in moved:
            loss = reader(pack, BETA, pairs).loss
            loss.backward()
            total += loss.item()
        return total

    return Peer(name, version, sum(pack.length for pack in packs), packs_flops(reader.model.config, packs), run)


def _flat_liger(reader: PolicyReader, packs: list[Pack], pairs: int, device: torch.device) -> Peer:
    import liger_kernel.transformers
    from dapo_kernels import hidden_states_and_weight

    from dapo_fast.models.attention import backbone_inputs

    fused = liger_kernel.transformers.LigerFusedLinearCrossEntropyLoss(reduction="none")
    moved = [pack.to(device) for pack in packs]

    def run() -> float:
        total = 0.0
        for pack in moved:
            head = hidden_states_and_weight(reader.model, **backbone_inputs(reader.model, pack))
            rows = head.hidden[0].index_select(0, pack.hidden_rows.to(device))
            logps = -fused(head.weight, rows, pack.targets)
            lengths = pack.cu_steps.diff().long()
            owner = torch.repeat_interleave(torch.arange(pack.steps), lengths).to(device)
            steps = torch.zeros(pack.steps, device=device).index_add(0, owner, logps.float())
            loss = 0.5 * (pack.advantages / BETA - (steps - pack.ref_logps)).square().sum() / pairs
            loss.backward()
            total += loss.item()
        return total

    version = f"liger-kernel {importlib.metadata.version('liger-kernel')}"
    return Peer("flat", version, sum(pack.length for pack in packs), packs_flops(reader.model.config, packs), run)


def _one_level(trees: list[Tree]) -> list[Tree]:
    """Each state as a tree of its own."""
    return [
        Tree(tree.problem_id, "", "", tree.prompt_ids, tree.trunks, [state], tree.sampled, tree.correct)
        for tree in trees
        for state in tree.states
    ]


def peers_of(
    shape: str, trees: list[Tree], device: torch.device, pack_tokens: int, names: list[str] | None = None
) -> tuple[list[Peer], torch.nn.Module, int]:
    """The peers on one model of random weights, that model, and the number of pairs."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = new_causal_lm(SHAPES[shape], seed=0, device=device, dtype=dtype)
    reader = PolicyReader(model)
    pairs = sum(len(s.candidates) for tree in trees for s in tree.states)
    lengths = pad_lengths(pack_tokens, device)
    ours = "dapo-fast"

    def packs(of: list[Tree], flat: bool = False) -> list[Pack]:
        return pack_actor(of, actor_groups(of), pack_tokens, lengths, flat)

    makers: dict[str, Callable[[], Peer]] = {
        "padded": lambda: _padded(model, trees, device),
        "flat": lambda: (
            _flat_liger(reader, packs(trees, flat=True), pairs, device)
            if device.type == "cuda" and importlib.util.find_spec("liger_kernel")
            else _packed("flat", ours, reader, packs(trees, flat=True), pairs, device)
        ),
        "statewise": lambda: _packed("statewise", ours, reader, packs(_one_level(trees)), pairs, device),
        "tree": lambda: _packed("tree", ours, reader, packs(trees), pairs, device),
    }
    return [makers[name]() for name in names or makers], model, pairs


# --------------------------------------------------------------------------------------------------------- measurement


def _peak_memory(device: torch.device, run: Callable[[], float], model: torch.nn.Module) -> int | None:
    """Bytes that one run adds at its peak; None where the system does not tell."""
    model.zero_grad(set_to_none=True)
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what earlier peers freed goes back first
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak to what is resident now
        before = _status("VmRSS")
        run()
        return max(0, _status("VmHWM") - before)
    except OSError:
        return None


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def _timed(
    peer: Peer, model: torch.nn.Module, device: torch.device, optimizer: AdamW | None
) -> tuple[float, float, float]:
    """Seconds and CPU seconds of one run (an optimizer step included where there is one), and its loss."""
    model.zero_grad(set_to_none=True)
    if device.type == "cuda":
        torch.cuda.synchronize()
    start, cpu = time.perf_counter(), time.process_time()
    loss = peer.run()
    if optimizer is not None:
        optimizer.step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, time.process_time() - cpu, loss


def model_flops(config: Qwen2Config, tokens: int, scored: int, visible: float) -> float:
    """FLOPs of a forward and backward: 6 a weight and token, 12·H a visible pair and layer.

    The lm_head counts for the ``scored`` tokens whose logits are made.
    """
    hidden, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    kv = hidden // config.num_attention_heads * config.num_key_value_heads
    layer = hidden * (2 * hidden + 2 * kv) + 3 * hidden * inner
    return 6 * (tokens * layer * layers + scored * hidden * config.vocab_size) + 12 * hidden * visible * layers


def packs_flops(config: Qwen2Config, packs: list[Pack]) -> float:
    """The same of packs, padding left out."""
    visible = sum(float((pack.position_ids[: pack.tokens] + 1).sum()) for pack in packs)
    tokens, scored = sum(pack.tokens for pack in packs), sum(pack.targets.numel() for pack in packs)
    return model_flops(config, tokens, scored, visible)


KINDS = {  # the first pattern that an operation's or kernel's name matches
    "attention": r"flash|flex|fmha|attention|_BlockAttention",
    "loss": r"softmax|logp|logits|exponentials|origins|direct_advantage|segment|cross_entropy|value_(kernel|d_weight)",
    "gemm": r"gemm|nvjet|cutlass|cublas|aten::(mm|addmm|bmm|linear)",
}


def kind_of(name: str) -> str:
    """What an operation or kernel of this name is for."""
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, name)), "other")


def time_shares(run: Callable[[], float], device: torch.device) -> dict[str, float | str]:
    """Shares of one run's wall time by kind of kernel; on a GPU what is left over is ``idle``.

    The loss's own matrix products count as ``gemm``. A profiler that sees nothing of a GPU is no idle GPU: then the
    result says only that.
    """
    activity = torch.profiler.ProfilerActivity
    cuda = device.type == "cuda"
    shares = dict.fromkeys([*KINDS, "other"], 0.0)
    with torch.profiler.profile(activities=[activity.CUDA] if cuda else [activity.CPU]) as profiler:
        start = time.perf_counter()
        run()
        if cuda:
            torch.cuda.synchronize()
        wall = time.perf_counter() - start
    for event in profiler.key_averages():
        seconds = (event.self_device_time_total if cuda else event.self_cpu_time_total) / 1e6
        shares[kind_of(event.key)] += seconds / wall
    if not any(shares.values()):
        return {"unavailable": "the profiler saw no operation"}
    shares["idle"] = max(0.0, 1 - sum(shares.values()))
    return {kind: round(share, 3) for kind, share in shares.items()}


def compare(
    shape: str, case: str, trees: list[Tree], device: torch.device, rounds: int, names: list[str] | None = None
) -> list[dict]:
    """Rows for every peer (``names``: for these) on one workload.

    ``ratio`` is pairs per second over those of the first peer, ``padded``; ``token_ratio`` is tokens of one sequence a
    pair over those processed. ``cpu_ratio`` is ``ratio`` in CPU seconds, which other work on the machine disturbs less.
    On a GPU a run ends with an AdamW step.
    """
    peers, model, pairs = peers_of(shape, trees, device, PACK_TOKENS, names)
    first = peers[0].name
    cuda = device.type == "cuda"
    peak = peak_of(torch.cuda.get_device_name()) if cuda else None
    # Its learning rate is 0, so that every round computes the same.
    optimizer = AdamW(model.parameters(), lr=0.0, weight_decay=0.0, fused=True) if cuda else None
    flat_tokens = pack_stats(pack_actor(trees, actor_groups(trees), PACK_TOKENS))["flat_tokens"]
    times: dict[str, list[float]] = {peer.name: [] for peer in peers}
    cpu_times: dict[str, list[float]] = {peer.name: [] for peer in peers}
    losses: dict[str, float] = {}
    memory: dict[str, int | None] = {}
    for peer in peers:
        memory[peer.name] = _peak_memory(device, peer.run, model)  # the warm-up as well
    for _ in range(rounds):
        for peer in peers:
            seconds, cpu_seconds, losses[peer.name] = _timed(peer, model, device, optimizer)
            times[peer.name].append(seconds)
            cpu_times[peer.name].append(cpu_seconds)
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    cpu = {name: statistics.median(seconds) for name, seconds in cpu_times.items()}
    return [
        {
            "suite": "step_tree",
            "case": f"{shape}/{case}",
            "peer": peer.name,
            "peer_version": peer.version,
            "median_s": medians[peer.name],
            "pairs": pairs,
            "pairs_per_s": pairs / medians[peer.name],
            "tokens": peer.tokens,
            "token_ratio": flat_tokens / peer.tokens,
            "ratio": medians[first] / medians[peer.name],
            "cpu_ratio": None if cuda else cpu[first] / cpu[peer.name],
            "peak_bytes": memory[peer.name],
            "mfu": peer.flops / medians[peer.name] / peak.flops if peak else None,
            "shares": time_shares(peer.run, device) if peer.name == "tree" else None,
            "rounds": rounds,
            "threads": None if cuda else torch.get_num_threads(),
            "loss": losses[peer.name],
        }
        for peer in peers
    ]


def disagreements(rows: list[dict]) -> list[str]:
    """Where a peer of ``compare`` computed another loss than a case's first one: that comparison means nothing.

    For callers to raise when everything is measured and kept.
    """
    found, firsts = [], {}
    for row in (row for row in rows if "loss" in row):
        first = firsts.setdefault(row["case"], row)
        tolerance = 1e-4 if row["threads"] else 2e-2  # bf16 on a GPU
        if not math.isclose(row["loss"], first["loss"], rel_tol=tolerance):
            found.append(
                f"{row['case']}: {row['peer']} computed a loss of {row['loss']}, {first['peer']} {first['loss']}"
            )
    return found


def cases(shape: str, quick: bool, responses: Path | None) -> Iterator[tuple[str, list[Tree]]]:
    """Workloads by name."""
    vocabulary = SHAPES[shape].vocab_size
    if quick:
        yield "generated", generated_trees(0, 1, vocabulary, trunks=1)
        return
    # On a CPU a third of the paper's six kept responses, since the padded peer takes half a minute for them.
    problems, trunks = {"0.5B": (4, 6), "1.5B": (4, 6), "7B": (1, 6)}.get(shape, (1, 2))
    yield "generated", generated_trees(0, problems, vocabulary, trunks)
    if responses is not None:
        yield "responses", response_trees(responses, min(vocabulary, 8192), problems, trunks)
    if trunks == 6:
        for size in (1000, 2048):
            long = generated_trees(0, 1, vocabulary, trunks=2, trunk_tokens=size, candidates=16, kept=1.0)
            yield f"long-{size}", long


def token_rows(responses: Path | None) -> list[dict]:
    """Token ratios over fifty problems of each workload, six responses a problem: packing only, nothing timed."""
    workloads = {"generated": generated_trees(0, 50, 8192)}
    if responses is not None:
        workloads["responses"] = response_trees(responses, 8192, 50, 6)
    rows = []
    for case, trees in workloads.items():
        stats = pack_stats(pack_actor(trees, actor_groups(trees), PACK_TOKENS))
        pairs = sum(len(state.candidates) for tree in trees for state in tree.states)
        rows.append(
            {
                "suite": "step_tree",
                "case": f"tokens/{case}",
                "peer": "tree",
                "peer_version": "dapo-fast",
                "pairs": pairs,
                "tokens": stats["tokens"],
                "token_ratio": stats["deduplication"],
            }
        )
    return rows


def run(
    quick: bool, responses: Path | None = None, shapes: list[str] | None = None, only: str | None = None
) -> list[dict]:
    """All rows for this machine: the small shape on a CPU, Qwen2.5 shapes on a GPU."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if shapes is None:
        shapes = ["tiny"] if quick else ["0.5B", "1.5B", "7B"] if device.type == "cuda" else ["small"]
    rows = [] if quick else token_rows(responses)
    for shape in shapes:
        for case, trees in cases(shape, quick, responses):
            if only is None or case == only:
                rows += compare(shape, case, trees, device, rounds=3)
    return rows


def table(rows: list[dict]) -> str:
    """The rows as text."""
    lines = [f"{'case':20} {'peer':10}   pairs   tokens flat/tok  median s   pairs/s   speed  cpu  peak MB"]
    for row in rows:
        line = f"{row['case']:20} {row['peer']:10} {row['pairs']:7d} {row['tokens']:8d} {row['token_ratio']:8.1f}"
        if "median_s" in row:
            peak = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:.0f}"
            line += f" {row['median_s']:9.3f} {row['pairs_per_s']:9.1f} {row['ratio']:7.1f}"
            line += f" {row['cpu_ratio'] or math.nan:5.1f} {peak:>7}"
            line += "" if row["mfu"] is None else f" MFU {row['mfu']:.2f}"
            line += "" if row["shares"] is None else f" {row['shares']}"
        lines.append(line)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny model and one response")
    parser.add_argument("--responses", type=Path, help='JSONL of {"problem", "responses"}: real trunks')
    parser.add_argument("--shape", action="append", choices=sorted(SHAPES), help="model shape; may be repeated")
    parser.add_argument("--case", help="this workload only")
    parser.add_argument("--json", type=Path, help="write the rows here")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    rows = run(arguments.quick, arguments.responses, arguments.shape, arguments.case)
    print(table(rows))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=1))
    if wrong := disagreements(rows):
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
