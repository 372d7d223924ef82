"""Runs that several files of tests read."""

from __future__ import annotations

from pathlib import Path

import pytest
from simulated_run import HOSTILE, hostile_tree, make_run, start_run, write_iteration

from dapo_fast.report import write_report


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory) -> Path:
    """Read-only: a finished run without its report."""
    return make_run(tmp_path_factory.mktemp("report") / "demo-run")


@pytest.fixture(scope="session")
def hostile_run(tmp_path_factory) -> Path:
    """Read-only: a run full of text that would like to be markup, with its report."""
    path = start_run(tmp_path_factory.mktemp("hostile") / "run <b>&amp;", "data.template=</script><i>{prompt}")
    write_iteration(path, 1, 0, trees=[hostile_tree(text, i) for i, text in enumerate(HOSTILE)])
    write_report(path)
    return path
