"""Step trees → packs: flat arrays that one forward pass reads, each shared prefix standing once.

A tree's prefixes and candidate steps form a token trie. In depth-first order with the trunk's continuation first,
attention needs one integer a token: key k is visible to query q iff ``k <= q < subtree_end[k]``. Only what is read is
packed: prefixes up to the last state asked for, and candidates of the states asked for. A step's last token predicts
nothing, so the actor's packs leave it out.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch

from dapo_fast.data.tree import Tree
from dapo_fast.errors import InputError

log = logging.getLogger("dapo_fast.packing")

Group = tuple[int, ...]  # (tree index, state index), or (tree index, state index, candidate index)

# A batch is drawn from at least about this many separate pieces of the data. Whole trees would share the most tokens,
# but a batch of 2,048 pairs would then see three or four problems; a trunk shares all but the prompt.
UNITS_PER_BATCH = 8


@dataclass(slots=True)
class Pack:
    """One forward pass: tokens of several trees in depth-first order, and what is read from them.

    Attributes:
        input_ids: ``(T,)`` int64, padding included.
        position_ids: ``(T,)`` int64, depth in the tree.
        subtree_end: ``(T,)`` int32; key k is visible to query q iff ``k <= q < subtree_end[k]``.
        runs: ``(R, 3)`` int32 on the CPU: start, length and parent row (-1: a root) of each unbranched stretch.
        hidden_rows: ``(N,)`` int64, the row whose hidden state predicts each scored token.
        targets: ``(N,)`` int64, the scored tokens, sorted by step.
        cu_steps: ``(S+1,)`` int32; step s owns entries ``cu_steps[s]:cu_steps[s+1]``.
        advantages: ``(S,)`` fp32, Â of each step (NaN where the tree has none yet).
        ref_logps: ``(S,)`` fp32, log π_ref of each step in nats (NaN where the tree has none yet).
        step_keys: ``(S, 3)`` int64: tree, state and candidate index.
        value_rows: ``(M,)`` int64, rows at which a value is read.
        value_targets: ``(M,)`` fp32, MC(s) of the state (NaN for candidates).
        value_weights: ``(M,)`` fp32, outcomes behind the target (NaN for candidates).
        value_keys: ``(M, 3)`` int64; candidate index -1 is the state itself.
        tokens: Tokens that are not padding.
        flat_tokens: Tokens that one sequence per scored step or value would take.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    subtree_end: torch.Tensor
    runs: torch.Tensor
    hidden_rows: torch.Tensor
    targets: torch.Tensor
    cu_steps: torch.Tensor
    advantages: torch.Tensor
    ref_logps: torch.Tensor
    step_keys: torch.Tensor
    value_rows: torch.Tensor
    value_targets: torch.Tensor
    value_weights: torch.Tensor
    value_keys: torch.Tensor
    tokens: int
    flat_tokens: int

    @property
    def length(self) -> int:
        """T, padding included."""
        return self.input_ids.numel()

    @property
    def steps(self) -> int:
        """S, the number of scored steps."""
        return self.cu_steps.numel() - 1

    @property
    def is_flat(self) -> bool:
        """Whether no two sequences share a prefix: plain packed sequences, which variable-length kernels take."""
        return bool((self.runs[:, 2] < 0).all())

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Pack:
        """The pack with its tensors on ``device``, but for those that are read on the host.

        Attention is planned from ``runs``, and the fused losses cut their chunks by ``hidden_rows`` and ``cu_steps``.
        """
        host = ("runs", "hidden_rows", "cu_steps", "tokens", "flat_tokens")
        moved = {
            f.name: getattr(self, f.name).to(device, non_blocking=non_blocking)
            for f in fields(self)
            if f.name not in host
        }
        return replace(self, **moved)


# ---------------------------------------------------------------------------------------------------- the token trie


class _Trie:
    """A token trie whose unbranched stretches (runs) are stored whole; ids are given in order of insertion."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.starts: list[int] = []  # first id of each run
        self.attach: list[int] = []  # id that each run hangs on; -1: the root
        self.ends: set[int] = set()  # last id of each run
        self.branches: dict[tuple[int, int], int] = {}  # (id, next token) -> first id of a run hanging there

    def insert(self, node: int, path: Sequence[int]) -> list[int]:
        """Walk ``path`` from ``node``, adding what is new; the ids of its tokens."""
        tokens, ends, branches = self.tokens, self.ends, self.branches
        ids: list[int] = []
        for index, token in enumerate(path):
            if node >= 0 and node not in ends and tokens[node + 1] == token:
                node += 1
            else:
                child = branches.get((node, token))
                if child is None:
                    start = len(tokens)
                    branches[node, token] = start
                    self.starts.append(start)
                    self.attach.append(node)
                    tokens.extend(path[index:])
                    ends.add(len(tokens) - 1)
                    ids.extend(range(start, len(tokens)))
                    return ids
                node = child
            ids.append(node)
        return ids

    def layout(self) -> tuple[np.ndarray, _Arrays]:
        """Depth-first rows: (row of each id, the trie's arrays).

        Below a run's tokens stand the runs that hang on it, deepest first, so that at every token the continuation
        of its own run precedes the branches; insertion order decides among branches of one token.
        """
        total, count = len(self.tokens), len(self.starts)
        starts = np.asarray(self.starts, dtype=np.int64)
        attach = np.asarray(self.attach, dtype=np.int64)
        lengths = np.diff(starts, append=total)
        parents = np.searchsorted(starts, attach, side="right") - 1  # -1 for roots
        parent_list, sizes = parents.tolist(), lengths.tolist()
        for run in range(count - 1, -1, -1):  # children come after their parents
            if parent_list[run] >= 0:
                sizes[parent_list[run]] += sizes[run]
        offsets, depths = [0] * count, [0] * count
        cursor = (np.zeros(count, dtype=np.int64) + lengths).tolist()  # next free row, relative to the parent
        root_cursor = 0
        starts_list, attach_list = self.starts, self.attach
        for run in np.lexsort((np.arange(count), -attach, parents)).tolist():
            parent = parent_list[run]
            if parent < 0:
                offsets[run] = root_cursor
                root_cursor += sizes[run]
                continue
            offsets[run] = offsets[parent] + cursor[parent]
            cursor[parent] += sizes[run]
            depths[run] = depths[parent] + attach_list[run] - starts_list[parent] + 1
        offset = np.asarray(offsets, dtype=np.int64)
        run_of = np.repeat(np.arange(count), lengths)
        local = np.arange(total) - starts[run_of]
        rows = offset[run_of] + local
        hanging = np.zeros(total + 1, dtype=np.int64)
        np.add.at(hanging, attach + 1, np.asarray(sizes))  # slot 0 takes the roots
        below = np.cumsum(hanging[1:])
        last = starts + lengths - 1
        subtree_end = (offset + lengths)[run_of] + below[last][run_of] - below + hanging[1:]
        order = np.argsort(offset)
        parent_rows = np.where(attach >= 0, rows[attach], -1)
        arrays = _Arrays(
            input_ids=np.empty(total, dtype=np.int64),
            position_ids=np.empty(total, dtype=np.int64),
            subtree_end=np.empty(total, dtype=np.int64),
            runs=np.stack([offset, lengths, parent_rows], axis=1)[order],
        )
        arrays.input_ids[rows] = np.asarray(self.tokens, dtype=np.int64)
        arrays.position_ids[rows] = np.asarray(depths)[run_of] + local
        arrays.subtree_end[rows] = subtree_end
        return rows, arrays


@dataclass(slots=True)
class _Arrays:
    input_ids: np.ndarray
    position_ids: np.ndarray
    subtree_end: np.ndarray
    runs: np.ndarray


@dataclass(slots=True)
class _Piece:
    """What cannot be divided further: one trie and everything read from it."""

    arrays: _Arrays
    flat_tokens: int
    rows: list[np.ndarray] = field(default_factory=list)
    targets: list[Sequence[int]] = field(default_factory=list)
    advantages: list[float] = field(default_factory=list)
    ref_logps: list[float] = field(default_factory=list)
    step_keys: list[tuple[int, int, int]] = field(default_factory=list)
    value_rows: list[int] = field(default_factory=list)
    value_targets: list[float] = field(default_factory=list)
    value_weights: list[float] = field(default_factory=list)
    value_keys: list[tuple[int, int, int]] = field(default_factory=list)

    @property
    def size(self) -> int:
        return self.arrays.input_ids.size


@dataclass(slots=True)
class _Item:
    """One path to be read: a state's prefix, then a candidate's tokens (none for the state's own value)."""

    state: int
    candidate: int  # -1: the state itself
    path: Sequence[int]  # tokens after the state's prefix that must be packed
    targets: Sequence[int] | None  # scored tokens; None: read a value at the path's end


def _build(tree: Tree, tree_index: int, items: Sequence[_Item]) -> _Piece:
    trie = _Trie()
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
        length = prompt + (tree.trunks[state.trunk].step_ends[state.step - 1] if state.step else 0)
        node = prefix_ids[state.trunk][length - 1]
        paths.append((node, trie.insert(node, item.path)))
        flat_tokens += length + len(item.path)
    row_of, arrays = trie.layout()
    piece = _Piece(arrays, flat_tokens)
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


def _tree_pieces(tree: Tree, index: int, items: list[_Item], pack_tokens: int, flat: bool) -> list[_Piece]:
    """The items of one tree as one piece, or as several that each fit the budget and repeat only the trunk."""
    if not tree.prompt_ids:
        raise InputError(f"problem {tree.problem_id!r}: an empty prompt has no token to predict the first step from")
    if flat:
        return [_build(tree, index, [item]) for item in items]
    items = sorted(items, key=lambda i: (tree.states[i.state].trunk, tree.states[i.state].step, i.state))
    whole = _build(tree, index, items)
    if whole.size <= pack_tokens or len(items) == 1:
        return [whole]
    pieces: list[list[_Item]] = []
    size = trunk_size = 0
    trunk_index = -1
    for item in items:
        state = tree.states[item.state]
        prefix = len(tree.prompt_ids) + (tree.trunks[state.trunk].step_ends[state.step - 1] if state.step else 0)
        # An upper bound: another trunk repeats the prompt here, and branches share nothing.
        grown = size + len(item.path) + (prefix - trunk_size if state.trunk == trunk_index else prefix)
        if not pieces or grown > pack_tokens:
            pieces.append([])
            grown = prefix + len(item.path)
        pieces[-1].append(item)
        size, trunk_size, trunk_index = grown, prefix, state.trunk
    log.info(
        "problem %s: %d tokens are over the budget of %d; split into %d pieces",
        tree.problem_id,
        whole.size,
        pack_tokens,
        len(pieces),
    )
    return [_build(tree, index, piece) for piece in pieces]


# ------------------------------------------------------------------------------------------------------- bins → packs


def pad_lengths(pack_tokens: int, device: torch.device | str) -> list[int] | None:
    """The few lengths that packs are padded to: on CUDA fractions of the budget, so that nothing recompiles.

    On the CPU nothing is compiled for a length and padding would only cost time: None, no padding.
    """
    if torch.device(device).type != "cuda":
        return None
    block = 128  # FlexAttention's block
    return sorted({block * math.ceil(pack_tokens / 2**k / block) for k in range(4)})


def _padded(size: int, lengths: Sequence[int] | None) -> int:
    if lengths is None:
        return size
    for length in lengths:
        if size <= length:
            return length
    return max(lengths) * math.ceil(size / max(lengths))


def _concatenate(pieces: Sequence[_Piece], lengths: Sequence[int] | None) -> Pack:
    tokens = sum(piece.size for piece in pieces)
    # An empty pack is one padding token: a rank without work still takes part in every collective.
    padding = _padded(max(tokens, 1), lengths) - tokens
    offsets = np.cumsum([0] + [piece.size for piece in pieces])[:-1].tolist()
    runs = [p.arrays.runs + np.array([o, 0, 0]) + (p.arrays.runs[:, 2:] >= 0) * np.array([0, 0, o])
            for p, o in zip(pieces, offsets, strict=True)]  # fmt: skip
    # Padding is one sequence more, which nobody reads: variable-length kernels and SDPA pay for each sequence.
    runs.append(np.array([[tokens, padding, -1]] if padding else []).reshape(-1, 3))
    rows = [row + o for p, o in zip(pieces, offsets, strict=True) for row in p.rows]
    targets = [t for p in pieces for step in p.targets for t in step]
    zeros = np.zeros(padding, dtype=np.int64)

    def joined(parts: Iterable[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.concatenate(list(parts)).astype(np.int64))

    def keys(parts: list[tuple[int, int, int]]) -> torch.Tensor:
        return torch.tensor(parts, dtype=torch.int64).reshape(-1, 3)

    return Pack(
        input_ids=joined([*(p.arrays.input_ids for p in pieces), zeros]),
        position_ids=joined([*(p.arrays.position_ids for p in pieces), zeros]),
        subtree_end=joined(
            [*(p.arrays.subtree_end + o for p, o in zip(pieces, offsets, strict=True)), zeros + tokens + padding]
        ).to(torch.int32),
        runs=joined(runs).to(torch.int32),
        hidden_rows=joined([*rows, np.zeros(0, dtype=np.int64)]),
        targets=torch.tensor(targets, dtype=torch.int64),
        cu_steps=torch.from_numpy(np.cumsum([0] + [len(row) for row in rows]).astype(np.int32)),
        advantages=torch.tensor([a for p in pieces for a in p.advantages], dtype=torch.float32),
        ref_logps=torch.tensor([r for p in pieces for r in p.ref_logps], dtype=torch.float32),
        step_keys=keys([k for p in pieces for k in p.step_keys]),
        value_rows=torch.tensor(
            [row + o for p, o in zip(pieces, offsets, strict=True) for row in p.value_rows], dtype=torch.int64
        ),
        value_targets=torch.tensor([v for p in pieces for v in p.value_targets], dtype=torch.float32),
        value_weights=torch.tensor([w for p in pieces for w in p.value_weights], dtype=torch.float32),
        value_keys=keys([k for p in pieces for k in p.value_keys]),
        tokens=tokens,
        flat_tokens=sum(piece.flat_tokens for piece in pieces),
    )


def empty_pack(lengths: Sequence[int] | None = None) -> Pack:
    """A pack of padding that scores nothing: what a rank runs when the others have a pack more."""
    return _concatenate([], lengths)


def _bins(pieces: Sequence[_Piece], pack_tokens: int, lengths: Sequence[int] | None) -> list[Pack]:
    """First-fit decreasing. A piece over the budget gets a pack of its own, and is logged."""
    order = sorted(range(len(pieces)), key=lambda i: -pieces[i].size)
    room = np.zeros(len(pieces), dtype=np.int64)
    bins: list[list[int]] = []
    for index in order:
        size = pieces[index].size
        if size > pack_tokens:
            log.warning("one prefix with its step takes %d tokens, over the budget of %d: it gets a pack of its own",
                        size, pack_tokens)  # fmt: skip
        fits = room[: len(bins)] >= size
        chosen = int(fits.argmax()) if fits.any() else len(bins)
        if chosen == len(bins):
            bins.append([])
            room[chosen] = max(pack_tokens, size)
        bins[chosen].append(index)
        room[chosen] -= size
    # Within a pack pieces keep their order, so that two builds of the same data read the same.
    packs = [_concatenate([pieces[i] for i in sorted(members)], lengths) for members in bins]
    log.debug("packed %s", pack_stats(packs))
    return packs


def pack_stats(packs: Sequence[Pack]) -> dict[str, float]:
    """What packing did: tokens, padding, tokens of one sequence a step, and their ratios."""
    tokens = sum(pack.tokens for pack in packs)
    length = sum(pack.length for pack in packs)
    flat = sum(pack.flat_tokens for pack in packs)
    return {
        "packs": len(packs),
        "tokens": tokens,
        "flat_tokens": flat,
        "utilisation": tokens / max(length, 1),
        "deduplication": flat / max(tokens, 1),
    }


# -------------------------------------------------------------------------------------------- what each reader asks for


def _by_tree(groups: Iterable[Group]) -> dict[int, list[Group]]:
    found: dict[int, list[Group]] = {}
    for group in groups:
        found.setdefault(group[0], []).append(group)
    return found


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
) -> list[Pack]:
    """Packs of one batch that score every candidate of ``groups``, for the actor's loss and reference log-probs.

    Args:
        trees: The trees that ``groups`` index.
        groups: ``(tree, state)``: all candidates of the state; ``(tree, state, candidate)``: that one.
        pack_tokens: Token budget of a pack.
        lengths: Lengths that packs are padded to (``pad_lengths``); None: no padding.
        flat: One sequence per candidate, nothing shared: the reference to compare with.

    Raises:
        InputError: an empty prompt or an empty candidate.
    """
    pieces: list[_Piece] = []
    for index, members in _by_tree(groups).items():
        tree = trees[index]
        items = [
            _scored(tree, group[1], candidate)
            for group in members
            for candidate in (group[2:] or range(len(tree.states[group[1]].candidates)))
        ]
        if items:
            pieces += _tree_pieces(tree, index, items, pack_tokens, flat)
    return _bins(pieces, pack_tokens, lengths)


def pack_critic(
    trees: Sequence[Tree],
    groups: Sequence[Group],
    pack_tokens: int,
    lengths: Sequence[int] | None = None,
    flat: bool = False,
) -> list[Pack]:
    """Packs of one batch that read the value of every state of ``groups``, with MC(s) as the target."""
    pieces: list[_Piece] = []
    for index, members in _by_tree(groups).items():
        items = [_Item(group[1], -1, [], None) for group in members]
        pieces += _tree_pieces(trees[index], index, items, pack_tokens, flat)
    return _bins(pieces, pack_tokens, lengths)


def pack_candidates(
    trees: Sequence[Tree], pack_tokens: int, lengths: Sequence[int] | None = None, flat: bool = False
) -> list[Pack]:
    """Packs that read V(s) of every state and Q of every candidate that does not end its response."""
    pieces: list[_Piece] = []
    for index, tree in enumerate(trees):
        items = [
            _Item(state, candidate, [] if candidate < 0 else tree.states[state].candidates[candidate].ids, None)
            for state in range(len(tree.states))
            for candidate in range(-1, len(tree.states[state].candidates))
            if candidate < 0 or not tree.states[state].candidates[candidate].terminal
        ]
        if items:
            pieces += _tree_pieces(tree, index, items, pack_tokens, flat)
    return _bins(pieces, pack_tokens, lengths)


def pack_sequences(
    sequences: Sequence[tuple[Sequence[int], Sequence[int]]],
    pack_tokens: int,
    lengths: Sequence[int] | None = None,
) -> list[Pack]:
    """Flat packs of (prompt ids, response ids): each response is one scored step, its prompt only read.

    ``step_keys`` are ``(index of the sequence, 0, 0)``; advantages and reference log-probs are NaN.

    Raises:
        InputError: an empty prompt or response, with its index.
    """
    pieces: list[_Piece] = []
    for index, (prompt, response) in enumerate(sequences):
        if not prompt or not response:
            empty = "response" if prompt else "prompt"
            raise InputError(f"sequence {index}: an empty {empty} leaves nothing to predict")
        ids = np.asarray([*prompt, *response[:-1]], dtype=np.int64)
        size = ids.size
        arrays = _Arrays(ids, np.arange(size), np.full(size, size), np.array([[0, size, -1]]))
        piece = _Piece(arrays, size)
        piece.rows.append(np.arange(len(prompt) - 1, size))
        piece.targets.append(response)
        piece.advantages.append(math.nan)
        piece.ref_logps.append(math.nan)
        piece.step_keys.append((index, 0, 0))
        pieces.append(piece)
    return _bins(pieces, pack_tokens, lengths)


# --------------------------------------------------------------------------------------------------------- the batches


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
    for index, members in _by_tree(groups).items():
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


# ------------------------------------------------------------------------------------------------------------ the ranks


def pack_cost(pack: Pack, hidden_size: int) -> float:
    """Work of one pack, in tokens: its length, and its visible (query, key) pairs at their price.

    A layer takes about 24·H² flops a token in matrix products and 4·H a visible pair in attention (H: hidden size).
    """
    return pack.length + float((pack.position_ids + 1).sum()) / (6 * hidden_size)


def deal(
    packs: Sequence[Pack], world_size: int, hidden_size: int = 1024, lengths: Sequence[int] | None = None
) -> list[list[Pack]]:
    """Packs for each rank: the same number, of nearly the same work.

    Packs are dealt in rounds from the largest down, in each round the largest to the rank with the least work, so that
    packs that run at the same time are alike. A round that is not full is filled up with empty packs.
    """
    ranks: list[list[Pack]] = [[] for _ in range(world_size)]
    work = [0.0] * world_size
    costs = [pack_cost(pack, hidden_size) for pack in packs]
    order = sorted(range(len(packs)), key=lambda i: -costs[i])
    for start in range(0, len(order), world_size):
        indices = order[start : start + world_size]
        free = sorted(range(world_size), key=lambda rank: work[rank])
        for slot, rank in enumerate(free):
            if slot < len(indices):
                ranks[rank].append(packs[indices[slot]])
                work[rank] += costs[indices[slot]]
            else:
                ranks[rank].append(empty_pack(lengths))
    if world_size > 1 and sum(work):
        log.debug("dealt %d packs to %d ranks: the fullest has %.3f of the mean work", len(packs), world_size,
                  max(work) * world_size / sum(work))  # fmt: skip
    return ranks
