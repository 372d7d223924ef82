"""Every family over two processes: critic, advantages and actor as one process has them; or refused before anything."""

import random

import pytest
import recurrent_cases
import torch
import train_cases as cases
from families import NO_SHARDING, of
from family_cases import FAMILIES
from tree_cases import random_tree, shaken

from dapo_fast.config import load_config
from dapo_fast.data.store import write_shard
from dapo_fast.errors import InputError
from dapo_fast.train.preflight import check_training

ALL = FAMILIES | recurrent_cases.FAMILIES
REFUSED = [family for family in ALL if of(family).processes == NO_SHARDING]  # whose blocks share weights
STEP = {"steps": 1, "warmup_steps": 0}
STAGES = {"critic": STEP, "advantages": {"gap": 0.0}, "actor": STEP}


def preflight(policy):
    config = load_config(overrides=[f"model.path={policy}", "data.problems=x", "parallel.processes=2"])
    check_training(config, policy)


def train(base, size):
    torch.set_num_threads(1)
    for family in sorted(ALL.keys() - set(REFUSED)):
        for stage, changes in STAGES.items():
            cases.run(stage, base / family, base / family / f"{stage}-{size}", {}, **changes)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Each family's model and trees, trained on by one process and by two, which start once for all of them."""
    base = tmp_path_factory.mktemp("families")
    trees = [random_tree(random.Random(seed), f"p{seed}", steps=3, width=2) for seed in range(3, 20)]
    trees = [tree for tree in trees if all(trunk.ids for trunk in tree.trunks)][:6]
    for family, config in ALL.items():
        shaken(config()).save_pretrained(base / family / "policy")
        write_shard(base / family / "trees" / "shard-00000.parquet", trees)
        if family not in REFUSED:
            preflight(base / family / "policy")
    train(base, 1)
    processes = cases.forked(2, lambda: train(base, 2), base / "log")
    for process in processes:
        process.join(600)
    assert [process.exitcode for process in processes] == [0, 0], (base / "log").read_text()
    return base


@pytest.mark.parametrize("family", sorted(ALL.keys() - set(REFUSED)))
def test_two_processes_train_as_one_does(family, base):
    for stage in ("critic", "actor"):
        # Adam's first step is the gradient's sign times 1e-3, also of gradients that are all rounding.
        cases.assert_same(base / family / f"{stage}-2", base / family / f"{stage}-1", 1e-4)
    cases.assert_same_advantages(base / family / "advantages-2", base / family / "advantages-1")


@pytest.mark.parametrize("family", REFUSED)
def test_blocks_that_share_weights_are_refused_before_anything(family, base):
    with pytest.raises(InputError, match="its blocks share parameters"):
        preflight(base / family / "policy")
