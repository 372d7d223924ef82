"""Small collections in processes of their own, for tests that kill them: ``collect_process.py MODEL OUT``.

For every line of its input it forks a process that collects and prints that process's id, then its exit status.
"""

import os
import sys

import torch

from dapo_fast.config import CollectSettings, ModelSettings
from dapo_fast.rollout.collect import collect
from dapo_fast.rollout.in_process import InProcessEngine
from dapo_fast.tasks import get_task

SETTINGS = CollectSettings(samples=4, kept=2, completions=4, max_tokens=24, shard_problems=2)


def run(model, out, problems=24):
    task = get_task("arithmetic")
    engine = InProcessEngine.load(model, ModelSettings(device="cpu"), 64)
    return collect(
        task.problems(problems, seed=0),
        engine,
        SETTINGS,
        out,
        encode=lambda p: engine.tokenizer(p.prompt, add_special_tokens=False)["input_ids"],
        verify=task.verify,
        seed=5,
        digest="test",
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            run(sys.argv[1], sys.argv[2])
            os._exit(0)
        print(child, flush=True)
        print(os.waitpid(child, 0)[1], flush=True)
