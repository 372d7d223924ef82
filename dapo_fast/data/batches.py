"""Which states make an optimizer step: a function of the data, the seed and the epoch, never of the ranks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from dapo_fast.data.tree import Tree

Group = tuple[int, ...]  # (tree index, state index), or (tree index, state index, candidate index)

# A batch is drawn from at least about this many separate pieces of the data. Whole trees would share the most tokens,
# but a batch of 2,048 pairs would then see three or four problems; a trunk shares all but the prompt.
UNITS_PER_BATCH = 8


def by_tree(groups: Iterable[Group]) -> dict[int, list[Group]]:
    """``groups`` of each tree, in their order."""
    found: dict[int, list[Group]] = {}
    for group in groups:
        found.setdefault(group[0], []).append(group)
    return found


def actor_groups(trees: Sequence[Tree]) -> list[Group]:
    """The kept states: each with all its candidates stays in one optimizer batch (the paper's first trick)."""
    return [
        (index, state)
        for index, tree in enumerate(trees)
        for state in range(len(tree.states))
        if tree.states[state].kept and tree.states[state].candidates
    ]


def critic_groups(trees: Sequence[Tree]) -> list[Group]:
    """Every state that has completions, hence an MC value."""
    return [
        (index, state)
        for index, tree in enumerate(trees)
        for state in range(len(tree.states))
        if tree.states[state].rewards
    ]


def actor_batches(
    trees: Sequence[Tree], batch_pairs: int, seed: int, epoch: int, state_wise: bool = True
) -> list[list[Group]]:
    """The epoch's optimizer batches: groups whose candidates add up to about ``batch_pairs``.

    A function of the data, ``seed`` and ``epoch`` alone, never of the number of ranks. All batches are of nearly the
    same size, since each is averaged over its own pairs. With ``state_wise`` off (an ablation) single pairs are
    shuffled.
    """
    groups = actor_groups(trees)
    if not state_wise:
        pairs = [(*g, c) for g in groups for c in range(len(trees[g[0]].states[g[1]].candidates))]
        return _cut([([pair], 1) for pair in pairs], batch_pairs, seed, epoch)
    weights = [len(trees[g[0]].states[g[1]].candidates) for g in groups]
    return _cut(_units(trees, groups, weights, batch_pairs), batch_pairs, seed, epoch)


def critic_batches(trees: Sequence[Tree], batch_states: int, seed: int, epoch: int) -> list[list[Group]]:
    """The epoch's critic batches of about ``batch_states`` states, drawn as ``actor_batches`` draws."""
    groups = critic_groups(trees)
    return _cut(_units(trees, groups, [1] * len(groups), batch_states), batch_states, seed, epoch)


def _units(
    trees: Sequence[Tree], groups: Sequence[Group], weights: Sequence[int], batch: int
) -> list[tuple[list[Group], int]]:
    """Pieces of the data that are shuffled whole: a tree, or where that is too much of a batch a trunk, or a part."""
    limit = max(1, batch // UNITS_PER_BATCH)
    units: list[tuple[list[Group], int]] = []
    weight_of = dict(zip(groups, weights, strict=True))
    for index, members in by_tree(groups).items():
        total = sum(weight_of[g] for g in members)
        if total <= limit:
            units.append((members, total))
            continue
        trunk = -1
        for group in members:
            weight = weight_of[group]
            if trees[index].states[group[1]].trunk != trunk or units[-1][1] + weight > limit:
                units.append(([], 0))
                trunk = trees[index].states[group[1]].trunk
            units[-1] = ([*units[-1][0], group], units[-1][1] + weight)
    return units


def _cut(units: Sequence[tuple[list[Group], int]], batch: int, seed: int, epoch: int) -> list[list[Group]]:
    total = sum(weight for _, weight in units)
    if not total:
        return []
    count = max(1, round(total / batch))
    batches: list[list[Group]] = [[] for _ in range(count)]
    done = 0
    for index in np.random.default_rng([seed, epoch]).permutation(len(units)).tolist():
        members, weight = units[index]
        batches[min(count - 1, int((done + weight / 2) * count / total))] += members
        done += weight
    return [sorted(groups) for groups in batches if groups]
