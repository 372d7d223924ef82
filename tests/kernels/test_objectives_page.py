"""The code on docs/objectives.md runs, and means what the built-in objectives mean."""

import re
from pathlib import Path

import dapo_kernels as dk
import torch
from kernel_cases import make_case
from torch.nn import functional as F

PAGE = Path(__file__).parents[2] / "docs" / "objectives.md"


def test_the_pages_objectives():
    case = make_case([4, 2, 3, 3], chunk_rows=5)
    hidden, weight = case.leaves()
    calls = []

    def linear_segment_loss(*arguments, **options):
        calls.append(dk.linear_segment_loss(*arguments, **options))
        return calls[-1]

    lm_head = torch.nn.Linear(1, 1)
    lm_head.weight = torch.nn.Parameter(weight.detach())
    names = {
        "torch": torch, "F": F, "hidden": hidden, "weight": weight, "targets": case.targets, "cu_steps": case.cu,
        "cu_sequences": case.cu, "advantages": case.advantages, "ref_logps": case.ref_logps, "beta": 0.3, "low": 0.2,
        "high": 0.3, "old_logps": -torch.rand(12) * 5, "steps_in_the_global_batch": 4, "tokens": 12, "pairs": 2,
        "lm_head": lm_head,
    }  # fmt: skip
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S):
        if "def " not in block:
            continue
        if "clipped" in block:
            names["advantages"] = torch.randn(12)
        source = block.replace("from dapo_kernels import linear_segment_loss\n", "")
        exec(source, names | {"linear_segment_loss": linear_segment_loss})
    direct, clipped, dpo = (call.loss for call in calls)
    own = (hidden, weight, case.targets)
    wanted = dk.linear_direct_advantage_loss(*own, case.cu, case.advantages, case.ref_logps, 0.3).loss
    torch.testing.assert_close(direct, wanted)
    objective = dk.ClippedPolicyGradient(names["advantages"], names["old_logps"], 0.2, 0.3, 12)
    torch.testing.assert_close(clipped, dk.linear_segment_loss(*own, None, objective).loss)
    torch.testing.assert_close(dpo, dk.linear_segment_loss(*own, case.cu, dk.DPO(case.ref_logps, 0.3, 2)).loss)
