"""One self-contained page about a run, and PNGs of its figures, made from the run's files alone."""

from dapo_fast.report.page import write_comparison, write_report

__all__ = ["write_comparison", "write_report"]
