"""Outcomes through a step, k of the shrinkage, and the target's rules, against numbers worked out by hand."""

import math
import random

import numpy as np
import pytest

from dapo_fast.data.tree import Candidate, State, Tree, Trunk
from dapo_fast.evidence import ASSUMED, Continuation, Outcomes, fit_shrinkage, shrunk
from dapo_fast.rollout.grow import add_evidence, add_trunk_steps, choose_trunks
from dapo_fast.targets import beta_of, log_partition


def test_pooled_counts_over_coinciding_prefixes():
    # A response, two completions of the prompt, two of the state after token 1, one of the state after 1, 2.
    known = [
        Continuation((1, 2, 3), 0, 1.0),
        Continuation((1, 2, 4), 0, 0.0),
        Continuation((5, 6), 0, 1.0),
        Continuation((1, 2, 3), 1, 1.0),
        Continuation((1, 7), 1, 0.0),
        Continuation((1, 2, 9), 2, 1.0),
    ]
    outcomes = Outcomes(known)
    assert outcomes.through([]) == (2, 3)
    assert outcomes.through([1]) == (2, 4)  # 3 of the prompt pass... two, and two began there
    assert outcomes.through([1, 2]) == (3, 4)
    assert outcomes.through([1, 2, 3]) == (2, 2)  # one that ends there passes through
    assert outcomes.through([5]) == (1, 1)
    assert outcomes.through([8]) == (0, 0)
    assert outcomes.through([1, 2, 3, 3]) == (0, 0)


def test_counts_are_those_of_a_search_through_everything():
    rng = random.Random(0)
    known = []
    for _ in range(300):
        ids = tuple(rng.randint(0, 2) for _ in range(rng.randint(1, 7)))
        known.append(Continuation(ids, rng.randint(0, len(ids) - 1), float(rng.random() < 0.4)))
    outcomes = Outcomes(known)
    for _ in range(300):
        prefix = tuple(rng.randint(0, 2) for _ in range(rng.randint(0, 6)))
        found = [c.reward for c in known if c.start <= len(prefix) and c.ids[: len(prefix)] == prefix]
        assert outcomes.through(prefix) == (sum(found), len(found))


def test_evidence_of_a_tree():
    # Two trunks, (1)(2)(3) right and (1)(4) wrong; at the prompt one completion took the step 1, one the step 5.
    trunks = [Trunk([1, 2, 3], [1, 2, 3], 1.0, True), Trunk([1, 4], [1, 2], 0.0, True)]
    states = [
        State(0, 0, [1.0, 0.0], [Candidate([1], 1, False, 0.0), Candidate([5], 1, False, 0.0)]),
        State(0, 1, [1.0, 1.0], [Candidate([2], 2, False, 0.0)]),
        State(0, 2, [0.0], [Candidate([3], 1, True, 0.0)]),
    ]
    tree = Tree("p", "", "", [9], trunks, states, sampled=2, correct=1)
    known = [
        *(Continuation(tuple(t.ids), 0, t.reward) for t in trunks),
        *(Continuation((1, 6), 0, 1.0), Continuation((5, 6), 0, 0.0)),
        *(Continuation((1, 2, 8), 1, 1.0), Continuation((1, 2, 7), 1, 1.0)),
        Continuation((1, 2, 3), 2, 0.0),
    ]
    add_trunk_steps(tree)
    add_trunk_steps(tree)  # once is enough
    add_evidence(tree, known)
    found = [[(c.ids, c.count, c.terminal, c.reward, c.right, c.n) for c in s.candidates] for s in states]
    assert found == [
        [([1], 1, False, 0.0, 4, 5), ([5], 1, False, 0.0, 0, 1)],
        [([2], 2, False, 0.0, 3, 4), ([4], 0, True, 0.0, 0, 1)],
        [([3], 1, True, 0.0, 1, 2)],
    ]


def test_shrinkage_towards_outcomes():
    assert shrunk(3, 4, 0.5, 2.0) == pytest.approx(4 / 6)
    assert shrunk(0, 0, 0.3, 2.0) == 0.3
    assert shrunk(0, 0, 0.3, 0.0) == 0.3


@pytest.mark.parametrize("completions", [2, 4, 8, 16])
@pytest.mark.parametrize("k", [1.0, 3.0, 10.0])
def test_k_is_recovered(completions, k):
    rng = np.random.default_rng(completions)
    states = 40_000 if completions == 2 else 8_000
    values = rng.uniform(0.05, 0.95, states)
    right = rng.binomial(completions, rng.beta(k * values, k * (1 - values)))
    fit = fit_shrinkage(values.tolist(), right.tolist(), [completions] * states)
    assert fit["fitted"] and fit["states"] == states
    assert fit["k"] == pytest.approx(k, rel=0.2)
    best = max(fit["curve"], key=lambda point: point[1])
    assert best[0] == pytest.approx(fit["k"], rel=0.5)


def test_likelihood_by_hand():
    # k = 2, V = 1/2: Beta(1, 1), every number of right ones is as likely: 1/3 of two, choose(2, 1) ways for one.
    fit = fit_shrinkage([0.5] * 3, [0, 1, 2], [2] * 3)
    [[_, height]] = [
        point for point in fit["curve"] if point[0] == min((p[0] for p in fit["curve"]), key=lambda k: abs(k - 2))
    ]
    expected = (math.log(1 / 3) + math.log(1 / 6) + math.log(1 / 3)) / 3
    assert height == pytest.approx(expected, abs=0.02)


def test_k_of_nothing_is_assumed():
    fit = fit_shrinkage([0.2, 0.4], [1, 0], [1, 1])
    assert fit == {"k": ASSUMED, "fitted": False, "states": 0, "curve": []}


@pytest.mark.parametrize("k", [1.0, 8.0])
def test_k_of_fractions_is_what_it_is_of_right_and_wrong(k):
    """Rewards that are half an outcome and half its chance vary a quarter as much, so the critic is worth a quarter."""
    rng = np.random.default_rng(1)
    states, completions = 20_000, 6
    values = rng.uniform(0.05, 0.95, states)
    rates = rng.beta(k * values, k * (1 - values))
    outcomes = rng.random((states, completions)) < rates[:, None]
    whole = (outcomes.sum(1).tolist(), [completions] * states)
    halves = (outcomes + rates[:, None]) / 2
    squares = (halves**2).sum(1).tolist()
    assert fit_shrinkage(values.tolist(), *whole, squares=outcomes.sum(1).tolist())["curve"]
    fit = fit_shrinkage(values.tolist(), halves.sum(1).tolist(), whole[1], squares)
    assert fit["fitted"] and fit["states"] == states and fit["curve"] == []
    assert fit["k"] == pytest.approx(k / 4, rel=0.1)


def test_fractions_add_up():
    outcomes = Outcomes([Continuation((1, 2), 0, 0.25), Continuation((1, 3), 0, 0.5), Continuation((4,), 0, 1.0)])
    assert outcomes.through([1]) == (0.75, 2) and outcomes.through([]) == (1.75, 3)
    # The middle of the lowest and the highest reward divides: two above it, two not; the earliest of each.
    assert choose_trunks([(1,), (2,), (3,), (4,)], [0.3, 0.9, 0.8, 0.1], 2) == [0, 1]
    assert choose_trunks([(1,), (2,), (3,)], [0.4, 0.4, 0.4], 2) == [0, 1]
    assert choose_trunks([(1,), (2,), (3,)], [1.0, 0.0, 1.0], 2) == [0, 1]


def test_values_at_the_ends_leave_k_finite():
    fit = fit_shrinkage([0.0, 1.0, 1.0], [1, 1, 2], [2, 2, 2])
    assert math.isfinite(fit["k"]) and all(math.isfinite(height) for _, height in fit["curve"])


# ------------------------------------------------------------------------------------------------ targets


def state(*pairs):
    """Candidates of (count, advantage)."""
    return State(0, 0, [1.0], [Candidate([i], c, False, 0.0, advantage=a) for i, (c, a) in enumerate(pairs)])


def test_beta_by_rule():
    advantages = np.array([0.3, -0.3, 0.1, -0.1])
    spread = math.sqrt((0.09 + 0.09 + 0.01 + 0.01) / 4)
    assert beta_of(advantages, "auto") == beta_of(advantages, "std/6")
    assert beta_of(advantages, "std/6") == pytest.approx(spread / 6)
    assert beta_of(advantages, 0.07) == 0.07
    with pytest.raises(ValueError, match="every advantage is zero"):
        beta_of(np.zeros(1), "auto")


def test_log_partition_counts_duplicates_and_leaves_trunk_steps_out():
    one = state((3, 0.2), (1, -0.6), (0, 0.9))
    z = (3 * math.exp(0.2 / 0.5) + math.exp(-0.6 / 0.5)) / 4
    assert log_partition(one, 0.5) == pytest.approx(math.log(z))
    assert math.isfinite(log_partition(state((1, 1.0), (1, -1.0)), 1e-4))


def test_the_minimiser_is_the_kl_regularised_optimum_and_no_state_falls():
    """A tabular tree of decisions, exact advantages: theorem 3.2 of the paper, by gradient descent on the loss."""
    rng = np.random.default_rng(3)
    depth, actions, beta = 3, 3, 0.15
    prefixes = [()]
    for _ in range(depth - 1):
        prefixes += [(*p, a) for p in prefixes if len(p) == len(prefixes[-1]) for a in range(actions)]
    prefixes = sorted({p for p in prefixes}, key=len)
    leaves = {(*p, a): float(rng.random() < 0.4) for p in prefixes if len(p) == depth - 1 for a in range(actions)}
    reference = {p: rng.dirichlet(np.ones(actions) * 2) for p in prefixes}

    def values(policy):
        v = dict(leaves)
        for p in sorted(prefixes, key=len, reverse=True):
            v[p] = sum(policy[p][a] * v[(*p, a)] for a in range(actions))
        return v

    v = values(reference)
    learned = {}
    for p in prefixes:
        # Counts in proportion to the reference stand for sampling without end.
        counts = np.maximum(1, np.round(reference[p] * 10_000)).astype(int)
        shares = counts / counts.sum()
        q = np.array([v[(*p, a)] for a in range(actions)])
        one = state(*[(int(c), float(a)) for c, a in zip(counts, q - shares @ q, strict=True)])
        target = np.array([c.advantage for c in one.candidates]) / beta - log_partition(one, beta)
        logits = np.log(shares)
        for _ in range(4000):
            policy = np.exp(logits - logits.max())
            policy /= policy.sum()
            residual = np.log(policy / shares) - target
            logits -= 0.2 * (residual - policy * residual.sum())
        learned[p] = policy
        optimum = shares * np.exp(q / beta)
        assert policy == pytest.approx(optimum / optimum.sum(), abs=1e-3)
    after = values(learned)
    assert all(after[p] >= v[p] - 1e-3 for p in prefixes) and after[()] > v[()] + 0.05
