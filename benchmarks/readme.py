"""``python benchmarks/readme.py`` makes the tables and figures of README.md and docs/ from results and declarations.

``--check`` writes nothing, names what differs, and then exits with code 1.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import models_page
import one_problem
import roofline
from study import pretrained
from study import tables as study_tables
from study.tables import markdown as table

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
RESULTS = ROOT / "benchmarks" / "results"


def results(suite: str) -> list[dict]:
    """``suite`` of every results file that has it: its rows, machine, commit and file; full ones before quick ones."""
    files = sorted(RESULTS.glob("*.json"), key=lambda path: ("-quick" in path.stem, path.name))
    found = ((path.name, json.loads(path.read_text())["suites"].get(suite)) for path in files)
    return [measured | {"file": name} for name, measured in found if measured]


def machine(found: dict) -> str:
    """What a suite was measured on, in one line."""
    facts = found["machine"]
    libraries = ", ".join(f"{name} {facts['libraries'][name]}" for name in ("torch", "triton", "transformers"))
    where = facts["gpu"] or f"{facts['cores']} CPU cores ({facts['cpu']}), no GPU"
    return f"{where}; {libraries}; commit {found['commit']}; `benchmarks/results/{found['file']}`"


def accuracy(value: dict) -> str:
    """An accuracy with its interval, in percent."""
    return f"{100 * value['accuracy']:.1f} [{100 * value['low']:.1f}, {100 * value['high']:.1f}]"


def end_to_end() -> str:
    """Held-out accuracy of the built-in task, seed by seed."""
    found = next(iter(results("end_to_end")), None)
    if found is None:
        return "Accuracy on the built-in task: not measured yet (`make bench`)."
    rows = found["rows"]
    lines = [
        [row["case"], row["peer"], accuracy(row["greedy"]), accuracy(row["sampled"]), str(row.get("pairs", ""))]
        for row in rows
    ]
    note = (
        "`make train` (or `make train SEED=1 RUN=runs/seed1`; the second task: `dapo-fast run RUN --preset arithmetic "
        f"data.task=instruments`): % right on {rows[0]['heldout_problems']} held-out problems, with 95% Wilson "
        "intervals, before and after each iteration, and the (state, action) pairs that the iteration trained on. "
        f"Measured on {machine(found)}.\n\n"
    )
    return note + table(["run", "policy", "greedy", "sampled", "pairs"], lines)


def _value(row: dict, key: str, form: str) -> str:
    return format(row[key], form) if row.get(key) is not None else ""


def step_tree(rows: list[dict]) -> str:
    """Tokens and speed of the step tree against its peers."""
    lines = [
        [
            row["case"],
            row["peer"],
            _value(row, "token_ratio", ".1f"),
            _value(row, "ratio", ".1f"),
            _value(row, "cpu_ratio", ".1f"),
        ]
        for row in rows
    ]
    return table(["shape", "batches", "fewer tokens (×)", "faster than padded (×)", "less CPU time (×)"], lines)


def fused_loss(rows: list[dict]) -> str:
    """The fused loss against its peers, as ratios to the three matrix products."""
    lines = [
        [
            row["case"],
            row["peer"],
            row.get("peer_version") or "",
            row.get("math", ""),
            _value(row, "ratio_to_floor", ".2f") or row["unavailable"],
        ]
        for row in rows
    ]
    text = (
        "DAPO's loss is of whole steps; where a peer has only a loss of single tokens, that is what it computes, with "
        "gradients of hidden states and weight as well.\n\n"
    )
    return text + table(["shape", "peer", "version", "computes", "time / three GEMMs"], lines)


def rollout(rows: list[dict]) -> str:
    """In-process collection against one ``generate`` a state."""
    return table(["shape", "against", "faster (×)"], [[r["case"], r["peer"], f"{r['ratio']:.1f}"] for r in rows])


def critic(rows: list[dict]) -> str:
    """The critic's two readings of a tree against sequences."""
    names = {
        "padded": "one padded sequence a value",
        "trunks": "one padded sequence a response",
        "tree": "dapo-fast",
    }
    lines = [[r["case"], names[r["peer"]], str(r["tokens"]), f"{r['ratio']:.1f}"] for r in rows]
    return table(["shape", "batches", "tokens", "values per second (×)"], lines)


def train_step(rows: list[dict]) -> str:
    """Where a step's time goes, in percent."""
    pieces = ("packs", "forward", "backward", "clip", "optimizer")
    lines = []
    for row in rows:
        shares = [f"{100 * row[f'{piece}_s'] / row['step_s']:.0f}" for piece in pieces]
        lines.append([row["case"], row["peer"], *shares, f"{row['ratio_to_plain']:.2f}"])
    return table(["shape", "layout", *(f"{p} (%)" for p in pieces), "time / plain"], lines)


SECTIONS: dict[str, tuple[str, str, Callable[[list[dict]], str]]] = {
    "step_tree": ("Step trees", "python -m pytest benchmarks/test_step_tree.py", step_tree),
    "fused_loss": ("Fused loss, forward and backward", "python -m pytest benchmarks/test_fused_loss.py", fused_loss),
    "critic": ("The critic", "python -m pytest benchmarks/test_critic.py", critic),
    "train_step": ("A step of the actor", "python -m pytest benchmarks/test_train_step.py", train_step),
    "rollout": ("Collection of every state of a response", "python -m pytest benchmarks/test_rollout.py", rollout),
}


def benchmarks() -> str:
    """Every suite of every machine that has one."""
    parts = []
    for suite, (title, command, render) in SECTIONS.items():
        files = results(suite)
        for found in files[:1] + [f for f in files[1:] if f["machine"]["gpu"]]:
            quick = " --quick" if "-quick" in found["file"] else ""
            rows = render(found["rows"])
            parts.append(f"### {title}\n\n`{command}{quick}` on {machine(found)}.\n\n{rows}")
    return "## Measured\n\n" + "\n\n".join(parts) if parts else "No benchmark results yet: `make bench`."


def study_rows() -> list[dict]:
    """The learning study's cells; none where it has not been recorded."""
    return next((found["rows"] for found in results("study")), [])


def declared(group: str) -> dict[str, str]:
    """Variant → label of what the study has in ``group``, measured or not."""
    from study.config import DEFAULT, load_study

    return {name: variant.label for name, variant in getattr(load_study(DEFAULT), group).items()}


def study(render: Callable[[list[dict]], str], suite: str = "study") -> str:
    """One of a study's tables, with the machine that it was computed on."""
    found = next(iter(results(suite)), None)
    if found is None:
        return f"Not measured yet: `python -m benchmarks.study runs/{suite}`."
    return f"{render(found['rows'])}\n\nOn {machine(found)}."


def study_summary(rows: list[dict]) -> str:
    """The methods' sampled accuracy, with what was done to get it."""
    seeds = len({row["seed"] for row in rows if row["group"] == "methods"})
    return (
        f"`python -m benchmarks.study runs/study`: % right when sampling, on {rows[0]['heldout_problems']} held-out "
        f"problems; means over {seeds} seeds with 95% intervals.\n\n{study_tables.summary(rows)}"
    )


def cost() -> str:
    """What the dry run says of the 7B recipe."""
    found = next(iter(results("dry_run")), None)
    if found is None:
        return "Not counted yet: `python benchmarks/dry_run.py`."
    rows = found["rows"]
    memory = [row for row in rows if "gib" in row]
    work = [row for row in rows if "eflop" in row]
    lengths = work[0]["lengths"]
    ranks = "; ".join(f"{row['peer'].split(',')[0]} {row['gib']:.1f} GiB" for row in memory)
    lines = [
        [
            row["peer"].split(",")[0],
            f"{row['sampled'] / 1e6:,.0f} M" if row["sampled"] else "",
            f"{row['packed'] / 1e6:,.0f} M" if row["packed"] else "",
            f"{row['flat'] / 1e6:,.0f} M" if row["flat"] else "",
            f"{row['eflop']:.1f}",
        ]
        for row in work
    ]
    header = ["stage", "tokens sampled", "tokens packed", "the same, a sequence each", "EFLOP"]
    return (
        f"The dry run (`python benchmarks/dry_run.py`; counted, not measured): on each of {memory[0]['processes']} "
        f"ranks, with packs of {memory[0]['pack_tokens']} tokens, {ranks}. One iteration over {lengths['problems']} "
        f"problems, with prompts of {lengths['prompt']} tokens and responses of {lengths['response']} tokens in "
        f"{lengths['steps']} steps (`--response-tokens` and so on say otherwise), takes at most:\n\n"
        f"{table(header, lines)}"
    )


def counted() -> str:
    """The roofline of the fused loss at the shapes that the benchmark measures on a GPU."""
    return table(*roofline.rows(roofline.GPU_SHAPES))


Block = Callable[[], str]
BLOCKS: dict[Path, dict[str, Block]] = {
    ROOT / "README.md": {"study": lambda: study(study_summary)},
    DOCS / "benchmarks.md": {"results": end_to_end, "cost": cost, "benchmarks": benchmarks},
    DOCS / "kernels.md": {"roofline": counted},
    DOCS / "models.md": models_page.BLOCKS,
    DOCS / "one-problem.md": {name: partial(one_problem.block, name) for name in one_problem.BLOCKS},
    DOCS / "study.md": {
        "methods": lambda: study(lambda rows: study_tables.compared(rows, "methods", declared=declared("methods"))),
        "iterations": lambda: study(study_tables.iterations),
        "tuned": lambda: study(study_tables.tuned),
        "plans": lambda: study(lambda rows: study_tables.compared(rows, "plans", declared=declared("plans"))),
        "rules": lambda: study(lambda rows: study_tables.compared(rows, "rules", declared=declared("rules"))),
        "evidence": lambda: study(study_tables.evidence),
        "fresh": lambda: study(study_tables.by_seed, "study-fresh"),
        "again": lambda: study(lambda rows: study_tables.repeated(rows, study_rows()), "study-again"),
    },
    DOCS / "real-model.md": {
        "accuracy": lambda: study(pretrained.accuracy, "real"),
        "stages": lambda: study(pretrained.stages, "real"),
        "signal": lambda: study(pretrained.signal, "real"),
    },
}


def rendered(path: Path) -> str:
    """The page with every generated block made anew."""
    text = path.read_text()
    for name, render in BLOCKS[path].items():
        marks = (f"<!-- generated:{name} -->", f"<!-- /generated:{name} -->")
        if not all(mark in text for mark in marks):
            raise SystemExit(f"{path.name}: no block between {marks[0]} and {marks[1]}")
        block = f"{marks[0]}\n{render()}\n{marks[1]}"
        text = re.sub(f"{re.escape(marks[0])}.*?{re.escape(marks[1])}", lambda _, b=block: b, text, flags=re.DOTALL)
    return text


def main() -> int:
    """Write the pages and figures, or check them."""
    from study.figures import stale_figures, write_figures

    stale = [path.name for path in BLOCKS if path.read_text() != rendered(path)]
    rows = study_rows()
    if "--check" in sys.argv:
        stale += stale_figures(rows, DOCS) if rows else []
        for name in stale:
            print(f"{name} is not what it is made of: run `python benchmarks/readme.py`", file=sys.stderr)
        return int(bool(stale))
    for path in BLOCKS:
        path.write_text(rendered(path))
    if rows and stale_figures(rows, DOCS):
        write_figures(rows, DOCS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
