"""Tables of a pretrained model's study (one seed): accuracy and its changes, what stages cost, where signal was."""

from __future__ import annotations

from dapo_fast.report.cost import duration

from .tables import Rows, markdown


def _percent(value: dict) -> str:
    return f"{100 * value['accuracy']:.1f} [{100 * value['low']:.1f}, {100 * value['high']:.1f}]"


def _change(row: dict, mode: str) -> str:
    if "change" not in row:
        return ""
    change = row["change"][mode]
    text = f"{100 * change['mean']:+.1f} ± {100 * change['half']:.1f}"
    return f"**{text}**" if abs(change["mean"]) > change["half"] else text


def accuracy(rows: Rows) -> str:
    """Every policy, greedy and sampled, with its change from the base problem by problem."""
    header = ["policy", "learning rate", "greedy", "change", "sampled", "change"]
    lines = []
    for row in rows:
        rate = f"{row['lr']:g}" if row["variant"] != "base" else ""
        found = [cell for mode in ("greedy", "sampled") for cell in (_percent(row[mode]), _change(row, mode))]
        lines.append([row["peer"], rate, *found])
    return markdown(header, lines)


def stages(rows: Rows) -> str:
    """Seconds and tokens of every stage, of the policies that came first to it."""
    lines, seen = [], set()
    for row in rows:
        for stage in row["stages"]:
            key = (stage["stage"], stage["seconds"])
            if key in seen:
                continue
            seen.add(key)
            tokens = [f"{stage[name]:,.0f}" if stage[name] else "" for name in ("sampled", "trained")]
            lines.append([row["peer"], stage["stage"], duration(stage["seconds"]), *tokens])
    return markdown(["policy", "stage", "time", "tokens sampled", "tokens trained on"], lines)


def signal(rows: Rows) -> str:
    """Of DAPO's iterations: what carries signal, and the critic on held-out problems."""
    row = next((row for row in rows if row["variant"] == "dapo"), None)
    if row is None:
        return "Not run yet."
    columns = [_signal(row, number) for number in range(len(row["signals"]))]
    header = ["", *(f"iteration {number}" for number in range(1, len(columns) + 1))]
    return markdown(header, [[name, *(column[name] for column in columns)] for name in columns[0]])


def _signal(row: dict, number: int) -> dict[str, str]:
    found, critic = row["signals"][number], row["critics"][number]
    return {
        "problems with right and wrong responses": _share(found["mixed_problems"], found["problems"]),
        "problems with a state that is trained on": _share(found["kept_problems"], found["problems"]),
        "states trained on": _share(found["kept_states"], found["states"]),
        "candidate steps trained on (pairs)": _share(found["pairs"], found["candidates"]),
        "critic on held-out states: how many": str(critic["states"]),
        "its AUC": f"{critic['auc']:.2f}" if critic["auc"] is not None else "none: all outcomes agree",
        "its Brier score": f"{critic['brier']:.3f}",
        "Brier score of the mean rate": f"{critic['constant_brier']:.3f}",
        "k, the outcomes that the critic is worth": f"{row['k'][number]:.2g}",
    }


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole} ({100 * part / whole:.0f}%)"
