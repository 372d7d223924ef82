"""How advantages lie, which states the gap filter keeps, and what training did to the steps."""

from __future__ import annotations

import numpy as np

from dapo_fast.report.charts import Chart, stacked_bar
from dapo_fast.report.markup import figure, legend, missing, paragraph, section, table
from dapo_fast.report.read import Iteration, Run
from dapo_fast.report.trees import BINS, GAP_BINS, REASONS, TreeSummary


def advantages_section(run: Run, trees: dict[int, TreeSummary]) -> str:
    """Histogram of advantages, the gap filter, and how far training moved each step."""
    intro = paragraph(
        "A candidate step's advantage Â is its Q minus the mean Q of its state's completions. Only states whose "
        "candidates differ by at least the gap are trained on, since elsewhere there is nothing to prefer; and, unless "
        "advantages.keep_all_wrong is set, only states from which some completion was right."
    )
    body = [_advantages_of(run, it, trees[it.number]) for it in run.rounds if it.number in trees]
    if not body:
        body = [missing("No trees have been collected yet.", run.command("collect", 1))]
    return section("advantages", "Advantages", intro, *body)


def _advantages_of(run: Run, iteration: Iteration, trees: TreeSummary) -> str:
    head = f"<h3>{iteration.name.capitalize()}</h3>" if len(run.rounds) > 1 else ""
    if not trees.fates:
        return head + missing(
            f"{trees.states:,} states collected; their advantages are not computed yet.",
            run.command("advantages", iteration.number),
        )
    note = "" if trees.finished else missing("The stage is not finished: these are its finished shards.")
    settings = run.config.at(iteration.number)
    figures = []
    if trees.pairs:
        figures.append(_histogram(iteration, trees))
    if trees.gaps.sum():
        figures.append(_gaps(iteration, trees, settings.advantages.gap))
    if len(trees.moves):
        figures.append(_moves(iteration, trees, _beta(iteration, settings.actor.beta)))
    if not trees.pairs:
        note += missing("No state passes the gap filter, so the actor has nothing to learn from in this iteration.")
    elif not len(trees.moves):
        note += missing("Log-probs before and after training are not there.", run.command("actor", iteration.number))
    return f'{head}{note}{_filter(trees)}<div class="figures">{"".join(figures)}</div>'


_FATE_KINDS = {
    "kept": "s0",
    "small": "s4 soft",
    "single": "gray",
    "wrong": "s1 soft",
    "right": "s3 soft",
    "empty": "pale",
}


def _filter(trees: TreeSummary) -> str:
    parts = [(REASONS[fate], float(trees.fates[fate]), _FATE_KINDS[fate]) for fate in REASONS if trees.fates.get(fate)]
    label = f"Of {trees.states:,} states: " + ", ".join(f"{name} {amount:,.0f}" for name, amount, _ in parts)
    amounts = [(kind, name, f"{amount:,.0f} ({amount / trees.states:.1%})") for name, amount, kind in parts]
    caption = (
        f"of {trees.states:,} states of {trees.problems:,} problems; {trees.pairs:,} pairs are trained on. "
        "A state that is not kept counts under the first reason that holds, in this order: one candidate only, all "
        "completions wrong, all right, gap too small."
    )
    return (
        f'<figure class="wide">{stacked_bar(label, parts)}{legend(amounts)}'
        f"<figcaption><b>What became</b> {caption}</figcaption></figure><p></p>"
    )


def histogram_chart(trees: TreeSummary) -> Chart:
    """Candidates of kept states by advantage, negative and positive in their colours."""
    counts = trees.advantages
    edges = [round(-1 + 2 * i / BINS, 3) for i in range(BINS + 1)]
    used = [i for i, n in enumerate(counts) if n]
    reach = max(abs(edges[used[0]]), abs(edges[used[-1] + 1])) if used else 1.0
    label = f"Histogram of {int(counts.sum()):,} advantages between {edges[used[0]]} and {edges[used[-1] + 1]}"
    chart = Chart(label, (-reach, reach), (0, float(counts.max())), "advantage Â", "candidate steps", height=270)
    for i in used:
        kind = "good" if edges[i] >= 0 else "bad"
        tip = f"Â {edges[i]:+.2f} to {edges[i + 1]:+.2f}: {counts[i]:,} steps"
        chart.bar(edges[i], edges[i + 1], 0, float(counts[i]), kind, tip)
    return chart


def _histogram(iteration: Iteration, trees: TreeSummary) -> str:
    edges = [-1 + 2 * i / BINS for i in range(BINS + 1)]
    rows = [[f"{edges[i]:+.2f} to {edges[i + 1]:+.2f}", f"{n:,}"] for i, n in enumerate(trees.advantages) if n]
    data = table(f"Advantages, {iteration.name}", ["Â", "steps"], rows)
    text = f"The {trees.pairs:,} candidate steps of kept states, by advantage."
    return figure(histogram_chart(trees).svg(), "Advantages.", text, data)


def gap_chart(trees: TreeSummary, threshold: float) -> Chart:
    """States by gap: kept ones in colour, the others grey on top of them."""
    counts = trees.gaps
    edges = [i / GAP_BINS for i in range(GAP_BINS + 1)]
    label = f"Histogram of the gaps of {int(counts.sum()):,} states; the filter is at {threshold:g}"
    chart = Chart(label, (0, 1), (0, float(counts.max())), "gap: max Â − min Â", "states", height=270)
    for i, (n, kept) in enumerate(zip(counts, trees.kept_gaps, strict=True)):
        tip = f"gap {edges[i]:.2f} to {edges[i + 1]:.2f}: {n:,} states, {kept:,} kept"
        for low, high, kind in ((0, kept, "s0"), (kept, n, "gray")):
            if high > low:
                chart.bar(edges[i], edges[i + 1], float(low), float(high), kind, tip)
    chart.line([(threshold, 0), (threshold, float(counts.max()))], "rule")
    chart.text(chart.x(threshold) + 5, chart.top + 8, f"filter: {threshold:g}", "quiet")
    return chart


def _gaps(iteration: Iteration, trees: TreeSummary, threshold: float) -> str:
    rows = [
        [f"{i / GAP_BINS:.2f} to {(i + 1) / GAP_BINS:.2f}", f"{n:,}", f"{trees.kept_gaps[i]:,}"]
        for i, n in enumerate(trees.gaps)
        if n
    ]
    data = table(f"Gaps, {iteration.name}", ["gap", "states", "kept"], rows)
    text = (
        "States with more than one candidate, by the distance of their best from their worst. Grey: dropped; beyond "
        "the filter, for having no right completion."
    )
    return figure(gap_chart(trees, threshold).svg(), "Gap filter.", text, data)


def moved(moves: np.ndarray) -> list[tuple[float, int, float, float, float]]:
    """(mean Â, pairs, quartiles of log π_after − log π_before) of pairs in up to twelve groups of equal size."""
    order = np.argsort(moves[:, 0], kind="stable")
    groups = np.array_split(moves[order], min(12, len(moves)))
    rows = []
    for group in groups:
        low, middle, high = np.quantile(group[:, 2] - group[:, 1], [0.25, 0.5, 0.75]).tolist()
        rows.append((float(group[:, 0].mean()), len(group), low, middle, high))
    return rows


def moves_chart(moves: np.ndarray) -> Chart:
    """Change of log-prob against advantage: median and quartiles of groups of equal size."""
    rows = moved(moves)
    lows, highs = [(r[0], r[2]) for r in rows], [(r[0], r[4]) for r in rows]
    span = (min(0.0, *(y for _, y in lows)), max(0.0, *(y for _, y in highs)))
    label = "Change of log-prob by advantage: " + "; ".join(f"Â {r[0]:+.2f}: {r[3]:+.2f}" for r in rows)
    chart = Chart(label, (rows[0][0], rows[-1][0]), span, "advantage Â", "change of log π(step), nats", height=270)
    chart.line([(rows[0][0], 0), (rows[-1][0], 0)], "rule")
    chart.band(lows, highs, "s2")
    chart.line([(r[0], r[3]) for r in rows], "s2")
    for r in rows:
        chart.dot(r[0], r[3], "s2", f"Â {r[0]:+.2f}, {r[1]} pairs: median {r[3]:+.2f} nats", 3.5)
    return chart


def _beta(iteration: Iteration, asked: float | str) -> float | None:
    """β of the actor that was trained; by rule it is known from its stage alone."""
    found = (iteration.stages["actor"].done or {}).get("beta", asked)
    return found if isinstance(found, (int, float)) else None


def _moves(iteration: Iteration, trees: TreeSummary, beta: float | None) -> str:
    rows = [[f"{r[0]:+.3f}", f"{r[1]:,}", f"{r[2]:+.2f}", f"{r[3]:+.2f}", f"{r[4]:+.2f}"] for r in moved(trees.moves)]
    data = table(f"Moves, {iteration.name}", ["mean Â", "pairs", "25%", "median", "75%"], rows)
    text = (
        f"How {len(trees.moves):,} trained pairs moved: median and quartiles of log π after − before, in groups of "
        "equal size. The loss pulls each towards Â/β" + (f", here {1 / beta:.3g} nats a unit of Â." if beta else ".")
    )
    return figure(moves_chart(trees.moves).svg(), "What training did.", text, data)
