"""The best and the worst steps of an iteration, and what training made of each, in words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from dapo_fast.data.tree import Candidate, State, Tree
from dapo_fast.report.markup import missing, paragraph, section, table
from dapo_fast.report.read import Run
from dapo_fast.report.trees import TreeSummary
from dapo_fast.report.viewer import step_text
from dapo_fast.rollout.text import text_of

SHOWN = 4  # of the best, and as many of the worst
_STILL = 0.1  # nats: a smaller change is none

Tokenizers = Mapping[int, PreTrainedTokenizerBase | None]


@dataclass(frozen=True)
class _Step:
    tree: Tree
    state: State
    candidate: Candidate
    advantage: float


def steps_section(run: Run, trees: Mapping[int, TreeSummary], tokenizers: Tokenizers) -> str:
    """A table of each iteration's; empty where no advantage is known yet."""
    tables = []
    for number, summary in trees.items():
        tokenizer, best, worst = tokenizers[number], *_extremes(summary)
        if tokenizer is None or not best:
            continue
        rows = [_row(step, tokenizer) for step in [*best, *worst]]
        head = ["step", "Â", "right", "before", "after", "what came of it"]
        tables.append(table(f"Best and worst steps, iteration {number}", head, rows, wide=[0, 5], seen=True))
        if not any(step.candidate.logp_after for step in [*best, *worst]):
            made = run.command("actor", number)
            tables.append(missing("Probabilities before and after training are not there.", made))
    if not tables:
        return ""
    intro = paragraph(
        "Of the trajectories' trees, the steps with the largest and the smallest advantage that do not end a response, "
        "at most one of each a problem, after the line that they follow: how many sampled continuations through a step "
        "ended right, and its probability under the policy before and after training, which should go the way of Â."
    )
    return section("steps", "Best and worst steps", intro, *tables)


def _extremes(summary: TreeSummary) -> tuple[list[_Step], list[_Step]]:
    """The steps of largest advantage, above 0, and of smallest, below it; the extreme one of each problem."""
    best: list[_Step] = []
    worst: list[_Step] = []
    for _, tree in summary.sample:
        steps = list(_trained(tree))
        # What ends a response has its reward for Q: the extremes, and nothing that one did not know.
        steps = [step for step in steps if not step.candidate.terminal] or steps
        if steps:
            best.append(max(steps, key=lambda step: step.advantage))
            worst.append(min(steps, key=lambda step: step.advantage))
    best = sorted((step for step in best if step.advantage > 0), key=lambda step: -step.advantage)[:SHOWN]
    worst = sorted((step for step in worst if step.advantage < 0), key=lambda step: -step.advantage)[-SHOWN:]
    return best, worst


def _trained(tree: Tree) -> Iterator[_Step]:
    for state in tree.states:
        for candidate in state.candidates if state.kept else ():
            if candidate.advantage is not None:
                yield _Step(tree, state, candidate, candidate.advantage)


def _row(step: _Step, tokenizer: PreTrainedTokenizerBase) -> Sequence[str]:
    candidate = step.candidate
    before = step.tree.prompt_ids + step.tree.response_prefix(step.state)
    # The line before it, or the prompt's last one: a step says little alone.
    so_far = step.tree.response_prefix(step.state) or step.tree.prompt_ids
    follows = text_of(tokenizer, so_far).rstrip().rpartition("\n")[2]
    return [
        f"{follows} ⏎ {step_text(before, candidate.ids, tokenizer).strip()}",
        f"{step.advantage:+.2f}",
        f"{candidate.right:g} of {candidate.n}" if candidate.n else "–",
        _probability(candidate.ref_logp),
        _probability(candidate.logp_after),
        _comment(step),
    ]


def _probability(logp: float | None) -> str:
    return "–" if logp is None else f"{math.exp(min(0.0, logp)):.1%}"


def _comment(step: _Step) -> str:
    candidate = step.candidate
    said = []
    if candidate.terminal:
        said.append(f"ends the response, {'right' if candidate.reward > 0.5 else 'wrong'}")
    elif not candidate.n:
        said.append("by the critic alone")
    if candidate.ref_logp is not None and candidate.logp_after is not None:
        change = candidate.logp_after - candidate.ref_logp
        if abs(change) < _STILL:
            said.append("training hardly moved it")
        elif (change > 0) == (step.advantage > 0):
            said.append("training made it more likely" if change > 0 else "training made it less likely")
        else:
            said.append(f"training made it {'more' if change > 0 else 'less'} likely, against its advantage")
    return "; ".join(said) or "–"
