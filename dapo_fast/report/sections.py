"""The sections of the page, one function each: from what was read to HTML, or to a line that says what is missing."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
import yaml

from dapo_fast.report.charts import Chart, number, percent, stacked_bar
from dapo_fast.report.cost import StageCost, duration
from dapo_fast.report.markup import figure, legend, missing, paragraph, section, table
from dapo_fast.report.read import Iteration, Run, Stage
from dapo_fast.report.trees import BINS, GAP_BINS, REASONS, TreeSummary

MODES = {"greedy": "s0", "sampled": "s1"}


def interval(value: dict[str, Any] | None) -> str:
    """An accuracy with its 95% Wilson interval, as the evaluation wrote it."""
    if not value:
        return "not measured"
    return f"{value['accuracy']:.1%} [{value['low']:.1%}, {value['high']:.1%}]"


# Accuracy ------------------------------------------------------------------------------------------------------


def accuracy(run: Run, trees: dict[int, TreeSummary]) -> str:
    """Accuracy by iteration: the plot, the results table, and what was accepted and why."""
    intro = paragraph(
        "Held-out accuracy of the policy before training and after each iteration of Algorithm 1, with 95% Wilson "
        "intervals. Greedy takes the likeliest token everywhere; sampled draws at the training temperature, and is the "
        "quantity that the objective is about."
    )
    rows = []
    for iteration in run.iterations:
        measured = iteration.measured or {}
        counts = trees.get(iteration.number)
        states = f"{counts.fates.get('kept', 0):,} of {counts.states:,}" if counts and counts.fates else "–"
        pairs = f"{counts.pairs:,}" if counts and counts.fates else "–"
        row = [iteration.name, *(interval(measured.get(mode)) for mode in MODES)]
        rows.append([*row, states, pairs, verdict(iteration)])
    head = ["policy", "greedy", "sampled", "states kept", "pairs", "accepted?"]
    results = table("Results by iteration", head, rows, wide=[5])
    chart = accuracy_chart(run)
    if chart is None:
        return section(
            "accuracy",
            "Accuracy",
            intro,
            missing("No policy has been evaluated yet.", run.command("evaluate", 0) + " --iteration 0"),
            results,
        )
    drawing = figure(chart.svg(), "Accuracy by iteration.", "Bars are 95% intervals; a hollow point was rejected.")
    notes = [
        missing(f"{iteration.name.capitalize()} has not been evaluated.", run.command("evaluate", iteration.number))
        for iteration in run.rounds
        if iteration.measured is None and iteration.stages["actor"].done is not None
    ]
    return section("accuracy", "Accuracy", intro, drawing, "<h3>Results</h3>", results, *notes)


def verdict(iteration: Iteration) -> str:
    """Whether an iteration's policy was accepted, and why."""
    if iteration.number == 0:
        return "where it starts"
    if iteration.stopped:
        return f"stopped: {iteration.stopped}"
    if iteration.decision is None:
        return "undecided: the iteration has not finished"
    word = "accepted" if iteration.decision.get("accepted") else "rejected"
    reason = iteration.decision.get("reason")
    return f"{word}: {reason}" if reason else word


def accuracy_chart(run: Run) -> Chart | None:
    """Greedy and sampled accuracy with intervals against the iteration; None without a measurement."""
    series = {
        mode: [(it.number, it.measured[mode], _rejected(it)) for it in run.iterations if (it.measured or {}).get(mode)]
        for mode in MODES
    }
    points = [value for rows in series.values() for _, value, _ in rows]
    if not points:
        return None
    low, high = min(v["low"] for v in points), max(v["high"] for v in points)
    low, high = max(0.0, math.floor(low * 10) / 10), min(1.0, math.ceil(high * 10) / 10)
    last = max(it.number for it in run.iterations)
    label = "Accuracy by iteration. " + "; ".join(
        f"{mode}: " + ", ".join(f"{'base' if i == 0 else i} {interval(value)}" for i, value, _ in rows)
        for mode, rows in series.items()
        if rows
    )
    chart = Chart(
        label,
        (-0.25, last + 0.25),
        (low, high),
        y_title="held-out accuracy",
        width=560,
        height=290,
        right=78,
        x_ticks=range(last + 1),
        x_format=lambda i: "base" if i == 0 else f"iteration {i:.0f}",
        y_format=percent,
    )
    ends = []
    for (mode, kind), shift in zip(MODES.items(), (-0.02, 0.02)):
        rows = series[mode]
        chart.line([(i + shift, v["accuracy"]) for i, v, rejected in rows if not rejected], kind)
        for i, value, rejected in rows:
            if rejected:
                before = [(j, v) for j, v, other in rows if j < i and not other][-1:]
                chart.line(
                    [(j + shift, v["accuracy"]) for j, v in before] + [(i + shift, value["accuracy"])], f"{kind} dash"
                )
            chart.interval(i + shift, value["low"], value["high"], kind)
            tip = f"{mode}, {'base' if i == 0 else f'iteration {i}'}: {interval(value)}"
            chart.dot(i + shift, value["accuracy"], f"{kind} open" if rejected else kind, tip)
        if rows:
            i, value, _ = rows[-1]
            ends.append((chart.y(value["accuracy"]), chart.x(i) + 12, mode, value, kind))
    _end_labels(chart, [(y, x, f"{mode} {value['accuracy']:.1%}", kind) for y, x, mode, value, kind in ends])
    return chart


def _rejected(iteration: Iteration) -> bool:
    return iteration.decision is not None and not iteration.decision.get("accepted", True)


def _end_labels(chart: Chart, labels: Sequence[tuple[float, float, str, str]], space: float = 15.0) -> None:
    """Labels at the ends of lines, moved apart where they would overlap."""
    y_before = -math.inf
    for y, x, text, kind in sorted(labels):
        y_before = max(y, y_before + space)
        chart.text(x, y_before + 4, text, f"label {kind}")


# Where the run stands ------------------------------------------------------------------------------------------


def progress(run: Run) -> str:
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


# Critic --------------------------------------------------------------------------------------------------------


def critic(run: Run, trees: dict[int, TreeSummary]) -> str:
    """Reliability and ROC of each iteration's critic on problems it was not trained on."""
    intro = paragraph(
        "The critic V(s) predicts the chance that the policy, continued from state s, ends correct. It is measured on "
        "states of problems held out of its training, against what their completions came to."
    )
    body = []
    for iteration in run.rounds:
        if run.config.at(iteration.number).advantages.source != "critic":
            body.append(missing(f"{iteration.name.capitalize()} took its advantages without a critic."))
        else:
            body.append(_critic_of(run, iteration, trees.get(iteration.number)))
    if not body:
        body = [missing("No critic has been trained yet.", run.command("critic", 1))]
    return section("critic", "Critic", intro, *body)


def _critic_of(run: Run, iteration: Iteration, trees: TreeSummary | None) -> str:
    measured = (iteration.heldout or {}).get("critic")
    head = f"<h3>{iteration.name.capitalize()}</h3>" if len(run.rounds) > 1 else ""
    if iteration.heldout is None:
        return head + missing("The critic has not been measured yet.", run.command("critic", iteration.number))
    if not measured:
        fraction = run.config.at(iteration.number).critic.heldout_fraction
        return head + missing(
            f"No state was held out (critic.heldout_fraction {fraction:g}, "
            f"{iteration.heldout.get('problems', 0)} held-out problems), so the critic's quality is not measured."
        )
    constant = iteration.heldout.get("constant") or {}
    rows = [
        [title, _number(measured.get(key)), _number(constant.get(key)), meaning]
        for key, title, meaning in (
            ("brier", "Brier score", "mean over completions of (V − reward)²; less is better"),
            ("auc", "AUC", "chance that a correct completion's state is valued above a wrong one's"),
            (
                "bce",
                "cross-entropy",
                f"soft-label, in nats; {_number(measured.get('bce_floor'))} is the least possible",
            ),
            ("squared_error", "squared error", "mean over states of (V − MC)²"),
            ("calibration_error", "calibration error", "mean distance of the dots from the diagonal, by completions"),
        )
        if measured.get(key) is not None or key in ("brier", "auc")
    ]
    states = iteration.heldout.get("states", 0)
    caption = f"{states:,} held-out states of {iteration.heldout.get('problems', 0):,} problems."
    numbers = table(
        f"Critic of {iteration.name} on {caption}", ["measure", "critic", "always the mean", "meaning"], rows, wide=[3]
    )
    figures = [_reliability(iteration, caption, measured), _roc(run, iteration, trees, measured)]
    return f'{head}<div class="figures">{"".join(figures)}</div>{numbers}'


def _number(value: float | None) -> str:
    return "not recorded" if value is None else f"{value:.3f}"


def _reliability(iteration: Iteration, caption: str, measured: dict[str, Any]) -> str:
    bins = measured.get("calibration") or []
    if not bins:
        return missing("The reliability curve is not recorded.")
    chart = reliability_chart(bins)
    rows = [
        [f"{b['low']:.1f} to {b['high']:.1f}", f"{b['states']:,}", f"{b['predicted']:.3f}", f"{b['observed']:.3f}"]
        for b in bins
    ]
    data = table(f"Reliability, {iteration.name}", ["V", "states", "mean V", "share correct"], rows)
    text = f"What the critic says against what happened. {caption} A dot's area is its number of states."
    return figure(chart.svg(), "Reliability.", text, data)


def reliability_chart(bins: Sequence[dict[str, Any]]) -> Chart:
    """Share of correct completions against mean V, a dot a bin, with the diagonal."""
    label = "Reliability: " + "; ".join(f"V {b['predicted']:.2f}, correct {b['observed']:.2f}" for b in bins)
    ticks = [0, 0.25, 0.5, 0.75, 1]
    chart = Chart(
        label,
        (0, 1),
        (0, 1),
        "predicted: mean V",
        "observed: share of completions correct",
        width=350,
        x_ticks=ticks,
        y_ticks=ticks,
        square=True,
    )
    chart.line([(0, 0), (1, 1)], "rule")
    chart.line([(b["predicted"], b["observed"]) for b in bins], "s0")
    most = max(b["states"] for b in bins)
    for b in bins:
        tip = f"V {b['low']:.1f} to {b['high']:.1f}: {b['states']} states, {b['observed']:.1%} correct"
        chart.dot(b["predicted"], b["observed"], "s0", tip, 3 + 6 * math.sqrt(b["states"] / most))
    return chart


def roc_points(heldout: np.ndarray) -> list[tuple[float, float]]:
    """(false, true) positive rates of "correct if V is at least …", a completion a case.

    Args:
        heldout: (states, 3) V, correct completions, completions.
    """
    order = np.argsort(-heldout[:, 0], kind="stable")
    values, right, total = heldout[order].T
    wrong = total - right
    if not right.sum() or not wrong.sum():
        return []
    last_of_level = np.append(values[1:] != values[:-1], True)
    true = np.cumsum(right)[last_of_level] / right.sum()
    false = np.cumsum(wrong)[last_of_level] / wrong.sum()
    return [(0.0, 0.0), *zip(false.tolist(), true.tolist())]


def _roc(run: Run, iteration: Iteration, trees: TreeSummary | None, measured: dict[str, Any]) -> str:
    points = roc_points(trees.heldout) if trees is not None and len(trees.heldout) else []
    if not points:
        if trees is not None and len(trees.heldout):
            return missing("All held-out completions agree, so there is no ROC curve.")
        return missing(
            "The ROC curve needs the critic's values in the trees.", run.command("advantages", iteration.number)
        )
    chart = roc_chart(points, measured.get("auc"))
    shown = points[:: max(1, len(points) // 20)]
    rows = [[f"{x:.3f}", f"{y:.3f}"] for x, y in shown]
    data = table(f"ROC, {iteration.name}", ["false positive rate", "true positive rate"], rows)
    text = "How well V tells completions that end correct from those that do not, over every threshold on V."
    return figure(chart.svg(), "ROC.", text, data)


def roc_chart(points: Sequence[tuple[float, float]], auc: float | None) -> Chart:
    """True against false positive rate, with the diagonal."""
    ticks = [0, 0.25, 0.5, 0.75, 1]
    label = f"ROC curve, AUC {_number(auc)}"
    chart = Chart(
        label,
        (0, 1),
        (0, 1),
        "false positive rate",
        "true positive rate",
        width=350,
        x_ticks=ticks,
        y_ticks=ticks,
        square=True,
    )
    chart.line([(0, 0), (1, 1)], "rule")
    chart.line(_thinned(points, 200), "s0")
    if auc is not None:
        chart.note(0.62, 0.3, f"AUC {auc:.3f}", "label s0")
    return chart


# Advantages ----------------------------------------------------------------------------------------------------


def advantages(run: Run, trees: dict[int, TreeSummary]) -> str:
    """Histogram of advantages, the gap filter, and how far training moved each step."""
    intro = paragraph(
        "A candidate step's advantage Â is its Q minus the mean Q of its state's completions. Only states whose "
        "candidates differ by at least the gap are trained on: elsewhere there is nothing to prefer."
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
        figures.append(_moves(iteration, trees, settings.actor.beta))
    if not trees.pairs:
        note += missing("No state passes the gap filter, so the actor has nothing to learn from in this iteration.")
    elif not len(trees.moves):
        note += missing("Log-probs before and after training are not there.", run.command("actor", iteration.number))
    return f'{head}{note}{_filter(trees)}<div class="figures">{"".join(figures)}</div>'


_FATE_KINDS = {"kept": "s0", "small": "s4", "single": "gray", "wrong": "bad", "right": "s3", "empty": "pale"}


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
    """States by gap, those below the threshold grey."""
    counts = trees.gaps
    edges = [i / GAP_BINS for i in range(GAP_BINS + 1)]
    label = f"Histogram of the gaps of {int(counts.sum()):,} states; the filter is at {threshold:g}"
    chart = Chart(label, (0, 1), (0, float(counts.max())), "gap: max Â − min Â", "states", height=270)
    for i, n in enumerate(counts):
        if n:
            kind = "gray" if edges[i + 1] <= threshold + 1e-9 else "s0"
            chart.bar(
                edges[i], edges[i + 1], 0, float(n), kind, f"gap {edges[i]:.2f} to {edges[i + 1]:.2f}: {n:,} states"
            )
    chart.line([(threshold, 0), (threshold, float(counts.max()))], "rule")
    chart.text(chart.x(threshold) + 5, chart.top + 8, f"kept from {threshold:g} on", "quiet")
    return chart


def _gaps(iteration: Iteration, trees: TreeSummary, threshold: float) -> str:
    rows = [[f"{i / GAP_BINS:.2f} to {(i + 1) / GAP_BINS:.2f}", f"{n:,}"] for i, n in enumerate(trees.gaps) if n]
    data = table(f"Gaps, {iteration.name}", ["gap", "states"], rows)
    text = "States with more than one candidate, by the distance of their best from their worst."
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


def _moves(iteration: Iteration, trees: TreeSummary, beta: float) -> str:
    rows = [[f"{r[0]:+.3f}", f"{r[1]:,}", f"{r[2]:+.2f}", f"{r[3]:+.2f}", f"{r[4]:+.2f}"] for r in moved(trees.moves)]
    data = table(f"Moves, {iteration.name}", ["mean Â", "pairs", "25%", "median", "75%"], rows)
    text = (
        f"How {len(trees.moves):,} trained pairs moved: median and quartiles of log π after − before, in groups of "
        f"equal size. The loss pulls each towards Â/β, here {1 / beta:g} nats a unit of Â."
    )
    return figure(moves_chart(trees.moves).svg(), "What training did.", text, data)


# Training ------------------------------------------------------------------------------------------------------

CURVES = {
    "sft": [
        ("loss", "loss", "cross-entropy, nats a response token"),
        ("response_probability", "probability of a response", "mean over the batch"),
        ("grad_norm", "gradient norm", "before clipping"),
    ],
    "critic": [
        ("loss", "loss", "soft-label cross-entropy, nats"),
        ("squared_error", "squared error", "(V − MC)², mean over the batch"),
        ("grad_norm", "gradient norm", "before clipping"),
    ],
    "actor": [
        ("loss", "loss", "½(Â/β − u)², nats²"),
        ("kl_reference", "KL to the reference", "a step, nats"),
        ("explained", "residual explained", "1 − loss ⁄ loss at the reference"),
        ("same_sign", "moved the right way", "share of pairs with sign(u) = sign(Â)"),
        ("grad_norm", "gradient norm", "before clipping"),
    ],
}
_TITLES = {"sft": "Supervised start", "critic": "Critic", "actor": "Actor"}


def training(run: Run) -> str:
    """Curves of every stage that trains, iterations over each other."""
    intro = paragraph(
        "One point an optimizer step, faint; the line is a moving average. Targets of Â/β are far out of reach, so the "
        "actor's loss says little about the policy: look at the accuracy."
    )
    body = []
    for name, curves in CURVES.items():
        stages = [run.sft] if name == "sft" else [it.stages[name] for it in run.rounds]
        stages = [stage for stage in stages if stage.metrics]
        if name == "sft" and not run.has_sft:
            continue
        body.append(f"<h3>{_TITLES[name]}</h3>")
        if not stages:
            body.append(missing("No optimizer step yet.", run.command(name, 0 if name == "sft" else 1)))
            continue
        drawn = [_curve(name, stages, *curve) for curve in curves]
        absent = [title for (_, title, _), text in zip(curves, drawn) if not text]
        body.append(f'<div class="figures small">{"".join(drawn)}</div>')
        if absent:
            body.append(missing(f"Not recorded in metrics.jsonl: {', '.join(absent)}."))
    return section("training", "Training", intro, *body)


def _curve(name: str, stages: Sequence[Stage], key: str, title: str, unit: str) -> str:
    chart = curve_chart(name, stages, key, title)
    if chart is None:
        return ""
    rows = []
    for stage in stages:
        values = [row[key] for row in stage.metrics if _finite(row.get(key))]
        if values:
            tail = values[-max(1, len(values) // 10) :]
            cells = [values[0], values[-1], sum(tail) / len(tail), min(values), max(values)]
            name_of = f"iteration {stage.iteration}" if stage.iteration else "start"
            rows.append([name_of, f"{len(values):,}", *(number(v) for v in cells)])
    head = ["", "steps", "first", "last", "mean of last tenth", "least", "most"]
    return figure(chart.svg(), title + ",", unit, table(f"{_TITLES[name]}: {title}", head, rows))


def curve_chart(name: str, stages: Sequence[Stage], key: str, title: str) -> Chart | None:
    """One quantity against the optimizer step, a line an iteration; None where it was not recorded."""
    series = []
    for stage in stages:
        points = [(float(row["step"]), float(row[key])) for row in stage.metrics if _finite(row.get(key))]
        if points:
            series.append((stage, points))
    if not series:
        return None
    smooth = [(stage, points, moving_average(points)) for stage, points in series]
    values = np.array([y for _, points in series for _, y in points])
    # A few early spikes would flatten the rest: they may leave the frame, and the table has them.
    low, high = float(values.min()), float(np.quantile(values, 0.995) if len(values) > 40 else values.max())
    low, high = min(low, *(y for *_, s in smooth for _, y in s)), max(high, *(y for *_, s in smooth for _, y in s))
    if low > 0 and low < 0.5 * high:
        low = 0.0
    last = max(points[-1][0] for _, points in series)
    ends = ", ".join(f"{_short(stage)} {points[0][1]:.4g} to {points[-1][1]:.4g}" for stage, points in series)
    several = len(series) > 1
    chart = Chart(
        f"{_TITLES[name]}: {title} by optimizer step; {ends}",
        (0, last),
        (low, high),
        "optimizer step",
        width=300,
        height=190,
        x_ticks=[t for t in (0, last / 2, last) if t == int(t)],
        right=48 if several else 14,
    )
    ends_at = []
    for stage, points, line in smooth:
        kind = f"s{(stage.iteration - 1) % 6}" if several else "s0"
        inside = [(x, min(y, high)) for x, y in _thinned(points, 300)]
        if len(points) > 20:
            chart.line(inside, f"{kind} faint")
        chart.line(_thinned(line, 300), kind)
        if several:
            ends_at.append((chart.y(line[-1][1]), chart.x(line[-1][0]) + 6, f"iter {stage.iteration}", kind))
    _end_labels(chart, ends_at, space=13)
    return chart


def _short(stage: Stage) -> str:
    return f"iteration {stage.iteration}:" if stage.iteration else ""


def _finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def moving_average(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Centred means over a tenth of the steps, at most 51; narrower at the ends, so that these stay in place."""
    half = min(25, len(points) // 20)
    values = np.array([y for _, y in points])
    sums = np.concatenate([[0.0], np.cumsum(values)])
    line = []
    for i, (x, _) in enumerate(points):
        reach = min(half, i, len(points) - 1 - i)
        line.append((x, float(sums[i + reach + 1] - sums[i - reach]) / (2 * reach + 1)))
    return line


def _thinned(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    if len(points) <= most:
        return list(points)
    kept = np.unique(np.linspace(0, len(points) - 1, most).round().astype(int))
    return [points[i] for i in kept]


# Cost ----------------------------------------------------------------------------------------------------------


def cost(costs: Sequence[StageCost]) -> str:
    """Where time and tokens went, a stage at a time; a quantity that no file holds is "not recorded"."""
    intro = paragraph(
        "Seconds and tokens as the stages wrote them down. Training counts the tokens it read, trees packed, once an "
        "optimizer step; sampling counts the tokens it generated."
    )
    if not costs:
        return section("cost", "Time and tokens", intro, missing("No stage has finished yet."))
    rows = [[c.name, duration(c.seconds), _count(c.generated), _count(c.trained), _rate(c)] for c in costs]
    seconds, generated, trained = (
        sum(getattr(c, key) or 0 for c in costs) for key in ("seconds", "generated", "trained")
    )
    if len(costs) > 1:
        rows.append(["total of what is recorded", duration(seconds or None), _count(generated), _count(trained), ""])
    head = ["stage", "time", "tokens generated", "tokens trained on", "tokens a second"]
    parts = []
    for title, key, form in (
        ("Time", "seconds", duration),
        ("Tokens generated", "generated", _count),
        ("Tokens trained on", "trained", _count),
    ):
        known = [(c.name, float(getattr(c, key)), c.kind) for c in costs if getattr(c, key)]
        if known:
            label = f"{title}: " + ", ".join(f"{name} {form(value)}" for name, value, _ in known)
            entries = [(kind, name, form(value)) for name, value, kind in known]
            parts.append(f"<h3>{title}</h3><figure>{stacked_bar(label, known)}{legend(entries)}</figure>")
    return section("cost", "Time and tokens", intro, *parts, "<h3>By stage</h3>", table("Cost by stage", head, rows))


def _count(value: float | None) -> str:
    return "not recorded" if value is None else f"{value:,.0f}"


def _rate(cost: StageCost) -> str:
    tokens = cost.generated or cost.trained
    return f"{tokens / cost.seconds:,.0f}" if tokens and cost.seconds else "not recorded"


# Settings ------------------------------------------------------------------------------------------------------


def settings(run: Run) -> str:
    """The settings in force, whole."""
    text = yaml.safe_dump(json.loads(run.config.model_dump_json()), sort_keys=False)
    changed = run.config.model_dump(mode="json", exclude_defaults=True)
    short = yaml.safe_dump(changed, sort_keys=False, default_flow_style=None, width=100) if changed else "all defaults"
    body = (
        f'<pre class="config">{escape(short)}</pre><details class="data"><summary>Every setting</summary>'
        f'<pre class="config">{escape(text)}</pre></details>'
    )
    return section("settings", "Settings", paragraph("What differs from the paper's settings, the defaults:"), body)
