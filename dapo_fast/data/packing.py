"""What each reader asks of the trees, as packs: flat arrays that one forward pass reads, each shared prefix once.

Only what is read is packed: prefixes up to the last state asked for, and candidates of the states asked for. A step's
last token predicts nothing, so the actor's packs leave it out.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from dapo_fast.data.batches import Group, by_tree
from dapo_fast.data.dealing import ONE, Ranks, by_length, cut_line, first_fit
from dapo_fast.data.line import chains
from dapo_fast.data.pack import Pack, Piece, concatenate, pack_stats
from dapo_fast.data.tree import Tree
from dapo_fast.data.trie import Arrays, Trie
from dapo_fast.errors import InputError

log = logging.getLogger("dapo_fast.packing")


@dataclass(slots=True)
class _Item:
    """One path to be read: a state's prefix, then a candidate's tokens (none for the state's own value)."""

    state: int
    candidate: int  # -1: the state itself
    path: Sequence[int]  # tokens after the state's prefix that must be packed
    targets: Sequence[int] | None  # scored tokens; None: read a value at the path's end


def _build(tree: Tree, tree_index: int, items: Sequence[_Item]) -> Piece:
    trie = Trie()
    # Prefixes go in before candidates, whole and in trunk order, so that trunks come first in depth-first order.
    deepest: dict[int, int] = {}
    for item in items:
        state = tree.states[item.state]
        deepest[state.trunk] = max(deepest.get(state.trunk, 0), state.step)
    prompt = len(tree.prompt_ids)
    prefix_ids: dict[int, list[int]] = {}
    for index in sorted(deepest):
        response = tree.trunks[index].ids[: tree.trunks[index].step_ends[deepest[index] - 1]] if deepest[index] else []
        prefix_ids[index] = trie.insert(-1, tree.prompt_ids + response)
    paths: list[tuple[int, list[int]]] = []
    flat_tokens = 0
    for item in items:
        state = tree.states[item.state]
        length = prompt + tree.response_length(state)
        node = prefix_ids[state.trunk][length - 1]
        paths.append((node, trie.insert(node, item.path)))
        flat_tokens += length + len(item.path)
    row_of, arrays = trie.layout()
    piece = Piece(arrays, flat_tokens)
    for item, (node, ids) in zip(items, paths, strict=True):
        state = tree.states[item.state]
        key = (tree_index, item.state, item.candidate)
        if item.targets is None:
            piece.value_rows.append(int(row_of[ids[-1] if ids else node]))
            known = item.candidate < 0 and bool(state.rewards)
            piece.value_targets.append(state.mc if known else math.nan)
            piece.value_weights.append(len(state.rewards) if known else math.nan)
            piece.value_keys.append(key)
        else:
            candidate = state.candidates[item.candidate]
            piece.rows.append(row_of[[node, *ids]])
            piece.targets.append(item.targets)
            piece.advantages.append(math.nan if candidate.advantage is None else candidate.advantage)
            piece.ref_logps.append(math.nan if candidate.ref_logp is None else candidate.ref_logp)
            piece.step_keys.append(key)
    return piece


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Tokens that both begin with."""
    if first[:1] != second[:1]:  # most often
        return 0
    return next((n for n, (a, b) in enumerate(zip(first, second)) if a != b), min(len(first), len(second)))


class _Line:
    """The items of a batch in the order that shares most: depth first, what a trunk goes on from last."""

    def __init__(self, wanted: Iterable[tuple[int, Tree, list[_Item]]]) -> None:
        self.members: list[tuple[int, Tree, _Item]] = []
        self.sizes: list[int] = []
        self.shared: list[int] = []
        for index, tree, items in wanted:
            if not tree.prompt_ids:
                raise InputError(
                    f"problem {tree.problem_id!r}: an empty prompt has no token to predict the first step from"
                )
            before: _Item | None = None
            for item in sorted(items, key=lambda item: self._place(tree, item)):
                prefix = len(tree.prompt_ids) + tree.response_length(tree.states[item.state])
                self.members.append((index, tree, item))
                self.sizes.append(prefix + len(item.path))
                self.shared.append(0 if before is None else self._shared(tree, before, item))
                before = item

    @staticmethod
    def _place(tree: Tree, item: _Item) -> tuple:
        state = tree.states[item.state]
        after = tree.response_length(state)
        following = tree.trunks[state.trunk].ids[after : after + len(item.path)] if tree.trunks else []
        return state.trunk, state.step, item.state, _common(item.path, following), item.path

    @staticmethod
    def _shared(tree: Tree, before: _Item, item: _Item) -> int:
        first, second = tree.states[before.state], tree.states[item.state]
        known = tree.response_length(first) if first.trunk == second.trunk else 0
        if first is second:
            return len(tree.prompt_ids) + known + _common(before.path, item.path)
        unlike: list[list[int]] = []
        for state, path in ((first, before.path), (second, item.path)):
            length = tree.response_length(state)
            unlike.append([*(tree.trunks[state.trunk].ids[known:length] if length else []), *path])
        return len(tree.prompt_ids) + known + _common(*unlike)

    def chains(self) -> list[range]:
        """The items of each sequence that no other begins with."""
        first, last = chains(np.asarray(self.sizes), np.asarray(self.shared))
        return [range(start, stop + 1) for start, stop in zip(first.tolist(), last.tolist(), strict=True)]

    def pieces(self, part: Sequence[int]) -> list[Piece]:
        """The tries of some items, ascending, one a tree."""
        found: list[Piece] = []
        for index, group in itertools.groupby((self.members[i] for i in part), key=lambda member: member[0]):
            members = list(group)
            items = sorted((item for _, _, item in members), key=lambda i: (i.state, i.candidate))
            found.append(_build(members[0][1], index, items))
        return found


def _packs(
    wanted: Iterable[tuple[int, Tree, list[_Item]]],
    pack_tokens: int,
    lengths: Sequence[int] | None,
    flat: bool,
    ranks: Ranks,
) -> list[Pack]:
    line = _Line(wanted)
    if ranks.padded:
        return _side_by_side([line.pieces(part)[0] for part in line.chains()], pack_tokens, lengths, ranks)
    if flat:
        pieces = [piece for i in range(len(line.members)) for piece in line.pieces([i])]
        return _side_by_side(pieces, pack_tokens, lengths, ranks)
    parts = cut_line(line.sizes, line.shared, pack_tokens, ranks)
    packs = [concatenate(line.pieces(part), lengths) for part in parts]
    log.debug("packed %s", pack_stats(packs))
    return packs


def _side_by_side(pieces: Sequence[Piece], pack_tokens: int, lengths: Sequence[int] | None, ranks: Ranks) -> list[Pack]:
    sizes = [piece.size for piece in pieces]
    if ranks.padded:
        return [concatenate([pieces[i] for i in indices], None) for indices in by_length(sizes, pack_tokens, ranks)]
    members = first_fit(sizes, pack_tokens, ranks)
    return [concatenate([pieces[i] for i in indices], lengths) for indices in members]


def _scored(tree: Tree, state: int, candidate: int) -> _Item:
    ids = tree.states[state].candidates[candidate].ids
    if not ids:
        raise InputError(f"problem {tree.problem_id!r}: candidate {candidate} of state {state} has no tokens")
    return _Item(state, candidate, ids[:-1], ids)


def pack_actor(
    trees: Sequence[Tree],
    groups: Sequence[Group],
    pack_tokens: int,
    lengths: Sequence[int] | None = None,
    flat: bool = False,
    ranks: Ranks = ONE,
) -> list[Pack]:
    """Packs of one batch that score every candidate of ``groups``, for the actor's loss and reference log-probs.

    Args:
        trees: The trees that ``groups`` index.
        groups: ``(tree, state)``: all candidates of the state; ``(tree, state, candidate)``: that one.
        pack_tokens: Tokens of a pack at most, but where one path takes more by itself (``cut_line``).
        lengths: Lengths that packs are padded to (``pad_lengths``); None: no padding.
        flat: One sequence per candidate, nothing shared: the reference to compare with.
        ranks: Who reads the packs, which are as large as it takes to fill all of them.

    Raises:
        InputError: an empty prompt or an empty candidate.
    """
    wanted = (
        (
            index,
            trees[index],
            [
                _scored(trees[index], group[1], candidate)
                for group in members
                for candidate in (group[2:] or range(len(trees[index].states[group[1]].candidates)))
            ],
        )
        for index, members in by_tree(groups).items()
    )
    return _packs(wanted, pack_tokens, lengths, flat, ranks)


def pack_critic(
    trees: Sequence[Tree],
    groups: Sequence[Group],
    pack_tokens: int,
    lengths: Sequence[int] | None = None,
    flat: bool = False,
    ranks: Ranks = ONE,
) -> list[Pack]:
    """Packs of one batch that read the value of every state of ``groups``, with MC(s) as the target."""
    wanted = (
        (index, trees[index], [_Item(group[1], -1, [], None) for group in members])
        for index, members in by_tree(groups).items()
    )
    return _packs(wanted, pack_tokens, lengths, flat, ranks)


def pack_candidates(
    trees: Sequence[Tree],
    pack_tokens: int,
    lengths: Sequence[int] | None = None,
    flat: bool = False,
    ranks: Ranks = ONE,
) -> list[Pack]:
    """Packs that read V(s) of every state and Q of every candidate that does not end its response."""
    wanted = (
        (
            index,
            tree,
            [
                _Item(state, candidate, [] if candidate < 0 else tree.states[state].candidates[candidate].ids, None)
                for state in range(len(tree.states))
                for candidate in range(-1, len(tree.states[state].candidates))
                if candidate < 0 or not tree.states[state].candidates[candidate].terminal
            ],
        )
        for index, tree in enumerate(trees)
    )
    return _packs(wanted, pack_tokens, lengths, flat, ranks)


def pack_sequences(
    sequences: Sequence[tuple[Sequence[int], Sequence[int]]],
    pack_tokens: int,
    lengths: Sequence[int] | None = None,
    ranks: Ranks = ONE,
) -> list[Pack]:
    """Flat packs of (prompt ids, response ids): each response is one scored step, its prompt only read.

    ``step_keys`` are ``(index of the sequence, 0, 0)``; advantages and reference log-probs are NaN.

    Raises:
        InputError: an empty prompt or response, with its index.
    """
    pieces: list[Piece] = []
    for index, (prompt, response) in enumerate(sequences):
        if not prompt or not response:
            empty = "response" if prompt else "prompt"
            raise InputError(f"sequence {index}: an empty {empty} leaves nothing to predict")
        ids = np.asarray([*prompt, *response[:-1]], dtype=np.int64)
        size = ids.size
        arrays = Arrays(ids, np.arange(size), np.full(size, size), np.array([[0, size, -1]]))
        piece = Piece(arrays, size)
        piece.rows.append(np.arange(len(prompt) - 1, size))
        piece.targets.append(response)
        piece.advantages.append(math.nan)
        piece.ref_logps.append(math.nan)
        piece.step_keys.append((index, 0, 0))
        pieces.append(piece)
    return _side_by_side(pieces, pack_tokens, lengths, ranks)
