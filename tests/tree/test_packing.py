"""What a pack holds: every prefix once, every step scored once, nothing that is not read."""

import itertools
import random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tree_cases import random_tree

from dapo_fast.data.batches import actor_batches, actor_groups, critic_batches, critic_groups
from dapo_fast.data.dealing import Ranks, deal
from dapo_fast.data.pack import Pack, empty_pack, pack_cost, pack_stats, pad_lengths
from dapo_fast.data.packing import pack_actor, pack_candidates, pack_critic, pack_sequences
from dapo_fast.data.tree import Candidate, State, Tree, Trunk
from dapo_fast.errors import InputError
from dapo_fast.models.attention import Dense, plan_attention
from dapo_fast.models.flat import FlatVarlen

drawn = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


def trees_of(seed: int, count: int) -> list[Tree]:
    rng = random.Random(seed)
    return [random_tree(rng, f"p{index}") for index in range(count)]


def visible(pack: Pack, row: int) -> list[int]:
    """Tokens that ``row`` attends to, in order."""
    keys = torch.arange(row + 1)
    return pack.input_ids[: row + 1][pack.subtree_end[: row + 1] > row].tolist() if len(keys) else []


def check_structure(pack: Pack) -> None:
    rows = torch.arange(pack.length)
    sees = (rows[None, :] <= rows[:, None]) & (rows[:, None] < pack.subtree_end[None, :])
    assert torch.equal((sees.sum(1) - 1)[: pack.tokens], pack.position_ids[: pack.tokens])  # depth = ancestors
    starts, lengths, parents = pack.runs.long().T
    assert torch.equal(torch.cat([starts, starts.new_tensor([pack.length])]).diff(), lengths)  # runs tile the pack
    for start, length, parent in zip(starts.tolist(), lengths.tolist(), parents.tolist(), strict=True):
        ancestors = sees[start].nonzero()[:, 0].tolist()[:-1]
        assert ancestors[-1:] == ([parent] if parent >= 0 else [])
        for row in range(start + 1, start + length):
            assert sees[row].nonzero()[:, 0].tolist()[:-1][-1] == row - 1


def common(first: list[int], second: list[int]) -> int:
    pairs = zip(first, second, strict=False)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


@drawn
@given(
    seed=st.integers(0, 10**6),
    budget=st.sampled_from([5, 12, 40, 10**4]),
    flat=st.booleans(),
    padded=st.booleans(),
)
def test_actor_pack(seed, budget, flat, padded):
    trees = trees_of(seed, 3)
    groups = actor_groups(trees)
    lengths = [8, 16, 64] if padded else None
    seen = []
    for pack in pack_actor(trees, groups, budget, lengths, flat):
        check_structure(pack)
        assert lengths is None or pack.length in lengths or pack.length % 64 == 0
        assert (pack.subtree_end[pack.tokens :] == pack.length).all()
        assert not pack.position_ids[pack.tokens :].any()
        for step, (t, s, c) in enumerate(pack.step_keys.tolist()):
            state = trees[t].states[s]
            prefix, candidate = trees[t].prefix_ids(state), state.candidates[c]
            entries = slice(*pack.cu_steps[step : step + 2].tolist())
            assert pack.targets[entries].tolist() == candidate.ids
            for number, row in enumerate(pack.hidden_rows[entries].tolist()):
                assert visible(pack, row) == prefix + candidate.ids[:number]
            assert pack.advantages[step].item() == pytest.approx(candidate.advantage)
            assert pack.ref_logps[step].item() == pytest.approx(candidate.ref_logp)
            seen.append((t, s, c))
        paths = [
            trees[t].prefix_ids(trees[t].states[s]) + trees[t].states[s].candidates[c].ids[:-1]
            for t, s, c in pack.step_keys.tolist()
        ]
        # Over the budget are only a path, with what is read on its way, and the branches of a long prefix.
        if pack.tokens > max(budget, *(len(path) for path in paths)):
            shared = max(common(*pair) for pair in itertools.combinations(paths, 2))
            assert not flat and budget < shared and pack.tokens <= 2 * shared
    assert sorted(seen) == sorted((t, s, c) for t, s in groups for c in range(len(trees[t].states[s].candidates)))


@drawn
@given(seed=st.integers(0, 10**6))
def test_only_what_is_read_is_packed(seed):
    """An undivided tree takes exactly as many tokens as there are distinct prefixes to read."""
    (tree,) = trees_of(seed, 1)
    groups = actor_groups([tree])
    needed, flat = set(), 0
    for _, index in groups:
        prefix = tree.prefix_ids(tree.states[index])
        for candidate in tree.states[index].candidates:
            path = prefix + candidate.ids[:-1]
            flat += len(path)
            needed |= {tuple(path[:length]) for length in range(1, len(path) + 1)}
    packs = pack_actor([tree], groups, 10**6)
    assert sum(pack.tokens for pack in packs) == len(needed)
    assert sum(pack.flat_tokens for pack in packs) == flat
    assert sum(pack.length for pack in pack_actor([tree], groups, 10**6, flat=True)) == flat


@drawn
@given(seed=st.integers(0, 10**6), budget=st.sampled_from([5, 12, 10**4]), flat=st.booleans())
def test_value_packs(seed, budget, flat):
    trees = trees_of(seed, 2)
    for packs, with_candidates in (
        (pack_critic(trees, critic_groups(trees), budget, flat=flat), False),
        (pack_candidates(trees, budget, flat=flat), True),
    ):
        seen = []
        for pack in packs:
            check_structure(pack)
            assert pack.steps == 0
            for row, target, (t, s, c) in zip(
                pack.value_rows.tolist(), pack.value_targets.tolist(), pack.value_keys.tolist(), strict=True
            ):
                state = trees[t].states[s]
                ids = state.candidates[c].ids if c >= 0 else []
                assert visible(pack, row) == trees[t].prefix_ids(state) + ids
                assert target == pytest.approx(state.mc) if c < 0 else target != target
                seen.append((t, s, c))
        assert len(seen) == len(set(seen))
        wanted = sum(len(tree.states) for tree in trees)
        if with_candidates:
            wanted += sum(not c.terminal for tree in trees for state in tree.states for c in state.candidates)
        assert len(seen) == wanted


def line_tree(name: str, kept: int, candidates: int, step: int = 5) -> Tree:
    """One trunk of ``kept`` states with distinct candidates."""
    ids = list(range(3, 3 + step * (kept + 1)))
    ends = [step * (index + 1) for index in range(kept + 1)]
    states = [
        State(0, index, [1.0], [Candidate([1000 + c] * step, 1, False, 0.0, advantage=0.1) for c in range(candidates)])
        for index in range(kept)
    ]
    for state in states:
        state.kept = True
    return Tree(name, "", "", [1, 2], [Trunk(ids, ends, 1.0, True)], states, 1, 1)


def test_trunk_continuation_comes_first():
    (pack,) = pack_actor([line_tree("p", 3, 2)], [(0, 0), (0, 1), (0, 2)], 10**4)
    assert pack.runs.tolist()[0] == [0, 12, -1]  # prompt and trunk up to the last kept state, in one piece
    assert pack.runs[1:, 2].tolist() == [11, 11, 6, 6, 1, 1]
    assert pack.input_ids[:12].tolist() == [1, 2, *range(3, 13)]


def test_split_repeats_only_the_trunk():
    tree = line_tree("p", 8, 6)
    groups = actor_groups([tree])
    packs = pack_actor([tree], groups, 120)
    assert len(packs) > 1
    assert max(pack.tokens for pack in packs) <= 120
    (whole,) = pack_actor([tree], groups, 10**4)
    trunk = 2 + 5 * 7
    assert sum(pack.tokens for pack in packs) <= whole.tokens + (len(packs) - 1) * trunk


def test_a_prompt_without_responses():
    """The prompt is a state even where no response was kept; it may be too much for one pack as well."""
    tree = line_tree("p", 1, 5)
    tree.trunks = []
    for budget in (9, 10**4):
        packs = pack_actor([tree], [(0, 0)], budget)
        assert sum(pack.steps for pack in packs) == 5
        assert max(pack.tokens for pack in packs) <= max(budget, 6)


def test_a_step_that_is_too_long_gets_a_pack_of_its_own():
    (pack,) = pack_actor([line_tree("p", 1, 1, step=30)], [(0, 0)], 16)
    assert pack.steps == 1 and pack.tokens > 16


def test_single_pairs_can_be_asked_for():
    packs = pack_actor([line_tree("p", 3, 4)], [(0, 1, 2), (0, 2, 0)], 10**4)
    assert [key for pack in packs for key in pack.step_keys.tolist()] == [[0, 1, 2], [0, 2, 0]]


@pytest.mark.parametrize("state_wise", [True, False])
def test_actor_batches(state_wise):
    trees = [line_tree(f"p{index}", 1 + index % 7, 2 + index % 5) for index in range(60)]
    groups = actor_groups(trees)
    pairs = sum(len(trees[t].states[s].candidates) for t, s in groups)
    batches = actor_batches(trees, 64, seed=3, epoch=1, state_wise=state_wise)
    assert batches == actor_batches(trees, 64, seed=3, epoch=1, state_wise=state_wise)
    assert batches != actor_batches(trees, 64, seed=3, epoch=2, state_wise=state_wise)
    assert len(batches) == round(pairs / 64)
    sizes = [sum(len(trees[g[0]].states[g[1]].candidates) if len(g) == 2 else 1 for g in batch) for batch in batches]
    assert sum(sizes) == pairs
    assert all(abs(size - pairs / len(batches)) <= 16 for size in sizes)
    flat = [group for batch in batches for group in batch]
    assert len(set(flat)) == len(flat)
    if state_wise:
        assert sorted(flat) == groups


def test_batches_mix_problems():
    """A batch is not one large tree, but pieces of several."""
    trees = [line_tree(f"p{index}", 40, 10) for index in range(16)]
    for batch in actor_batches(trees, 400, seed=0, epoch=0):
        assert len({t for t, _ in batch}) >= 4


def test_critic_batches():
    trees = [line_tree(f"p{index}", 1 + index % 7, 2) for index in range(30)]
    trees[0].states[0].rewards = []  # never completed: nothing to learn
    batches = critic_batches(trees, 16, seed=0, epoch=0)
    assert sorted(group for batch in batches for group in batch) == critic_groups(trees)
    assert (0, 0) not in critic_groups(trees)
    assert actor_batches([], 4, 0, 0) == critic_batches([], 4, 0, 0) == []


def test_states_that_are_not_kept_are_left_out():
    tree = line_tree("p", 3, 2)
    tree.states[2].kept = False
    (pack,) = pack_actor([tree], actor_groups([tree]), 10**4)
    assert pack.step_keys[:, 1].tolist() == [0, 0, 1, 1]
    assert pack.runs.tolist()[0] == [0, 7, -1]  # the trunk ends at the last kept state


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_deal(world_size):
    trees = [line_tree(f"p{index}", 1 + index % 9, 4) for index in range(40)]
    packs = pack_actor(trees, actor_groups(trees), 200)
    ranks = deal(packs, Ranks(world_size, hidden_size=64))
    assert len({len(rank) for rank in ranks}) == 1
    dealt = [pack for rank in ranks for pack in rank if pack.steps]
    assert sorted(map(id, dealt)) == sorted(map(id, packs))
    work = [sum(pack_cost(pack, 64) for pack in rank) for rank in ranks]
    assert max(work) - min(work) <= max(pack_cost(pack, 64) for pack in packs)


def test_one_rank_has_full_packs():
    trees = [line_tree(f"p{index}", 1 + index % 9, 4) for index in range(60)]
    packs = pack_actor(trees, actor_groups(trees), 1000)
    stats = pack_stats(packs)
    assert len(packs) == -(-stats["tokens"] // 1000)
    assert stats["deduplication"] == stats["flat_tokens"] / stats["tokens"] > 1
    assert stats["utilisation"] == 1.0


def test_pad_lengths():
    assert pad_lengths(16384, "cpu") is None
    lengths = pad_lengths(16384, "cuda")
    assert lengths[::4] == [2048, 4096, 8192, 16384]
    assert all(b <= 1.25 * a for a, b in itertools.pairwise(lengths))
    assert all(length % 128 == 0 for length in pad_lengths(1000, "cuda"))
    longer = pad_lengths(16384, "cuda", longest=60_000)
    assert longer[:13] == lengths and longer[13:] == [19584, 23296, 27648, 32768, 39040, 46464, 55168, 65536]
    assert pad_lengths(16384, "cuda", longest=1000) == lengths
    assert empty_pack([256]).length == 256
    assert empty_pack().length == 1


def test_sequences():
    (pack,) = pack_sequences([([5, 6], [7, 8, 9]), ([4], [3])], 100)
    assert pack.is_flat
    assert pack.input_ids.tolist() == [5, 6, 7, 8, 4]
    assert pack.targets.tolist() == [7, 8, 9, 3]
    assert pack.hidden_rows.tolist() == [1, 2, 3, 4]
    assert pack.cu_steps.tolist() == [0, 3, 4]
    assert pack.step_keys[:, 0].tolist() == [0, 1]
    check_structure(pack)


def test_bad_input():
    with pytest.raises(InputError, match="sequence 1: an empty response"):
        pack_sequences([([1], [2]), ([1], [])], 10)
    tree = line_tree("the-problem", 2, 2)
    tree.states[1].candidates[1].ids = []
    with pytest.raises(InputError, match=r"the-problem.*candidate 1 of state 1"):
        pack_actor([tree], [(0, 1)], 100)
    tree.prompt_ids = []
    with pytest.raises(InputError, match=r"the-problem.*empty prompt"):
        pack_critic([tree], [(0, 1)], 100)


def test_padding_is_one_sequence():
    """A kernel of variable lengths, and SDPA one sequence at a time, pay for each; every backend sees the same."""
    examples = [([1] * n, [2, 3]) for n in (3, 9, 5)]
    (pack,) = pack_sequences(examples, 100, [64])
    assert pack.length == 64 and pack.tokens == 20
    assert pack.runs.tolist() == [[0, 4, -1], [4, 10, -1], [14, 6, -1], [20, 44, -1]]
    assert FlatVarlen(pack).bounds == [0, 4, 14, 20, 64]
    query, key = torch.randn(1, 4, 64, 8), torch.randn(1, 2, 64, 8)
    wanted = Dense(pack.subtree_end)(query, key, key, 0.3)
    for backend in ("varlen", "flex", "tree_sdpa"):
        torch.testing.assert_close(plan_attention(pack, backend)(query, key, key, 0.3), wanted)
    assert empty_pack([64]).runs.tolist() == [[0, 64, -1]] and empty_pack().runs.tolist() == [[0, 1, -1]]
    assert len(pack_sequences(examples, 100)[0].runs) == 3
