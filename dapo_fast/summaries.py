"""What a command prints at its end."""

from __future__ import annotations

from typing import Any


def results_table(rows: list[dict]) -> str:
    """Held-out accuracy before and after each iteration, with 95% Wilson intervals, as text."""
    lines = [f"{'policy':<14} {'greedy':<24} {'sampled':<24} {'pairs':>7}  note"]
    for row in rows:
        name = "base" if row["iteration"] == 0 else f"iteration {row['iteration']}"
        pairs = row.get("advantages", {}).get("pairs", "")
        note = (
            ""
            if row.get("accepted", True)
            else "no state with contrast: nothing trained"
            if row.get("stopped")
            else "worse: previous policy kept"
        )
        lines.append(
            f"{name:<14} {_accuracy(row.get('greedy')):<24} {_accuracy(row.get('sampled')):<24} {pairs:>7}  {note}"
        )
    return "\n".join(line.rstrip() for line in lines)


def summary(command: str, result: dict) -> str:
    """Plain numbers of a result on a line; accuracies as a table."""
    if "greedy" in result:
        table = results_table([{"iteration": 0, **result}]).replace("base ", "model")
        return "\n".join([table, *_chosen(result.get("chosen", {}))])
    pieces = [f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in result.items() if _plain(v)]
    return f"{command}: " + " ".join(pieces)


def _chosen(chosen: dict[str, Any]) -> list[str]:
    names = {"best_of": "best by the critic", "majority": "majority", "weighted": "majority weighted by the critic"}
    names["beam"] = "steps by the critic (beams)"
    known = {rule: name for rule, name in names.items() if rule in chosen}
    return [f"of {chosen['samples']}, {name:<31} {_accuracy(chosen[rule])}" for rule, name in known.items()]


def _accuracy(value: dict[str, Any] | None) -> str:
    if not value:
        return "not measured"
    return f"{value['accuracy']:6.1%} [{value['low']:.1%}, {value['high']:.1%}]"


def _plain(value: object) -> bool:
    return isinstance(value, (int, float, str)) and not isinstance(value, bool)
