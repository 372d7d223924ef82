"""How good the critic is on problems it was not trained on: reliability, ROC, Brier score, AUC."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dapo_fast.report.charts import Chart, number, thinned
from dapo_fast.report.markup import figure, missing, paragraph, section, table
from dapo_fast.report.read import Iteration, Run
from dapo_fast.report.trees import TreeSummary
from dapo_fast.statistics import wilson_interval

THIN = 10  # a bin of fewer states is not drawn


def critic_section(run: Run, trees: dict[int, TreeSummary]) -> str:
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
        [title, fixed(measured.get(key)), fixed(constant.get(key)), meaning]
        for key, title, meaning in (
            ("brier", "Brier score", "mean over completions of (V − reward)²; less is better"),
            ("auc", "AUC", "chance that a correct completion's state is valued above a wrong one's"),
            (
                "bce",
                "cross-entropy",
                f"soft-label, in nats; {fixed(measured.get('bce_floor'))} is the least possible",
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
    shrinkage = iteration.heldout.get("shrinkage")
    if shrinkage and shrinkage.get("curve"):
        figures.append(_shrinkage(iteration, shrinkage))
    return f'{head}<div class="figures">{"".join(figures)}</div>{numbers}'


def fixed(value: float | None) -> str:
    """Three decimals; a value that no file holds is "not recorded"."""
    return "not recorded" if value is None else f"{value:.3f}"


def _reliability(iteration: Iteration, caption: str, measured: dict[str, Any]) -> str:
    bins = measured.get("calibration") or []
    if not bins:
        return missing("The reliability curve is not recorded.")
    rows = [
        [f"{b['low']:.1f} to {b['high']:.1f}", f"{b['states']:,}", f"{b['predicted']:.3f}", f"{b['observed']:.3f}"]
        for b in bins
    ]
    data = table(f"Reliability, {iteration.name}", ["V", "states", "mean V", "share correct"], rows)
    if not thick(bins):
        return figure("", "Reliability.", f"No bin holds {THIN} states, which are too few to draw. {caption}", data)
    text = (
        f"What the critic says against what happened. {caption} A dot's area is its number of states, a bar its 95% "
        f"interval; bins of fewer than {THIN} states are in the table alone."
    )
    return figure(reliability_chart(bins).svg(), "Reliability.", text, data)


def thick(bins: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The bins of a calibration that hold enough states to say something."""
    return [b for b in bins if b["states"] >= THIN]


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
    bins = thick(bins)
    chart.line([(b["predicted"], b["observed"]) for b in bins], "s0")
    most = max((b["states"] for b in bins), default=1)
    for b in bins:
        # States, not completions: those of one state are alike.
        low, high = wilson_interval(b["observed"] * b["states"], b["states"])
        chart.interval(b["predicted"], low, high, "s0")
    for b in bins:
        tip = f"V {b['low']:.1f} to {b['high']:.1f}: {b['states']} states, {b['observed']:.1%} correct"
        chart.dot(b["predicted"], b["observed"], "s0", tip, 3 + 6 * math.sqrt(b["states"] / most))
    return chart


def _shrinkage(iteration: Iteration, shrinkage: dict[str, Any]) -> str:
    points = [(math.log2(k), height) for k, height in shrinkage["curve"]]
    best = max(height for _, height in points)
    # Far from the peak the curve falls without end; what matters is how flat the peak is.
    shown = [(x, max(height - best, -0.5)) for x, height in points]
    chart = Chart(
        f"Likelihood of k, highest at {number(shrinkage['k'])}",
        (shown[0][0], shown[-1][0]),
        (-0.5, 0.0),
        "log₂ k",
        "log-likelihood a state, below the best",
        width=350,
    )
    chart.line(shown, "s0")
    data = table(f"k, {iteration.name}", ["k", "log-likelihood a state"], [[f"{k:.3g}", f"{h:.4f}"] for k, h in
                 shrinkage["curve"]])  # fmt: skip
    text = (
        f"How many sampled outcomes the critic is worth: k = {number(shrinkage['k'])}, by the beta-binomial likelihood "
        f"of the completions of {shrinkage['states']:,} held-out states. Q is (right + k·V) / (n + k)."
    )
    return figure(chart.svg(), "Evidence.", text, data)


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
    label = f"ROC curve, AUC {fixed(auc)}"
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
    chart.line(thinned(points, 200), "s0")
    if auc is not None:
        chart.note(0.62, 0.3, f"AUC {auc:.3f}", "label s0")
    return chart
