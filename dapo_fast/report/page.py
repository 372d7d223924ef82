"""The page: what was read, put together into one file that needs no other."""

from __future__ import annotations

import json
import logging
from html import escape
from pathlib import Path
from typing import Any

import yaml

from dapo_fast.names import unresolved
from dapo_fast.published import published
from dapo_fast.report.accuracy import accuracy_section
from dapo_fast.report.advantages import advantages_section
from dapo_fast.report.compare import comparison, write_path
from dapo_fast.report.cost import cost_section, costs, duration
from dapo_fast.report.critic import critic_section
from dapo_fast.report.heldout import heldout_section
from dapo_fast.report.markup import asset, document, missing, paragraph, section
from dapo_fast.report.progress import progress_section
from dapo_fast.report.provenance import provenance_section
from dapo_fast.report.read import Run, read_run
from dapo_fast.report.steps import Tokenizers, steps_section
from dapo_fast.report.training import training_section
from dapo_fast.report.trees import TreeSummary, summarise
from dapo_fast.report.viewer import choose, tokenizer_of, trajectory

log = logging.getLogger("dapo_fast.report")

TRAJECTORIES = 24
_CANDIDATE_TREES = 64  # trees an iteration looks at for them

_NAV = {
    "provenance": "Provenance",
    "progress": "Where the run stands",
    "accuracy": "Accuracy",
    "heldout": "Held-out responses",
    "trajectories": "Trajectories",
    "steps": "Best and worst steps",
    "critic": "Critic",
    "advantages": "Advantages",
    "training": "Training",
    "cost": "Time and tokens",
    "settings": "Settings",
}


def write_report(run_path: str | Path) -> Path:
    """Write ``RUN/report.html`` and ``RUN/figures/*.png`` from what the run directory holds so far.

    Returns:
        The path of the page.

    Raises:
        InputError: not a run directory, or a file in it is corrupt; names the file.
    """
    with unresolved():
        return _write(read_run(run_path))


def write_comparison(first: str | Path, second: str | Path) -> Path:
    """Write a page of two runs side by side into the first of them. Returns its path; errors as ``write_report``."""
    with unresolved():
        runs = read_run(first), read_run(second)
        return _publish(write_path(runs), comparison(runs))


def _write(run: Run) -> Path:
    # Late: Matplotlib takes long to load, and every command that trains loads this module.
    from dapo_fast.report.figures import write_figures

    trees = {}
    for iteration in run.rounds:
        fraction = run.config.at(iteration.number).critic.heldout_fraction
        summary = summarise(iteration, _CANDIDATE_TREES, fraction)
        if summary is not None:
            trees[iteration.number] = summary
    target = _publish(run.path / "report.html", _page(run, trees))
    write_figures(run, trees)
    return target


def _publish(target: Path, page: str) -> Path:
    with published(target) as file:
        file.write(page.encode())
    log.info("report: %s", target)
    return target


def _page(run: Run, trees: dict[int, TreeSummary]) -> str:
    spent = costs(run)
    tokenizers = {number: tokenizer_of(run, number) for number in trees}
    body = {
        "provenance": provenance_section(run),
        "progress": progress_section(run),
        "accuracy": accuracy_section(run, trees),
        "heldout": heldout_section(run),
        "trajectories": _trajectories(run, trees, tokenizers),
        "steps": steps_section(run, trees, tokenizers),
        "critic": critic_section(run, trees),
        "advantages": advantages_section(run, trees),
        "training": training_section(run),
        "cost": cost_section(spent),
        "settings": _settings(run),
    }
    links = "".join(f'<li><a href="#{anchor}">{_NAV[anchor]}</a></li>' for anchor, html in body.items() if html)
    title = run.path.resolve().name
    head = f"""<p class="kicker">dapo-fast run report</p>
<h1>{escape(title)}</h1>
<p class="lede">{escape(_lede(run))}</p>
<dl class="tiles">{_tiles(run, trees, sum(c.seconds or 0 for c in spent))}</dl>
<nav class="toc" aria-label="Sections"><ul>{links}</ul></nav>"""
    return document(title, head, "".join(body.values()), asset("viewer.js"))


def _lede(run: Run) -> str:
    config = run.config
    given = config.data.problems
    what = config.data.task or (given if isinstance(given, str) else " and ".join(s.path for s in given or ()))
    path = config.model.path
    model = "a small model trained from scratch" if path is None else Path(path).name.partition("@")[0]
    text = f"Direct advantage policy optimization of {model} on {what}"
    mode, start, best, at = _gain(run)
    if start is None:
        return text + ". No policy has been evaluated yet."
    if best is None:
        return f"{text}: {mode} accuracy {start['accuracy']:.1%} on held-out problems before training."
    after = "one iteration" if at == 1 else f"{at} iterations"
    overlap = best["low"] <= start["high"] and start["low"] <= best["high"]
    doubt = "; the 95% intervals overlap" if overlap else ""
    return (
        f"{text}: {mode} accuracy on held-out problems went from {start['accuracy']:.1%} to {best['accuracy']:.1%} "
        f"in {after}{doubt}."
    )


def _gain(run: Run) -> tuple[str, dict[str, Any] | None, dict[str, Any] | None, int]:
    """(mode, base, last accepted, its iteration), by sampled accuracy where it was measured."""
    base = run.iterations[0].measured or {}
    mode = "sampled" if "sampled" in base else "greedy"
    best, at = None, 0
    for iteration in run.rounds:
        accepted = iteration.decision is None or iteration.decision.get("accepted", True)
        if iteration.measured and accepted:
            best, at = iteration.measured.get(mode), iteration.number
    return mode, base.get(mode), best, at


def _tiles(run: Run, trees: dict[int, TreeSummary], seconds: float) -> str:
    mode, start, best, at = _gain(run)
    tiles = []
    if start:
        tiles.append((f"{mode} accuracy, base", f"{start['accuracy']:.1%}"))
    if best:
        tiles.append((f"{mode} accuracy, iteration {at}", f"{best['accuracy']:.1%}"))
    if trees:
        tiles.append(("problems", f"{sum(t.problems for t in trees.values()):,}"))
        tiles.append(("states valued", f"{sum(t.states for t in trees.values()):,}"))
        tiles.append(("state-action pairs trained on", f"{sum(t.pairs for t in trees.values()):,}"))
    if seconds:
        tiles.append(("recorded time", duration(seconds)))
    return "".join(f"<div><dd>{escape(value)}</dd><dt>{escape(name)}</dt></div>" for name, value in tiles)


def _trajectories(run: Run, trees: dict[int, TreeSummary], tokenizers: Tokenizers) -> str:
    if not trees:
        return section(
            "trajectories", "Trajectories", missing("No trees have been collected yet.", run.command("collect", 1))
        )
    notes, data = [], []
    for number, tokenizer in tokenizers.items():
        if tokenizer is None:
            looked = ", ".join(str(path) for path in run.policy_directories(number))
            notes.append(missing(f"Iteration {number}: no tokenizer in {looked}, so its responses cannot be shown."))
    for iteration, tree, trunk in choose(trees, TRAJECTORIES):
        tokenizer = tokenizers[iteration]
        if tokenizer is not None:
            data.append(trajectory(iteration, tree, trunk, tokenizer))
    data.sort(key=lambda row: -row["missed"])  # the page opens on the first
    if not any(summary.fates for summary in trees.values()):
        notes.append(missing("Values and advantages are not there yet.", run.command("advantages", max(trees))))
    if not data:
        return section("trajectories", "Trajectories", *notes, missing("No response was kept."))
    iterations = sorted({row["iteration"] for row in data})
    template = asset("viewer.html")
    options = "".join(f'<option value="{i}">{i}</option>' for i in iterations)
    html = template.replace("<!--iterations-->", options).replace("<!--data-->", script_json(data))
    return section("trajectories", "Trajectories", *notes, html)


def script_json(data: Any) -> str:
    """JSON that is safe inside a script element, whatever text it holds: nothing in it can end the element."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _settings(run: Run) -> str:
    """The settings in force, whole."""
    text = yaml.safe_dump(json.loads(run.config.model_dump_json()), sort_keys=False)
    changed = run.config.model_dump(mode="json", exclude_defaults=True)
    short = yaml.safe_dump(changed, sort_keys=False, default_flow_style=None, width=100) if changed else "all defaults"
    body = (
        f'<pre class="config">{escape(short)}</pre><details class="data"><summary>Every setting</summary>'
        f'<pre class="config">{escape(text)}</pre></details>'
    )
    return section("settings", "Settings", paragraph("What differs from the defaults:"), body)
