"""The study's clipped and imitating methods, against numbers worked out by hand."""

import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from benchmarks.study.baselines import BASELINES, UPDATES
from benchmarks.study.peers import Clipped, Policy, best_trees, group_trees, step_trees
from dapo_fast.advantages import trunk_advantages
from dapo_fast.config import ActorSettings, ModelSettings
from dapo_fast.data.batches import actor_groups
from dapo_fast.data.packing import pack_actor
from dapo_fast.data.tree import Candidate, State, Tree, Trunk
from dapo_fast.errors import InputError
from dapo_fast.models.readpath import PolicyReader
from dapo_fast.tasks import get_task

CPU = ModelSettings(device="cpu", dtype="float32")


def end(ids, reward, n):
    return Candidate(ids, 0, True, reward, n=n)


def sampled():
    """Four responses: [5, 6, 2] twice, right; [5, 7, 8, 2] and [9], cut off, wrong."""
    trunks = [Trunk([5, 6, 2], [1, 3], 1.0, True), Trunk([5, 7, 8, 2], [1, 4], 0.0, True), Trunk([9], [1], 0.0, False)]
    first = State(0, 0, [], [Candidate([5], 3, False, 0.0), end([9], 0.0, 1)])
    states = [first, State(0, 1, [], [end([6, 2], 1.0, 2), end([7, 8, 2], 0.0, 1)])]
    solved = Tree(
        "solved", "", "", [4], [Trunk([5, 2], [2], 1.0, True)], [State(0, 0, [], [end([5, 2], 1.0, 3)])], 3, 3
    )
    return [Tree("mixed", "", "", [3, 4], trunks, states, 4, 2), solved]


@pytest.mark.parametrize(("mean", "lengths"), [("response", [3, 3, 4, 1]), ("token", [11 / 4] * 4)])
def test_group_advantages_are_standard_scores_over_the_length_of_the_mean(mean, lengths):
    (tree,) = group_trees(sampled(), mean)  # a group of one outcome says nothing
    (state,) = tree.states
    assert [c.ids for c in state.candidates] == [[5, 6, 2], [5, 6, 2], [5, 7, 8, 2], [9]] and state.kept
    # Mean ½, standard deviation ½.
    expected = [score / length for score, length in zip([1, 1, -1, -1], lengths, strict=True)]
    assert [c.advantage for c in state.candidates] == pytest.approx(expected)


def test_groups_are_of_all_that_was_sampled():
    trees = sampled()
    trees[0].states[1].candidates[0].n = 7  # as completions would add
    with pytest.raises(InputError, match=r"collect\.completions 0"):
        group_trees(trees, "token")


def test_steps_stand_as_often_as_trunks_take_them():
    trunks = [Trunk([10, 11, 2], [1, 3], 1.0, True), Trunk([10, 12, 13, 2], [1, 4], 0.0, True)]
    states = [State(0, 0, [1.0, 0.0], []), State(0, 1, [1.0, 1.0, 1.0, 0.0], [])]
    tree = Tree("p", "", "", [1], trunks, states, 4, 2)
    trunk_advantages(tree, "mc")
    (found,) = step_trees([tree])
    steps = [(c.ids, c.advantage) for s in found.states for c in s.candidates]
    # ½ → ¾ twice, by both trunks; then 1 − ¾ and 0 − ¾. Seven tokens in four steps.
    ids, advantages = zip(*steps, strict=True)
    assert list(ids) == [[10], [10], [11, 2], [12, 13, 2]]
    assert advantages == pytest.approx([a / (7 / 4) for a in (0.25, 0.25, 0.25, -0.75)])
    tree.states[0].kept = tree.states[1].kept = False
    assert step_trees([tree]) == []


def test_the_best_candidate_of_every_state():
    def state(step, *qs):
        return State(0, step, [], [Candidate([token], 1, False, 0.0, q=q) for token, q in enumerate(qs)], kept=False)

    tree = Tree("p", "", "", [1], [Trunk([3, 4, 2], [1, 2, 3], 1.0, True)], [state(0, 0.2, 0.9, 0.5), state(1)], 1, 1)
    (found,) = best_trees([tree])
    assert [(s.step, [c.ids for c in s.candidates], s.kept) for s in found.states] == [(0, [[1]], True)]
    assert len(tree.states[0].candidates) == 3, "the store's own tree stays as it was"


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("policy")
    AutoModelForCausalLM.from_config(get_task("arithmetic").model_config()).save_pretrained(directory)
    return directory


@torch.no_grad()
def responses_logps(model, tree):
    """Of every token of the candidates at the prompt, a sequence at a time."""
    model.set_attn_implementation("eager")
    found = []
    for candidate in tree.states[0].candidates:
        ids = torch.tensor([tree.prompt_ids + candidate.ids])
        logps = model(ids).logits[0, len(tree.prompt_ids) - 1 : -1].log_softmax(-1)
        found.append(logps.gather(1, torch.tensor(candidate.ids)[:, None])[:, 0])
    model.set_attn_implementation("dapo_auto")
    return torch.cat(found)


def test_clipped_loss_is_that_of_its_paper(policy):
    objective = Clipped(Policy(policy, CPU), high=0.28)
    trees = group_trees(sampled(), "response")
    (pack,) = pack_actor(trees, actor_groups(trees), 1024)
    model = AutoModelForCausalLM.from_pretrained(policy)
    old = responses_logps(model, trees[0])
    with torch.no_grad():
        model.lm_head.weight += 0.05 * torch.randn(
            model.lm_head.weight.shape, generator=torch.Generator().manual_seed(1)
        )
    new = responses_logps(model, trees[0])

    # One response after another: the mean over its tokens of the clipped product, then the mean over responses.
    total, place, outside = 0.0, 0, 0
    for candidate, score in zip(trees[0].states[0].candidates, (1, 1, -1, -1), strict=True):
        terms = []
        for _ in candidate.ids:
            ratio = float((new[place] - old[place]).exp())
            outside += not 0.8 < ratio < 1.28
            terms.append(min(ratio * score, min(max(ratio, 0.8), 1.28) * score))
            place += 1
        total -= sum(terms) / len(terms) / 4
    assert 0 < outside < place
    out = PolicyReader(model)(pack, normalizer=pack.steps, objective=objective)
    assert out.loss.item() == pytest.approx(total, rel=1e-5)
    # In chunks of one step after another, as large models have them.
    of_pack, ends = objective(pack, pack.steps), pack.cu_steps.tolist()
    parts = [of_pack(torch.zeros(1), new[ends[i] : ends[i + 1]], i, i + 1) for i in range(pack.steps)]
    assert float(sum(parts)) == pytest.approx(total, rel=1e-5)


def test_imitation_is_cross_entropy_of_the_candidates(policy):
    objective = BASELINES["best candidates"].objective(ActorSettings(), Policy(policy, CPU))
    trees = group_trees(sampled(), "token")
    (pack,) = pack_actor(trees, actor_groups(trees), 1024)
    model = AutoModelForCausalLM.from_pretrained(policy)
    logps = responses_logps(model, trees[0])
    out = PolicyReader(model)(pack, normalizer=pack.steps, objective=objective)
    assert out.loss.item() == pytest.approx(-logps.sum().item() / 4, rel=1e-5)


def test_updates_are_of_whole_responses_or_an_epoch_of_steps():
    actor = ActorSettings(beta="std/6", log_partition=True)
    whole, steps = (BASELINES[name].settings(actor) for name in ("GRPO", "VinePPO"))
    assert (whole.steps, whole.batch_pairs, whole.log_partition) == (UPDATES, 64, False)
    assert (steps.steps, steps.batch_pairs) == (None, actor.batch_pairs)
    assert BASELINES["preference pairs"].settings(ActorSettings(beta=0.3)).beta == 0.3
