"""Context parallelism: ranks that share packs of trunks far over the budget train what one process trains."""

import pytest
import torch
import train_cases as cases
from train_cases import assert_same, assert_same_advantages, curve, launch

from dapo_fast.data.batches import actor_groups
from dapo_fast.data.pack import empty_pack, pad_lengths
from dapo_fast.data.packing import pack_actor, pack_candidates
from dapo_fast.models.context import shares

SHARED = {"context_parallel_degree": 2}
BUDGET = 16  # of each rank's share
SHORT = {"pack_tokens": BUDGET, "steps": 3}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    directory = tmp_path_factory.mktemp("base")
    cases.write_model(directory / "policy", family="qwen3", head_dim=16, tied=True)
    cases.write_trees(directory / "trees", 4, traces=6)
    return directory


def test_shared_trunks_of_four_times_the_budget(base):
    """Critic, advantages, actor and sft where two ranks share every pack, and the actor on 2 × 2."""
    trunks = [len(trunk.ids) for tree in cases.make_trees(4, traces=6) for trunk in tree.trunks]
    assert sum(length >= 4 * 2 * BUDGET for length in trunks) >= 4
    stages = ("critic", "advantages", "actor", "sft")
    for stage in stages:
        cases.run(stage, base, base / f"{stage}-1", {}, **({} if stage == "advantages" else {"steps": 3}))
    jobs = [{"stage": stage, "out": f"{stage}-2", "changes": SHORT, "parallel": SHARED} for stage in stages]
    jobs[1]["changes"] = {}
    jobs[2]["parallel"] = SHARED | {"activation_checkpointing": "selective"}
    launch(2, base, jobs)
    four = SHARED | {"activation_checkpointing": "full", "replicas": 2}
    launch(4, base, [{"stage": "actor", "out": "actor-4", "changes": SHORT, "parallel": four}])
    for name in ("critic-2", "actor-2", "sft-2", "actor-4"):
        assert_same(base / name, base / f"{name[:-2]}-1")
    assert_same_advantages(base / "advantages-2", base / "advantages-1")
    # Each rank computes a share: together as many tokens as the packs have, and one share is as much work as another.
    assert max(curve(base / "actor-2", "rank_imbalance")) < 1.05


def packs():
    trees = cases.make_trees(2, traces=3)
    lengths = pad_lengths(10_000, "cpu", 60)
    return [
        *pack_actor(trees, actor_groups(trees), 300, lengths),
        *pack_candidates(trees, 10_000, lengths),
        empty_pack(lengths),
    ]


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_shares_are_the_pack(size):
    for pack in packs():
        parts = shares(pack, size, 16)
        rows = torch.cat([part.split.rows for part in parts])
        assert torch.equal(rows[parts[0].split.order], torch.arange(pack.length))
        assert {part.length for part in parts} == {pack.length // size}
        assert sum(part.tokens for part in parts) == pack.tokens
        assert sum(part.flat_tokens for part in parts) == pack.flat_tokens
        for part in parts:
            assert torch.equal(part.input_ids, pack.input_ids[part.split.rows])
            assert torch.equal(part.position_ids, pack.position_ids[part.split.rows])
            assert part.cu_steps[0] == 0 and part.cu_steps[-1] == part.targets.numel() == part.hidden_rows.numel()
        for name in ("hidden_rows", "targets", "advantages", "ref_logps", "step_keys", "value_rows", "value_keys"):
            joined = torch.cat([getattr(part, name) for part in parts])
            torch.testing.assert_close(joined, getattr(pack, name), equal_nan=True)
        longest = int(pack.cu_steps.diff().max()) if pack.steps else 0
        assert max(part.targets.numel() for part in parts) <= pack.targets.numel() / size + longest
        work = [int((part.position_ids + 1).sum()) for part in parts]
        assert max(work) <= 1.1 * sum(work) / size
