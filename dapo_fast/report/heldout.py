"""Held-out responses, right ones and wrong ones, with what the critic said of each step."""

from __future__ import annotations

from html import escape
from typing import Any

from dapo_fast.report.markup import missing, paragraph, section, table
from dapo_fast.report.read import Run
from dapo_fast.rundir import read_state
from dapo_fast.state import ValuedResponses


def heldout_section(run: Run) -> str:
    """Those of the newest policy whose responses a critic has valued; empty where no policy was measured."""
    measured = [iteration for iteration in reversed(run.iterations) if iteration.measured]
    if not measured:
        return ""
    for iteration in measured:
        path = iteration.stages["evaluate"].path / "steps.json"
        if path.exists():
            found = read_state(path, ValuedResponses)
            break
    else:
        command = run.command("evaluate", measured[0].number) + f" --critic {run.path}/iter1/critic/model"
        none = missing("No critic has valued responses to held-out problems (evaluate.samples above 0).", command)
        return section("heldout", "Held-out responses", none)
    when = f"after {iteration.name}" if iteration.number else "before training"
    intro = paragraph(
        f"Sampled responses of the policy {when} to problems that nothing was trained on: the first right and first "
        f"wrong ones. V is the chance of ending right that the critic ({found['critic']}) sees before and after each "
        "step; it says nothing of the end, which the reward decides."
    )
    return section("heldout", "Held-out responses", intro, *map(_response, found["responses"]))


def _response(row: dict[str, Any]) -> str:
    verdict = "right" if row["reward"] > 0.5 else "wrong"
    part = f", reward {row['reward']:.2f}" if 0 < row["reward"] < 1 else ""
    rows = [
        [str(number), step["text"].rstrip("\n"), f"{step['before']:.2f}", *_after(step)]
        for number, step in enumerate(row["steps"], 1)
    ]
    steps = table(f"Held-out {row['id']}, {verdict}", ["", "step", "V before", "V after", "change"], rows, wide=[1])
    asked = f'<p class="prompt">{escape(row["prompt"])}</p>'
    return (
        f"<h3>Problem {escape(row['id'])}: {verdict}{part}; expected {escape(row['answer'] or '–')}</h3>{asked}{steps}"
    )


def _after(step: dict[str, Any]) -> list[str]:
    if step["after"] is None:
        return ["–", "–"]
    return [f"{step['after']:.2f}", f"{step['after'] - step['before']:+.2f}"]
