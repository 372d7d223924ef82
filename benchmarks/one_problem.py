"""One problem from prompt to updated policy, with the numbers of a run: the blocks of docs/one-problem.md.

``python benchmarks/one_problem.py RUN`` takes a problem of a finished run of the built-in task and writes what stood in
its files to results/one-problem/tree.json; ``benchmarks/readme.py`` makes the blocks from it. What follows from the
stored values (Q, advantages, the pack, targets, losses) is computed by the library each time.
"""

from __future__ import annotations

import functools
import json
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from study.tables import markdown as table

from dapo_fast.advantages import critic_advantages, set_q
from dapo_fast.config import load_config
from dapo_fast.data.packing import pack_actor
from dapo_fast.data.store import read_trees
from dapo_fast.data.tree import Candidate, State, Tree, Trunk
from dapo_fast.report.trees import Scores, gap
from dapo_fast.tasks import get_task

STORED = Path(__file__).parent / "results" / "one-problem" / "tree.json"


# The stored problem -------------------------------------------------------------------------------------------------


def chosen(run: Path) -> Tree:
    """The problem whose largest state has the widest gap, among those that are small, scored whole, and mixed."""
    scores = Scores(run / "iter1" / "actor" / "scores.parquet")
    found = []
    for index, tree in enumerate(read_trees(run / "iter1" / "advantages")):
        scores.fill(index, tree)
        scored = all(c.logp_after is not None for s in tree.states if s.kept for c in s.candidates)
        mixed = {trunk.right for trunk in tree.trunks} == {True, False}
        if (
            mixed
            and scored
            and scores.covers(index)
            and 3 <= len(tree.states) <= 6
            and any(s.kept for s in tree.states)
        ):
            found.append(tree)
    return max(found, key=lambda tree: gap(largest(tree)) or 0.0)


def largest(tree: Tree) -> State:
    """The kept state with most candidates."""
    return max((state for state in tree.states if state.kept), key=lambda state: len(state.candidates))


def store(run: Path) -> None:
    """Write what the run's files say of the chosen problem, of k, of β and of accuracy."""
    critic, actor = (json.loads((run / "iter1" / stage / "done.json").read_text()) for stage in ("critic", "actor"))
    rows = json.loads((run / "results.json").read_text())
    accuracy = [{mode: row[mode]["accuracy"] for mode in ("greedy", "sampled")} for row in rows]
    said = {"k": critic["k"], "beta": actor["beta"], "accuracy": accuracy, "tree": asdict(chosen(run))}
    STORED.parent.mkdir(parents=True, exist_ok=True)
    STORED.write_text(json.dumps(said, indent=1) + "\n")


def stored_tree(values: dict[str, Any]) -> Tree:
    """The tree as it was, with Q and advantages computed anew."""
    states = [
        State(**(state | {"candidates": [Candidate(**candidate) for candidate in state["candidates"]]}))
        for state in values["tree"]["states"]
    ]
    trunks = [Trunk(**trunk) for trunk in values["tree"]["trunks"]]
    tree = Tree(**(values["tree"] | {"states": states, "trunks": trunks}))
    set_q(tree, values["k"])
    critic_advantages(tree, load_config(preset="arithmetic").advantages)
    return tree


# The page -----------------------------------------------------------------------------------------------------------


class Page:
    """The sections of the page, in order."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.tree = stored_tree(values)
        self.k, self.beta, self.accuracy = values["k"], values["beta"], values["accuracy"]
        self.tokenizer = get_task("arithmetic").tokenizer()
        self.state = largest(self.tree)

    def text(self, ids: list[int]) -> str:
        """Tokens as they read, a line break as ↵ and the end token as ■."""
        text = str(self.tokenizer.decode(ids, skip_special_tokens=False))
        return text.replace("\n", "↵").replace("<eos>", "■")

    def where(self, state: State) -> str:
        """A state, by the response so far."""
        return f"`{self.text(self.tree.response_prefix(state))}`" if state.step else "the prompt alone"

    def drawing(self) -> str:
        """The tree: responses from left to right, candidates under the state that they hang on."""
        lines = [self.text(self.tree.prompt_ids)]
        for number, state in enumerate(self.tree.states):
            indent = "   " * state.step
            kept = "" if state.kept else ", left out"
            lines.append(
                f"{indent}└ s{number}: V {state.value:.2f}, {sum(state.rewards):g} of {len(state.rewards)}{kept}"
            )
            before = self.tree.response_prefix(state)
            for candidate in state.candidates:
                taken = before + candidate.ids
                mark = "●" if any(trunk.ids[: len(taken)] == taken for trunk in self.tree.trunks) else "○"
                lines.append(f"{indent}   {mark} {self.text(candidate.ids)}")
        return "\n".join(["```", *lines, "```"])

    def prompt(self) -> str:
        """The question, and the kept responses to it."""
        rows = [[f"`{self.text(t.ids)}`", "right" if t.right else "wrong"] for t in self.tree.trunks]
        said = (
            f"The prompt is `{self.text(self.tree.prompt_ids)}`, its answer {self.tree.answer}. Of {self.tree.sampled} "
            f"sampled responses {self.tree.correct:g} ended right; these were kept:"
        )
        return f"{said}\n\n{table(['response', ''], rows)}"

    def values(self) -> str:
        """What the critic learnt from, and what it says."""
        rows = [
            [f"s{i}", self.where(s), f"{sum(s.rewards):g} of {len(s.rewards)}", f"{s.mc:.2f}", f"{s.value:.3f}"]
            for i, s in enumerate(self.tree.states)
        ]
        return table(["state", "response so far", "completions right", "MC", "V"], rows)

    def evidence(self) -> str:
        """Q and Â of every candidate of the state."""
        rows = []
        for c in self.state.candidates:
            if c.terminal:
                q = f"its reward, {c.reward:g}"
            else:
                q = f"({c.right:g} + {self.k:.2f} · {c.value:.3f}) / ({c.n} + {self.k:.2f}) = {c.q:.3f}"
            value = "–" if c.value is None else f"{c.value:.3f}"
            rows.append(
                [f"`{self.text(c.ids)}`", f"×{c.count}", f"{c.right:g} of {c.n}", value, q, f"{c.advantage:+.3f}"]
            )
        header = ["candidate step", "sampled", "right", "V after it", "Q", "Â"]
        said = (
            f"k = {self.k:.2f}. Of s{self.tree.states.index(self.state)} ({self.where(self.state)}), whose mean over "
            f"what was sampled there is {self._mean()}:"
        )
        return f"{said}\n\n{table(header, rows)}"

    def _mean(self) -> str:
        """The mean that advantages are measured from, written out."""
        terms = [f"{c.count} · {c.q:.3f}" for c in self.state.candidates if c.count]
        total = sum(c.count for c in self.state.candidates)
        mean = sum(c.count * c.q for c in self.state.candidates) / total
        return f"({' + '.join(terms)}) / {total} = {mean:.3f}"

    def pack(self) -> str:
        """The arrays that one forward pass takes."""
        groups = [(0, index) for index, state in enumerate(self.tree.states) if state.kept]
        (pack,) = pack_actor([self.tree], groups, 4096)
        columns = zip(pack.input_ids.tolist(), pack.position_ids.tolist(), pack.subtree_end.tolist(), strict=True)
        lines = [f"{'row':>3}  {'token':<5} {'position':>8} {'subtree_end':>11}"]
        lines += [
            f"{row:>3}  {self.text([ids]):<5} {place:>8} {end:>11}" for row, (ids, place, end) in enumerate(columns)
        ]
        said = (
            f"{pack.tokens} tokens, where one sequence a candidate would take {pack.flat_tokens}; {pack.steps} steps "
            f"are scored by {pack.targets.numel()} (hidden row, target token) entries:"
        )
        return "\n".join([said, "", "```", *lines, "```"])

    def loss(self) -> str:
        """Targets, and where training brought the log-ratios."""
        rows = []
        for c in self.state.candidates:
            target, moved = c.advantage / self.beta, c.logp_after - c.ref_logp
            rows.append([
                f"`{self.text(c.ids)}`", f"{target:+.2f}", f"{target**2 / 2:.2f}", f"{c.ref_logp:.2f}",
                f"{c.logp_after:.2f}", f"{moved:+.2f}", f"{(target - moved) ** 2 / 2:.2f}",
            ])  # fmt: skip
        header = [
            "candidate step",
            "target Â/β",
            "loss before",
            "log π_ref",
            "log π after",
            "log-ratio u",
            "loss after",
        ]
        return table(header, rows)

    def policy(self) -> str:
        """Probabilities before and after, and accuracy."""
        rows = [
            [
                f"`{self.text(c.ids)}`",
                f"{c.advantage:+.3f}",
                f"{math.exp(c.ref_logp):.1%}",
                f"{math.exp(c.logp_after):.1%}",
            ]
            for c in self.state.candidates
        ]
        against = sum((c.logp_after - c.ref_logp) * c.advantage < 0 for c in self.state.candidates)
        greedy, sampled = (
            f"{self.accuracy[0][mode]:.1%} to {self.accuracy[-1][mode]:.1%}" for mode in ("greedy", "sampled")
        )
        said = (
            f"{against} of these {len(rows)} steps moved against their own target: the policy has one set of weights, "
            f"at which the steps of all problems pull. On held-out problems greedy accuracy went from {greedy}, and "
            f"sampled accuracy from {sampled}."
        )
        return f"{table(['candidate step', 'Â', 'probability before', 'after'], rows)}\n\n{said}"


BLOCKS = ("prompt", "drawing", "values", "evidence", "pack", "loss", "policy")


def block(name: str) -> str:
    """One of ``BLOCKS`` of the page."""
    return str(getattr(_page(), name)())


@functools.cache
def _page() -> Page:
    return Page(json.loads(STORED.read_text()))


if __name__ == "__main__":
    store(Path(sys.argv[1]))
