"""Smoothed values against kernels by hand, and hidden states against a plain forward."""

import math
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from benchmarks.study.peers import Policy
from benchmarks.study.smoothing import WIDTHS, SmoothedValues, Smoother, single_rollout_trees
from dapo_fast.config import ModelSettings
from dapo_fast.data.tree import Candidate, State, Tree, Trunk
from dapo_fast.errors import InputError
from dapo_fast.tasks import get_task


def smoother(points, right, n, problems=None):
    problems = range(len(points)) if problems is None else problems
    columns = (torch.tensor([float(x) for x in column]) for column in (right, n))
    return Smoother(torch.tensor([[float(x)] for x in points]), *columns, torch.tensor(list(problems)))


def test_a_value_is_the_mean_of_near_outcomes():
    # Two points each at 0 and 1: the root mean squared distance is √½, and this is the first width that errs by nought.
    found = smoother([0, 0, 1, 1], right=[3, 1, 0, 0], n=[3, 1, 1, 1])
    width = WIDTHS[2] * math.sqrt(0.5)
    left, right = (count * math.exp(-((0.5 + by) ** 2) / (2 * width**2)) for count, by in ((4, 0.003), (2, -0.003)))
    assert found(torch.tensor([[0.503], [0.0]])).tolist() == pytest.approx([left / (left + right), 1.0], rel=1e-3)
    assert found.left_out.tolist() == pytest.approx([1.0, 1.0, 0.0, 0.0], abs=1e-6)


def test_what_is_left_out_is_the_whole_problem():
    found = smoother([0, 0, 1, 1], right=[1, 1, 0, 0], n=[1, 1, 1, 1], problems=[0, 0, 1, 1])
    assert found.left_out.tolist() == pytest.approx([0.0, 0.0, 1.0, 1.0])
    with pytest.raises(InputError, match="single problem"):
        smoother([0, 1], right=[1, 0], n=[1, 1], problems=[3, 3])


def test_a_wide_kernel_where_outcomes_are_noise():
    # Opposite outcomes side by side: what is nearest predicts worse than the mean of all.
    points = [x for pair in range(8) for x in (pair, pair + 0.01)]
    found = smoother(points, right=[0, 1] * 8, n=[1] * 16)
    assert all(0.2 < value < 0.8 for value in found(torch.tensor([[3.5], [4.5]])).tolist())


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("policy")
    AutoModelForCausalLM.from_config(get_task("arithmetic").model_config()).save_pretrained(directory)
    return Policy(directory, ModelSettings(device="cpu", dtype="float32"))


@torch.no_grad()
def hidden(policy, sequences):
    model = AutoModelForCausalLM.from_pretrained(policy.directory).model
    return torch.stack([model(torch.tensor([ids])).last_hidden_state[0, -1] for ids in sequences])


def one_response(name, prompt, reward):
    return Tree(name, "", "", prompt, [Trunk([7, 8, 2], [2, 3], reward, True)], [State(0, 0, [reward], [])], 1, reward)


def test_single_rollouts_are_held_against_the_other_prompts(policy):
    prompts, rewards = [[6, 7, 8], [6, 7, 9], [20, 21, 22], [20, 21]], [1.0, 0.0, 0.0, 1.0]
    trees = [one_response(str(i), p, r) for i, (p, r) in enumerate(zip(prompts, rewards, strict=True))]
    found = single_rollout_trees(trees, policy)
    ones, right = torch.ones(4), torch.tensor(rewards)
    gaps = right - Smoother(hidden(policy, prompts), right, ones, torch.arange(4)).left_out
    expected = gaps / gaps.square().mean().sqrt() / 3  # three tokens each
    advantages = [c.advantage for tree in found for s in tree.states for c in s.candidates]
    assert advantages == pytest.approx(expected.tolist(), rel=1e-4)
    trees[0].sampled = 2
    with pytest.raises(InputError, match=r"collect\.samples 1"):
        single_rollout_trees(trees, policy)


def test_smoothed_values_stand_where_the_critics_do(policy):
    def tree(name, prompt, rewards):
        candidates = [Candidate([9, 5], 1, False, 0.0), Candidate([10, 2], 1, True, 1.0)]
        trunk = Trunk([7, 5, 9, 2], [2, 4], 0.0, True)
        return Tree(name, "", "", prompt, [trunk], [State(0, 0, rewards, []), State(0, 1, rewards, candidates)], 1, 0)

    trees = [tree("a", [6, 7], [1.0, 1.0]), tree("b", [6, 8], [0.0, 1.0]), tree("c", [20, 21], [0.0, 0.0])]
    fill = SmoothedValues(trees, policy)
    fill(trees)
    places = [[*t.prompt_ids, *t.response_prefix(s)] for t in trees for s in t.states]
    right = torch.tensor([2.0, 2.0, 1.0, 1.0, 0.0, 0.0])
    by_hand = Smoother(hidden(policy, places), right, torch.full((6,), 2.0), torch.tensor([0, 0, 1, 1, 2, 2]))
    read = [s.value for t in trees for s in t.states]
    assert read == pytest.approx(by_hand(hidden(policy, places)).tolist(), rel=1e-3)
    step, end = trees[0].states[1].candidates
    assert step.value == pytest.approx(by_hand(hidden(policy, [[6, 7, 7, 5, 9, 5]])).item(), rel=1e-3)
    assert end.value is None and fill.k > 0
