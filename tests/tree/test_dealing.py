"""Work fills the ranks: simulated dealing of the paper's batches on generated trees."""

import random
from dataclasses import replace

import numpy as np
import pytest

from dapo_fast.data.batches import actor_batches, critic_batches
from dapo_fast.data.dealing import Ranks, cut_line, deal, first_fit
from dapo_fast.data.pack import pack_cost
from dapo_fast.data.packing import pack_actor, pack_critic, pack_sequences
from dapo_fast.data.tree import Candidate, State, Tree, Trunk

HIDDEN = 1536
MOST = 16384


def tokens(rng, mean):
    return [rng.randrange(1000) for _ in range(max(1, round(rng.lognormvariate(np.log(mean) - 0.32, 0.8))))]


def tree(rng, name, trunks=6, steps=20, candidates=10):
    """A problem of the paper's size: trunks of about 400 tokens, ten candidates at every second state."""
    responses, states = [], []
    for trunk in range(trunks):
        ids, ends = [], []
        for step in range(steps):
            # The trunk's own next step is a candidate as well.
            own = tokens(rng, 20)
            steps_here = [own, *(tokens(rng, 20) for _ in range(candidates - 1))]
            rng.shuffle(steps_here)
            made = [Candidate(i, 1, False, 0.0, advantage=0.1, ref_logp=-1.0) for i in steps_here]
            states.append(State(trunk, step, [1.0, 0.0], made, kept=step % 2 == 0))
            ids = ids + own
            ends.append(len(ids))
        responses.append(Trunk(ids, ends, 1.0, True))
    return Tree(name, "", "", tokens(rng, 100), responses, states, 6, 3)


@pytest.fixture(scope="module")
def trees():
    rng = random.Random(0)
    return [tree(rng, f"p{index}") for index in range(8)]


def batch(trees, kind):
    """(the function that packs, the groups) of the first batch of an epoch."""
    if kind == "2,048 pairs":
        return pack_actor, actor_batches(trees, 2048, 0, 0)[0]
    return pack_critic, critic_batches(trees, 512, 0, 0)[0]


@pytest.mark.parametrize("size", [1, 2, 8, 64])
@pytest.mark.parametrize("kind", ["2,048 pairs", "512 states"])
def test_no_rank_has_more_than_its_share(trees, kind, size):
    pack, groups = batch(trees, kind)
    ranks = Ranks(size, 64, HIDDEN)
    packs = pack(trees, groups, MOST, ranks=ranks)
    work = [sum(pack_cost(p, HIDDEN) for p in rank) for rank in deal(packs, ranks)]
    # What cannot be divided: one state with all before it.
    atom = max(int(p.position_ids.max()) + 1 for p in packs)
    share = max(sum(work) / size, float(ranks.work(np.array(atom))))
    assert max(work) <= 1.05 * share
    if kind == "2,048 pairs":
        assert share == sum(work) / size  # the atoms permit it
    assert all(p.tokens <= MOST for p in packs)


@pytest.mark.parametrize("kind", ["2,048 pairs", "512 states"])
def test_a_cut_repeats_one_prefix(trees, kind):
    pack, groups = batch(trees, kind)
    whole = sum(p.tokens for p in pack(trees, groups, 10**6))
    for size in (2, 8, 64):
        packs = pack(trees, groups, MOST, ranks=Ranks(size, 64, HIDDEN))
        prefixes = len(packs) * max(int(p.position_ids.max()) + 1 for p in packs)
        assert whole <= sum(p.tokens for p in packs) <= whole + prefixes


def test_packs_are_not_too_small_to_keep_a_rank_busy(trees):
    pack, groups = batch(trees, "512 states")
    whole = sum(p.tokens for p in pack(trees, groups, 10**6))
    packs = pack(trees, groups, MOST, ranks=Ranks(64, 2048, HIDDEN))
    assert len(packs) == whole // 2048
    assert max(p.tokens for p in packs) <= 1.3 * min(p.tokens for p in packs)


@pytest.mark.parametrize("size", [2, 8])
def test_sequences_fill_the_ranks_too(size):
    rng = random.Random(1)
    ranks = Ranks(size, 64, HIDDEN)
    packs = pack_sequences([(tokens(rng, 100), tokens(rng, 300)) for _ in range(256)], MOST, ranks=ranks)
    work = [sum(pack_cost(p, HIDDEN) for p in rank) for rank in deal(packs, ranks)]
    assert max(work) * size / sum(work) <= 1.05


def test_packs_of_a_long_trunk_grow_as_far_as_memory_goes():
    rng = random.Random(3)
    long = [tree(rng, f"p{index}", trunks=1, steps=300, candidates=10) for index in range(2)]
    groups = [(index, state) for index in range(2) for state in range(300)]
    most = len(long[0].trunks[0].ids) + 500
    whole = sum(p.tokens for p in pack_actor(long, groups, 10**7))

    def packs(longest):
        found = pack_actor(long, groups, most, ranks=Ranks(longest=longest))
        return max(p.tokens for p in found), sum(p.tokens for p in found) / whole

    (small, cut), (some, less), (large, least) = packs(0), packs(2 * most), packs(10**6)
    assert small <= most < some <= 2 * most < large <= 4 * most
    assert least < 1.2 < less < cut
    short = [tree(rng, f"p{index}", trunks=2, steps=20) for index in range(20)]
    groups = [(index, state) for index in range(20) for state in range(20)]
    for ranks in (Ranks(), Ranks(8, 64, HIDDEN)):
        alike = [
            [p.input_ids.tolist() for p in pack_actor(short, groups, 4096, ranks=replace(ranks, longest=longest))]
            for longest in (0, 10**6)
        ]
        assert alike[0] == alike[1]


def test_even_parts_by_hand():
    """Four sequences on two ranks, of a tree each; any two can be together."""
    ranks = Ranks(2, 1, 10**9)
    assert cut_line([8, 2, 8, 2], [0, 0, 0, 0], 100, ranks) == [[0, 1], [2, 3]]
    assert sorted(map(sorted, cut_line([5, 5, 5, 2, 1], [0] * 5, 100, ranks))) == [[0, 1], [2, 3, 4]]
    assert sorted(map(sorted, cut_line([9, 1, 3, 4, 1], [0] * 5, 100, ranks))) == [[0], [1, 2, 3, 4]]
    # A path that another goes on from is read on the way: it is never divided from it.
    assert cut_line([2, 4, 6, 8, 6], [0, 2, 4, 6, 0], 100, ranks) == [[0, 1, 2, 3], [4]]
    # Branches of 3 tokens on a prefix of 10: both ranks have it, and as many of them.
    assert [len(part) for part in cut_line([13] * 8, [0, *[10] * 7], 100, ranks)] == [4, 4]


def test_branches_of_a_long_prefix_share_a_pack():
    """A trunk of twice the budget: packs grow with a prefix that is over it, and repeat it at most as often as it pays.

    Where every path fits, every pack does.
    """
    rng = random.Random(2)
    long = tree(rng, "long", trunks=1, steps=600, candidates=4)
    most = len(long.trunks[0].ids) // 2
    groups = [(0, index) for index, state in enumerate(long.states) if len(long.prefix_ids(state)) > most]
    packs = pack_actor([long], groups, most)
    whole = sum(p.tokens for p in pack_actor([long], groups, 10**7))
    assert sum(p.tokens for p in packs) <= 2 * whole
    path = max(int(p.position_ids.max()) + 1 for p in packs)
    assert most < max(p.tokens for p in packs) <= 2 * path
    fits = [(0, index) for index, state in enumerate(long.states) if len(long.prefix_ids(state)) < most - 100]
    packs = pack_actor([long], fits, most)
    assert len(fits) > 200 and max(int(p.position_ids.max()) for p in packs) < most
    assert max(p.tokens for p in packs) <= most


def test_lines_and_fits_by_hand():
    one = Ranks()
    # Two trees: paths of 4, 5, 6 tokens that share 3 and 4 with the one before, then one of 7 alone.
    assert cut_line([4, 5, 6, 7], [0, 3, 4, 0], 100, one) == [[0, 1, 2, 3]]
    assert cut_line([4, 5, 6, 7], [0, 3, 4, 0], 8, one) == [[0, 1, 2], [3]]
    # A prefix of 3 tokens is not over the limit, so that no pack of several paths is; one of 4 is, and has room for 8.
    assert cut_line([4, 5, 6, 7], [0, 3, 4, 0], 3, one) == [[0], [1, 2], [3]]
    # Every path fits: no pack is over the limit, however much of it is repeated.
    assert cut_line([6, 6, 6], [0, 5, 5], 6, one) == [[0], [1], [2]]
    assert cut_line([9], [0], 3, one) == [[0]]
    assert cut_line([4, 5, 6, 7], [0, 3, 4, 0], 100, Ranks(2, 1, 10**9)) == [[0, 1, 2], [3]]
    assert cut_line([], [], 3, one) == first_fit([], 3, one) == []
    assert first_fit([3, 5, 2, 4], 7, one) == [[1, 2], [0, 3]]
    assert first_fit([3, 5, 2, 4], 100, Ranks(2, 1, 10**9)) == [[1, 2], [0, 3]]
    assert first_fit([3, 5, 2, 4], 100, Ranks(2, 10, 10**9)) == [[0, 1, 2, 3]]
