"""``python benchmarks/dry_run.py`` records what ``dapo-fast estimate`` counts for the paper's 7B recipe.

Counts from a config alone, so nothing of the machine is in them. The architecture is Qwen2.5-Math-7B's.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict

from transformers import Qwen2Config

from dapo_fast.config import load_config
from dapo_fast.train.cost import iteration_cost
from dapo_fast.train.memory import estimate
from dapo_fast.train.place import GIB

SUITE = "dry_run"
PROCESSES, PROBLEMS = 8, 7500
QWEN_7B = {
    "vocab_size": 152064, "hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28,
    "num_key_value_heads": 4, "intermediate_size": 18944, "max_position_embeddings": 4096,
    "tie_word_embeddings": False, "architectures": ["Qwen2ForCausalLM"],
}  # fmt: skip


def run() -> list[dict]:
    """One row a model and one a stage."""
    with tempfile.TemporaryDirectory() as directory:
        Qwen2Config(**QWEN_7B).save_pretrained(directory)
        config = load_config(preset="paper", overrides=[f"model.path={directory}", "data.problems=none"])
        memory = estimate(directory, config, PROCESSES, device_gib=80).estimates
        cost = iteration_cost(directory, config, PROBLEMS)
    common = {"suite": SUITE, "case": "7B, preset paper", "peer_version": "dapo-fast"}
    rows = [
        common
        | {"peer": f"{e.name}, memory", "processes": PROCESSES, "gib": e.total(e.pack_tokens) / GIB}
        | {"pack_tokens": e.pack_tokens, "longest_pack_of_80_gib": e.longest_pack}
        for e in memory
    ]
    lengths = {"problems": PROBLEMS} | asdict(cost.lengths)
    return rows + [
        common
        | {"peer": f"{w.stage}, work", "lengths": lengths, "sampled": w.sampled, "packed": w.packed, "flat": w.flat}
        | {"eflop": w.flop / 1e18}
        for w in cost.stages
    ]


if __name__ == "__main__":
    from recorder import Recorder

    record = Recorder(quick=False)
    record(run())
    print(record.path)
