"""B.1 against numbers worked out by hand."""

import json

import pytest

from dapo_fast import advantages
from dapo_fast.advantages import (
    compute_advantages,
    count_states,
    critic_advantages,
    set_q,
    state_advantages,
    trunk_advantages,
)
from dapo_fast.config import AdvantageSettings
from dapo_fast.data.store import read_shard, read_trees, seal, shard_meta, write_shard
from dapo_fast.data.tree import Candidate, State, Tree, Trunk
from dapo_fast.errors import InputError


def candidate(token, count=1, q=None, terminal=False, reward=0.0):
    return Candidate([token], count, terminal, reward, q=q)


def tree(states, trunks=None):
    trunks = trunks or [Trunk([10, 11, 2], [1, 2, 3], 1.0, True)]
    return Tree("p", "prompt", "answer", [1, 2], trunks, states, sampled=4, correct=1)


def test_mean_counts_duplicates_and_terminals_take_their_reward():
    state = State(
        0, 0, [1.0, 0.0, 0.0, 1.0], [candidate(5, 2, 0.8), candidate(6, 1, 0.2), candidate(7, 1, 1.0, True, 1.0)]
    )
    # mean = (2*0.8 + 0.2 + 1.0) / 4 = 0.7; over unique candidates it would be 0.6667
    assert state_advantages(state) == pytest.approx([0.1, -0.5, 0.3])


def test_unique_actions_are_dropped_after_the_mean():
    states = [State(0, 0, [1.0], [candidate(5, 3, 0.5), candidate(6, 1, 0.9)])]
    once = tree(states)
    critic_advantages(once, AdvantageSettings())
    assert [c.advantage for c in once.states[0].candidates] == pytest.approx([-0.1, 0.3])

    often = tree([State(0, 0, [1.0], [candidate(5, 3, 0.5), candidate(6, 1, 0.9)])])
    critic_advantages(often, AdvantageSettings(unique=False))
    assert [c.advantage for c in often.states[0].candidates] == pytest.approx([-0.1, -0.1, -0.1, 0.3])
    assert [c.count for c in often.states[0].candidates] == [1, 1, 1, 1]


@pytest.mark.parametrize(("gap", "kept"), [(0.0, True), (0.25, True), (0.2501, False)])
def test_gap_is_inclusive(gap, kept):
    one = tree([State(0, 0, [1.0], [candidate(5, 1, 0.5), candidate(6, 1, 0.75)])])
    critic_advantages(one, AdvantageSettings(gap=gap))
    assert one.states[0].kept is kept


def test_a_single_candidate_has_no_contrast():
    one = tree([State(0, 0, [1.0], [candidate(5, 4, 0.5)]), State(0, 1, [], [])])
    critic_advantages(one, AdvantageSettings(gap=0.0))
    assert [s.kept for s in one.states] == [False, False]
    assert one.states[0].candidates[0].advantage == 0.0


def test_states_without_a_right_completion_are_kept_only_on_demand():
    def kept(rewards, settings=None, **options):
        one = tree([State(0, 0, rewards, [candidate(5, 1, 0.5), candidate(6, 1, 0.75)])])
        critic_advantages(one, settings or AdvantageSettings(), **options)
        return one.states[0].kept

    every = AdvantageSettings(keep_all_wrong=True)
    assert kept([0.0, 1.0]) and kept([1.0, 1.0])
    assert not kept([0.0, 0.0]) and kept([0.0, 0.0], every)
    # Nothing right anywhere: the critic has seen one label.
    assert not kept([0.0, 0.0], every, any_right=False)


def test_q_is_the_critic_shrunk_towards_outcomes():
    seen = Candidate([5], 2, False, 0.0, right=3, n=4, value=0.5)
    unseen = Candidate([6], 1, False, 0.0, value=0.25)
    end = Candidate([7], 1, True, 1.0, right=0, n=9)
    one = tree([State(0, 0, [1.0], [seen, unseen, end])])
    set_q(one, 2.0)
    assert [c.q for c in one.states[0].candidates] == pytest.approx([4 / 6, 0.25, 1.0])
    assert seen.value == 0.5  # the critic's reading stays what it was
    set_q(one, 0.0)
    assert [c.q for c in one.states[0].candidates] == pytest.approx([0.5, 0.25, 1.0])
    seen.value = None
    with pytest.raises(ValueError, match="no value yet"):
        set_q(one, 2.0)


def test_steps_that_only_trunks_take_stand_beside_the_mean():
    def one():
        return tree([State(0, 0, [1.0, 0.0], [candidate(5, 2, 0.5), candidate(6, 0, 0.9)])])

    with_trunks, without = one(), one()
    critic_advantages(with_trunks, AdvantageSettings())
    assert [c.advantage for c in with_trunks.states[0].candidates] == pytest.approx([0.0, 0.4])
    assert with_trunks.states[0].kept
    critic_advantages(without, AdvantageSettings(trunk_steps=False))
    assert [c.ids for c in without.states[0].candidates] == [[5]] and not without.states[0].kept
    nothing = tree([State(0, 0, [], [candidate(6, 0, 0.9)])])
    critic_advantages(nothing, AdvantageSettings(gap=0.0))
    assert not nothing.states[0].kept


def test_candidate_without_q_is_named():
    with pytest.raises(ValueError, match="no Q yet"):
        state_advantages(State(0, 0, [1.0], [candidate(5)]))


def two_trunks():
    trunks = [Trunk([10, 11, 2], [1, 2, 3], 1.0, True), Trunk([10, 12, 2], [1, 2, 3], 0.0, True)]
    states = [
        State(0, 0, [1.0, 0.0], []),
        State(0, 1, [1.0, 1.0, 1.0, 0.0], []),
        State(0, 2, [1.0, 1.0], []),
        State(1, 2, [0.0, 0.5], []),
    ]
    return tree(states, trunks)


def test_advantages_from_monte_carlo_values():
    one = two_trunks()
    trunk_advantages(one, "mc")
    steps = [{tuple(c.ids): round(c.advantage, 6) for c in s.candidates} for s in one.states]
    # s_0 = 0.5 -> shared s_1 = 0.75 -> 1.0 and 0.25; the last steps by reward
    assert steps == [{(10,): 0.25}, {(11,): 0.25, (12,): -0.5}, {(2,): 0.0}, {(2,): -0.25}]
    assert [s.kept for s in one.states] == [True, True, False, True]
    assert [c.terminal for s in one.states for c in s.candidates] == [False, False, False, True, True]


def test_advantages_from_responses():
    one = two_trunks()
    trunk_advantages(one, "response")
    steps = [{tuple(c.ids): round(c.advantage, 6) for c in s.candidates} for s in one.states]
    # mean reward of the samples is 1/4; the first step leads to one right and one wrong response
    assert steps == [{(10,): 0.25}, {(11,): 0.75, (12,): -0.25}, {(2,): 0.75}, {(2,): -0.25}]


@pytest.mark.parametrize("source", ["mc", "response"])
def test_equal_fractions_are_no_contrast(source, tmp_path):
    trunks = [Trunk([10, token, 2], [1, 3], 0.3, True) for token in range(11, 17)]
    states = [State(0, 0, [0.3] * 6, []), State(0, 1, [0.3] * 6, [])]
    write_shard(tmp_path / "shard-00000.parquet", [Tree("p", "?", "!", [1], trunks, states, 6, 6 * 0.3)], {})
    (read,) = read_shard(tmp_path / "shard-00000.parquet")
    trunk_advantages(read, source)
    assert all(state.candidates for state in read.states) and not any(state.kept for state in read.states)


def test_store_is_filled_once_and_bound_to_its_settings(tmp_path):
    states = [State(0, 0, [1.0, 0.0], [candidate(5), candidate(6)]), State(0, 1, [0.0], [candidate(7)])]
    write_shard(tmp_path / "in" / "shard-00000.parquet", [tree(states)])
    calls = []

    def fill(trees):
        calls.append(len(trees))
        for one in trees:
            for state in one.states:
                state.value = 0.5
                for position, action in enumerate(state.candidates):
                    action.value = float(position)

    def compute(digest):
        return compute_advantages(tmp_path / "in", tmp_path / "out", AdvantageSettings(), fill, digest)

    summary = compute("a")
    counts = {"states": 2, "kept": 1, "pairs": 2, "all_wrong": 1, "all_right": 0, "single": 1}
    assert summary == {"digest": "a", "k": 2.0} | counts
    assert compute("a") == summary and calls == [1]
    kept = [s for t in read_trees(tmp_path / "out") for s in t.states if s.kept]
    assert [c.advantage for c in kept[0].candidates] == pytest.approx([-0.5, 0.5])
    assert shard_meta(tmp_path / "out" / "shard-00000.parquet")["digest"] == "a"
    assert json.loads((tmp_path / "out" / "done.json").read_text())["digest"] == "a"
    with pytest.raises(InputError, match="other settings"):
        compute("b")
    assert count_states(read_trees(tmp_path / "out"))["pairs"] == 2


def sealed_store(path, shards=2):
    """A finished store, in the second shard of which there is a right outcome."""
    for index in range(shards):
        states = [State(0, 0, [float(index)], [candidate(5, 1, 0.1), candidate(6, 1, 0.9)])]
        write_shard(path / f"shard-{index:05d}.parquet", [tree(states)])
    seal(path, {"states": shards, "all_wrong": 1})
    return path


def filled(trees):
    for one in trees:
        for state in one.states:
            for action in state.candidates:
                action.value = action.q


def test_a_finished_shard_is_read_once_and_counted_as_it_was_written(tmp_path, monkeypatch):
    collected = sealed_store(tmp_path / "in")
    settings = AdvantageSettings(keep_all_wrong=True)
    read, write, kept = advantages.read_shard, advantages.write_shard, []
    monkeypatch.setattr(advantages, "read_shard", lambda path: kept.append(path.name) or read(path))
    monkeypatch.setattr(advantages, "scan_trees", lambda path: pytest.fail("the store is read once more"))

    def killed(path, *rest):
        if path.name == "shard-00001.parquet":
            raise KeyboardInterrupt
        write(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(advantages, "write_shard", killed)
        with pytest.raises(KeyboardInterrupt):
            compute_advantages(collected, tmp_path / "out", settings, filled, "a")
    summary = compute_advantages(collected, tmp_path / "out", settings, filled, "a")
    assert kept == ["shard-00000.parquet", "shard-00001.parquet", "shard-00001.parquet"]
    assert summary == {"digest": "a", "k": 2.0} | count_states(read_trees(tmp_path / "out"))
    assert summary["kept"] == 2  # also of the first shard, which has nothing right: the store has

    first = tmp_path / "out" / "shard-00000.parquet"
    write(first, read(first), {"digest": "a"})  # as releases wrote it that did not count
    (tmp_path / "out" / "done.json").unlink()
    assert compute_advantages(collected, tmp_path / "out", settings, filled, "a") == summary


def test_a_shard_that_was_replaced_is_named_before_a_critic_reads_another(tmp_path):
    collected = sealed_store(tmp_path / "in")
    write_shard(collected / "shard-00001.parquet", read_shard(collected / "shard-00000.parquet"))
    with pytest.raises(InputError, match=r"shard-00001\.parquet: damaged or replaced"):
        compute_advantages(collected, tmp_path / "out", AdvantageSettings(), lambda trees: pytest.fail("read"), "a")
