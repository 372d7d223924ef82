"""A run directory made by the real writers, from a simulated policy: small, deterministic, no model."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dapo_fast.advantages import count_states, critic_advantages
from dapo_fast.config import AdvantageSettings, load_config
from dapo_fast.data.store import write_shard
from dapo_fast.data.tree import Candidate, State, Tree, Trunk
from dapo_fast.evidence import fit_shrinkage
from dapo_fast.rundir import RunDirectory, add_seconds, write_json
from dapo_fast.train.calibration import measure
from dapo_fast.train.critic import is_heldout

_APPLY = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, so that any text can be a model's output."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<eos>": 0} | {character: i for i, character in enumerate(alphabet, 1)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", clean_up_tokenization_spaces=False)


class Simulated:
    """A policy on arithmetic modulo 7 that takes shortcuts and mostly gets them wrong."""

    def __init__(self, seed: int, skill: float) -> None:
        self.random = random.Random(seed)
        self.right = {1: 0.98, 2: 0.55 + skill, 3: 0.2 + skill}
        self.weights = (0.35 + skill, 0.4, 0.25 - skill / 2)

    def line(self, value: int, rest: list[str]) -> tuple[str, int, list[str]]:
        size = min(self.random.choices((1, 2, 3), self.weights)[0], len(rest))
        used, rest = rest[:size], rest[size:]
        result = value
        for operation in used:
            result = _APPLY[operation[0]](result, int(operation[1])) % 7
        if self.random.random() > self.right[size]:
            result = self.random.randrange(7)
        return f"{value}{''.join(used)}={result}{''.join(rest)}" + ("\n" if rest else ""), result, rest

    def finish(self, value: int, rest: list[str]) -> tuple[list[str], int]:
        lines = []
        while rest:
            text, value, rest = self.line(value, rest)
            lines.append(text)
        return lines, value


def simulated_tree(policy: Simulated, tokenizer, critic_noise: float, completions: int = 8, kept: int = 4) -> Tree:
    rng = policy.random
    first, rest = rng.randrange(7), [rng.choice("+-*") + str(rng.randrange(7)) for _ in range(5)]
    gold = first
    for operation in rest:
        gold = _APPLY[operation[0]](gold, int(operation[1])) % 7
    samples = [policy.finish(first, rest) for _ in range(8)]
    right = [s for s in samples if s[1] == gold]
    wrong = [s for s in samples if s[1] != gold]
    chosen = (right[: kept // 2] + wrong[: kept // 2] + right[kept // 2 :] + wrong[kept // 2 :])[:kept]
    eos = tokenizer.eos_token_id

    def encode(lines: list[str], end: bool) -> list[list[int]]:
        steps = [tokenizer(line, add_special_tokens=False)["input_ids"] for line in lines]
        if end:
            steps[-1] = [*steps[-1], eos]
        return steps

    trunks, states, seen = [], [], set()
    for index, (lines, value) in enumerate(chosen):
        steps = encode(lines, end=True)
        ends = [sum(len(s) for s in steps[: i + 1]) for i in range(len(steps))]
        trunks.append(Trunk([t for s in steps for t in s], ends, float(value == gold), True))
        for step in range(len(lines)):
            prefix = "".join(lines[:step])
            if prefix in seen:
                continue
            seen.add(prefix)
            here = first if step == 0 else int(lines[step - 1].split("=")[1][0])
            left = rest if step == 0 else _operations(lines[step - 1])
            states.append(_state(policy, encode, index, step, here, left, gold, completions, critic_noise))
    prompt = f"={first}{''.join(rest)}"
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    return Tree(prompt[1:], prompt, str(gold), prompt_ids, trunks, states, len(samples), len(right))


def _operations(line: str) -> list[str]:
    tail = line.strip().split("=")[1][1:]
    return [tail[i : i + 2] for i in range(0, len(tail), 2)]


def _state(policy, encode, trunk, step, value, rest, gold, completions, noise) -> State:
    done = [policy.finish(value, rest) for _ in range(completions)]
    rewards = [float(end == gold) for _, end in done]
    firsts: dict[str, list[tuple[bool, float]]] = {}
    for (lines, _), reward in zip(done, rewards):
        firsts.setdefault(lines[0], []).append((len(lines) == 1, reward))
    candidates = []
    for text, outcomes in firsts.items():
        terminal = outcomes[0][0]
        mean = sum(r for _, r in outcomes) / len(outcomes)
        q = outcomes[0][1] if terminal else _blur(policy.random, mean, noise)
        ids = encode([text], end=terminal)[0]
        right = int(sum(r for _, r in outcomes))
        value = None if terminal else q
        reward = q if terminal else 0.0
        candidates.append(Candidate(ids, len(outcomes), terminal, reward, right, len(outcomes), value, q=q))
    state = State(trunk, step, rewards, candidates)
    state.value = _blur(policy.random, state.mc, noise)
    return state


def _blur(rng: random.Random, p: float, noise: float) -> float:
    logit = math.log((p + 0.06) / (1.06 - p)) + rng.gauss(0, noise)
    return 1 / (1 + math.exp(-logit))


def _wilson(correct: int, total: int) -> dict:
    z, p = 1.959964, correct / total
    centre = (p + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    return {"accuracy": p, "low": centre - half, "high": centre + half, "n": 1000, "truncated": 0.0}


def write_validation(path: Path) -> None:
    """What ``actor.eval_every`` 20 adds to a training of 80 steps that is best after 40."""
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    for row, accuracy in zip(rows[19::20], (0.5, 0.7, 0.6, 0.4), strict=True):
        found = {"accuracy": accuracy, "low": accuracy - 0.05, "high": accuracy + 0.05}
        row |= {f"validation_{name}": value for name, value in found.items()}
        if row["step"] == 40:
            write_json(path / "done.json", {"loss": 11.0, "best": {"step": 40, **found}})
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_metrics(path: Path, stage: str, steps: int, seed: int) -> None:
    rng = random.Random(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        for step in range(1, steps + 1):
            fade = math.exp(-3 * step / steps)
            row = {
                "step": step,
                "loss": 0.3 + 2 * fade + rng.gauss(0, 0.05),
                "grad_norm": 0.5 + fade + rng.random() / 5,
            }
            row |= {"lr": 3e-4, "seconds": 0.25, "tokens": 4000, "tokens_per_s": 16000.0, "items_per_s": 512.0}
            if stage == "actor":
                row |= {"kl_reference": 0.8 * (1 - fade) + rng.random() / 20, "explained": 0.6 * (1 - fade)}
                row |= {"same_sign": 0.9 - 0.4 * fade}
            if stage == "sft":
                row |= {"response_probability": 0.5 * (1 - fade)}
            if stage == "critic":
                row |= {"squared_error": 0.05 + 0.2 * fade}
            file.write(json.dumps(row) + "\n")


def write_evaluation(run: Path, iteration: int, greedy: int, sampled: int) -> None:
    summary = {
        "greedy": _wilson(greedy, 1000) | {"tokens": 14.25},
        "sampled": _wilson(sampled, 4000) | {"tokens": 15.5, "samples": 4, "pass@1": sampled / 4000, "pass@4": 0.93},
    }
    write_json(run / f"iter{iteration}" / "evaluate" / "summary.json", summary)
    steps = [{"text": "1<2\n", "before": 0.5, "after": 0.75}, {"text": "so 3", "before": 0.75, "after": None}]
    responses = [
        {"id": name, "prompt": "1+2?", "answer": "3", "reward": reward, "steps": steps}
        for name, reward in (("a", 1.0), ("b", 0.25))
    ]
    write_json(run / f"iter{iteration}" / "evaluate" / "steps.json", {"critic": "a critic", "responses": responses})


def write_iteration(
    run: Path, number: int, problems: int, trees: list[Tree] | None = None, heldout_fraction: float = 0.3
) -> list[Tree]:
    """Collection, critic, advantages and actor of iteration ``number``."""
    tokenizer = byte_tokenizer()
    path = run / f"iter{number}"
    if trees is None:
        policy = Simulated(seed=number, skill=0.1 * (number - 1))
        trees = [simulated_tree(policy, tokenizer, critic_noise=0.6) for _ in range(problems)]
    half = (len(trees) + 1) // 2
    for index, part in enumerate((trees[:half], trees[half:])):
        write_shard(path / "collect" / f"shard-{index:05d}.parquet", part, {"digest": "d"})
    tokens = {"response_tokens": 9000, "completion_tokens": 39000, "generated_tokens": 48000}
    write_json(path / "collect" / "done.json", {"problems": len(trees)} | tokens)
    add_seconds(path / "collect", 41.0)  # a collection that was killed once
    add_seconds(path / "collect", 20.5)
    for tree in trees:
        critic_advantages(tree, AdvantageSettings(gap=0.1))
    write_metrics(path / "critic" / "metrics.jsonl", "critic", 60, number)
    write_json(path / "critic" / "heldout.json", heldout(trees, heldout_fraction))
    write_json(path / "critic" / "done.json", {"loss": 0.41})
    for index, part in enumerate((trees[:half], trees[half:])):
        write_shard(path / "advantages" / f"shard-{index:05d}.parquet", part, {"digest": "d"})
    write_json(path / "advantages" / "done.json", {"digest": "d"} | count_states(trees))
    write_scores(path / "actor" / "scores.parquet", trees, number)
    write_metrics(path / "actor" / "metrics.jsonl", "actor", 80, 10 + number)
    write_json(path / "actor" / "done.json", {"loss": 11.0})
    if number == 2:
        write_validation(path / "actor")
    tokenizer.save_pretrained(path / "actor" / "model")
    return trees


def write_scores(path: Path, trees: list[Tree], seed: int) -> None:
    rng = random.Random(seed)
    rows = []
    for t, tree in enumerate(trees):
        for s, state in enumerate(tree.states):
            for c, candidate in enumerate(state.candidates if state.kept else []):
                before = -0.2 * len(candidate.ids) - rng.random()
                after = before + 2.5 * candidate.advantage + rng.gauss(0, 0.3)
                rows.append({"tree": t, "state": s, "candidate": c, "ref_logp": before, "logp_after": after})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def heldout(trees: list[Tree], fraction: float) -> dict:
    """As the critic writes it."""
    tested = [tree for tree in trees if is_heldout(tree.problem_id, fraction)]
    states = [state for tree in tested for state in tree.states]
    if not states:
        return {"problems": len(tested), "states": 0}
    values, correct, sampled = (
        torch.tensor(column, dtype=torch.float64)
        for column in zip(*((state.value, sum(state.rewards), len(state.rewards)) for state in states))
    )
    constant = torch.full_like(values, 0.4)
    return {
        "problems": len(tested),
        "states": len(states),
        "critic": measure(values, correct, sampled, correct),
        "constant": measure(constant, correct, sampled, correct),
        "shrinkage": fit_shrinkage(values.tolist(), correct.tolist(), sampled.tolist()),
    }


PROVENANCE = {
    "date": "2026-01-02T03:04:05+00:00",
    "command": "dapo-fast run demo <&> --preset arithmetic",
    "commit": "abc1234",
    "machine": "Some Processor, 2 cores",
    "device": "CPU",
    "versions": {"dapo-fast": "0.1.0", "torch": "2.13.0"},
}


def start_run(path: Path, *overrides: str) -> Path:
    """A run directory with settings and a supervised start."""
    directory = RunDirectory(path, load_config(None, "arithmetic", list(overrides)))
    directory.save_config()
    (path / "provenance.jsonl").write_text(json.dumps(PROVENANCE) + "\n")
    byte_tokenizer().save_pretrained(path / "sft" / "model")
    write_metrics(path / "sft" / "metrics.jsonl", "sft", 100, 0)
    write_json(path / "sft" / "done.json", {"loss": 0.35})
    return path


def make_run(path: Path, problems: int = 20) -> Path:
    """A finished run of two iterations, the second rejected."""
    start_run(path, "critic.heldout_fraction=0.3", "iterations=2")
    write_evaluation(path, 0, 331, 1204)
    rows = [{"iteration": 0, "accepted": True}]
    for number, (greedy, sampled, accepted) in enumerate([(912, 3310, True), (845, 3012, False)], 1):
        write_iteration(path, number, problems)
        write_evaluation(path, number, greedy, sampled)
        reason = f"sampled accuracy {sampled / 4000:.1%} after iteration {number}"
        write_json(path / f"iter{number}" / "decision.json", {"accepted": accepted, "reason": reason})
        rows.append({"iteration": number, "accepted": accepted, "reason": reason})
    write_json(path / "results.json", rows)
    return path


HOSTILE = [
    "</script><script>window.hacked=1</script>",
    "<!--<script>",
    "<img src=x onerror=window.hacked=1>",
    "]]><svg onload=window.hacked=1>",
    "\u2028\u2029 line separators",
    "&lt;b&gt; &amp; \"quotes\" 'and' `more`",
    "\x00\x01\x7f control",
    "\u202egnihton",
    "${alert(1)} {{7*7}} <!--data--> <!--iterations-->",
    "ünïcödé 数学 🧮 \\frac{1}{2}",
]


def hostile_tree(text: str, index: int) -> Tree:
    tokenizer = byte_tokenizer()
    first = tokenizer(text + "\n", add_special_tokens=False)["input_ids"]
    last = [*tokenizer("done", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    other = tokenizer("plain\n", add_special_tokens=False)["input_ids"]
    trunk = Trunk(first + last, [len(first), len(first) + len(last)], 1.0, True)
    candidates = [Candidate(first, 3, False, 0.0, q=0.9), Candidate(other, 1, False, 0.0, q=0.1)]
    states = [
        State(0, 0, [1.0, 1.0, 1.0, 0.0], candidates, value=0.7),
        State(0, 1, [1.0, 1.0], [Candidate(last, 2, True, 1.0, q=1.0)], value=0.9),
    ]
    prompt_ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return Tree(f"{index}{text}", text, text, prompt_ids, [trunk], states, 4, 3)
