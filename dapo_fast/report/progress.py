"""Which stages of a run have finished, for one that is in flight."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from dapo_fast.report.markup import missing, paragraph, section
from dapo_fast.report.read import Run, Stage


def progress_section(run: Run) -> str:
    """Which stages have run; empty when everything asked for has."""
    stages = [run.sft] if run.has_sft else []
    known = {iteration.number: iteration for iteration in run.iterations}
    lines = []
    complete = True
    for index in range(run.config.iterations + 1):
        iteration = known.get(index)
        of_iteration = list(iteration.stages.values()) if iteration else []
        if index == 0:
            of_iteration = [*stages, *(stage for stage in of_iteration if stage.name == "evaluate")]
        if run.config.at(max(1, index)).advantages.source != "critic":
            of_iteration = [stage for stage in of_iteration if stage.name != "critic"]
        ended = bool(iteration and iteration.stopped)
        complete = complete and (ended or (bool(of_iteration) and all(stage.done for stage in of_iteration)))
        lines.append((("base" if index == 0 else f"iteration {index}"), of_iteration))
        if ended:
            break
    if complete:
        return ""
    rows = "".join(f"<h3>{name}</h3>{_chips(of_iteration)}" for name, of_iteration in lines)
    intro = paragraph("This run is not finished; the sections below show what there is. To go on where it stands:")
    resume = f"<p><code>{escape(run.command('run'))}</code></p>"
    return section("progress", "Where the run stands", intro, resume, rows)


def _chips(stages: Sequence[Stage]) -> str:
    if not stages:
        return missing("Not started.")
    words = {"done": "✓ {} done", "now": "{} unfinished", "": "{} not run"}
    items = []
    for stage in stages:
        kind = "done" if stage.done else ("now" if stage.started else "")
        items.append(f'<li class="{kind}">{words[kind].format(stage.name)}</li>')
    return f'<ol class="stages">{"".join(items)}</ol>'
