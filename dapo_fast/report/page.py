"""The page: sections put together, each saying what is missing and which command makes it."""

from __future__ import annotations

from html import escape
from pathlib import Path

from dapo_fast.report.read import Run, read_run


def write_report(run_path: str | Path) -> Path:
    """Write ``RUN/report.html`` and ``RUN/figures/*.png`` from what the run directory holds so far.

    Returns:
        The path of the page.

    Raises:
        InputError: not a run directory, or a file in it is corrupt; names the file.
    """
    run = read_run(run_path)
    target = run.path / "report.html"
    target.write_text(_page(run), encoding="utf-8")
    return target


def _page(run: Run) -> str:
    rows = []
    for iteration in run.iterations:
        measured = iteration.measured or {}
        cells = [_accuracy(measured.get(mode)) for mode in ("greedy", "sampled")]
        rows.append(f"<tr><th>{escape(iteration.name)}</th><td>{cells[0]}</td><td>{cells[1]}</td></tr>")
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>dapo-fast report</title>'
        f"<h1>{escape(run.path.name)}</h1><table><tr><th>policy</th><th>greedy</th><th>sampled</th></tr>"
        f"{''.join(rows)}</table></html>\n"
    )


def _accuracy(value: dict | None) -> str:
    return f"{value['accuracy']:.1%} [{value['low']:.1%}, {value['high']:.1%}]" if value else "not measured"
