"""The trajectory viewer's data: real responses, step by step, with what the critic and training made of each step."""

from __future__ import annotations

import logging
from typing import Any

from transformers import PreTrainedTokenizerBase

from dapo_fast.data.tree import Candidate, State, Tree, Trunk
from dapo_fast.report.read import Run
from dapo_fast.report.trees import TreeSummary, gap
from dapo_fast.rollout.loading import load_tokenizer
from dapo_fast.rollout.text import text_of

log = logging.getLogger("dapo_fast.report")

CONTEXT_TOKENS = 16  # decoded before a step, since what a token reads as can depend on those before it


def tokenizer_of(run: Run, iteration: int) -> PreTrainedTokenizerBase | None:
    """The tokenizer of the policy that sampled ``iteration``'s trees; None if its directory is not there."""
    for directory in run.policy_directories(iteration):
        if (directory / "tokenizer_config.json").exists():
            log.info("report: step texts of iteration %d by the tokenizer in %s", iteration, directory)
            return load_tokenizer(directory)
    return None


def choose(summaries: dict[int, TreeSummary], limit: int) -> list[tuple[int, Tree, int]]:
    """(iteration, tree, trunk) of at most ``limit`` responses: as many correct as wrong, iterations in equal parts.

    Trees come in order of interest, and each gives at most one correct and one wrong response: its most decided one.
    """
    chosen: list[tuple[int, Tree, int]] = []
    for iteration, summary in summaries.items():
        share = limit // len(summaries)
        picked: dict[bool, list[tuple[Tree, int]]] = {True: [], False: []}
        for _, tree in summary.sample:
            for correct, rows in picked.items():
                trunks = [i for i, trunk in enumerate(tree.trunks) if trunk.right == correct]
                if trunks:
                    rows.append((tree, max(trunks, key=lambda i: (_largest_gap(tree, i), -i))))
        right = min(len(picked[True]), max(share // 2, share - len(picked[False])))
        rows = picked[True][:right] + picked[False][: share - right]
        order = {tree.problem_id: i for i, (_, tree) in enumerate(summary.sample)}
        rows.sort(key=lambda row: order[row[0].problem_id])
        chosen += [(iteration, tree, trunk) for tree, trunk in rows]
    return chosen


def trajectory(iteration: int, tree: Tree, trunk: int, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """One response as JSON data for the page: its steps, the state before each, and that state's candidates."""
    states = {tuple(tree.response_prefix(state)): state for state in tree.states}
    response = tree.trunks[trunk]
    starts = [0, *response.step_ends[:-1]]
    steps = [
        _step(tree, response, start, end, states, tokenizer)
        for start, end in zip(starts, response.step_ends, strict=True)
    ]
    return {
        "iteration": iteration,
        "problem": tree.problem_id,
        "prompt": tree.prompt,
        "answer": tree.answer,
        "sampled": tree.sampled,
        "solved": _rounded(tree.correct),
        "correct": response.right,
        "reward": _rounded(response.reward),
        "finished": response.finished,
        "missed": max((_missed(step) for step in steps), default=0.0),
        "steps": steps,
    }


def _missed(step: dict[str, Any]) -> float:
    """How much better than the step that was taken the best candidate is, by Â."""
    known = [c["advantage"] for c in step["candidates"] if c["advantage"] is not None]
    return round(max(known) - step["advantage"], 4) if known and step["advantage"] is not None else 0.0


def _step(
    tree: Tree,
    response: Trunk,
    start: int,
    end: int,
    states: dict[tuple[int, ...], State],
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, Any]:
    ids = response.ids[start:end]
    before = tree.prompt_ids + response.ids[:start]
    state = states.get(tuple(response.ids[:start]))
    text = step_text(before, ids, tokenizer)
    step: dict[str, Any] = {"text": text, "value": None, "advantage": None, "candidates": []}
    if state is None:
        return step
    own = next((c for c in state.candidates if c.ids == ids), None)
    step |= {
        "value": _rounded(state.value),
        "mc": _rounded(state.mc) if state.rewards else None,
        "right": _rounded(sum(state.rewards)),
        "completions": len(state.rewards),
        "kept": state.kept,
        "gap": _rounded(gap(state)),
        "sampled": own is not None,
    }
    if own is not None:
        step |= {"q": _rounded(own.q), "advantage": _rounded(own.advantage)}
    else:
        q = _q_of_trunk_step(response, end, states)
        mean = _mean_q(state)
        step |= {"q": _rounded(q), "advantage": _rounded(None if q is None or mean is None else q - mean)}
    ranked = sorted(state.candidates, key=lambda c: (-(c.q if c.q is not None else c.reward), -c.count))
    step["candidates"] = [_candidate(c, c is own, before, tokenizer) for c in ranked]
    return step


def _q_of_trunk_step(response: Trunk, end: int, states: dict[tuple[int, ...], State]) -> float | None:
    """Q of a step that no completion began with, by its definition: the reward if it is the last, else V of where
    it leads."""
    if end == len(response.ids):
        return response.reward
    after = states.get(tuple(response.ids[:end]))
    return after.value if after is not None else None


def _mean_q(state: State) -> float | None:
    """What advantages are measured from: the mean Q of the state's completions, duplicates counted."""
    known = [(c.count, c.q) for c in state.candidates if c.q is not None]
    total = sum(count for count, _ in known)
    return sum(count * q for count, q in known) / total if total else None


def _candidate(
    candidate: Candidate, own: bool, before: list[int], tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    return {
        "text": step_text(before, candidate.ids, tokenizer),
        "own": own,
        "count": candidate.count,
        "terminal": candidate.terminal,
        "right": _rounded(candidate.right),
        "n": candidate.n,
        "value": _rounded(candidate.value),
        "q": _rounded(candidate.q),
        "advantage": _rounded(candidate.advantage),
        "before": _rounded(candidate.ref_logp),
        "after": _rounded(candidate.logp_after),
    }


def step_text(before: list[int], ids: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """What the step ``ids`` reads as after the tokens ``before``."""
    context = before[-CONTEXT_TOKENS:]
    # Special tokens stay visible: an end token is part of the action.
    head = text_of(tokenizer, context, special=True)
    whole = text_of(tokenizer, [*context, *ids], special=True)
    return whole[len(head) :] if whole.startswith(head) else text_of(tokenizer, ids, special=True)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _largest_gap(tree: Tree, trunk: int) -> float:
    ids = tree.trunks[trunk].ids
    prefixes = {tuple(ids[:end]) for end in (0, *tree.trunks[trunk].step_ends)}
    on_path = [state for state in tree.states if tuple(tree.response_prefix(state)) in prefixes]
    return max((gap(state) or 0.0 for state in on_path if state.kept is not False), default=0.0)
