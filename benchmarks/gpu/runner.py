"""Sections in a process beside this one, so that one that hangs or takes the GPU down with it ends alone."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from recorder import Recorder, commit

from . import ROOT
from .processes import die_with_parent
from .sections import MARK, SECTIONS

GRACE = 0.04  # of the budget: what a section may take beyond its deadline to end by itself


class Runner:
    """Runs sections in order; a section's unused time goes to those after it.

    Attributes:
        rows: All results so far; every one is in the file at ``path`` as soon as it is known.
        failures: What failed, a line a section.
    """

    def __init__(self, names: list[str], budget: float, out: Path | None, dry: bool) -> None:
        self._dry, self._grace = dry, GRACE * budget
        self._record, self._commit = Recorder(quick=dry, directory=out), commit()
        self.path, self.rows, self.failures = self._record.path, [], []
        shares = [SECTIONS[name].share for name in names]
        scale = (budget - self._grace) / sum(shares)
        self._deadlines = {
            name: time.time() + scale * sum(shares[: index + 1]) for index, name in enumerate(names)
        }  # fmt: skip

    def run(self) -> None:
        """Every section, with a new process after each one that failed."""
        pending = list(self._deadlines)
        while pending:
            pending = self._in_one_process(pending)

    def _in_one_process(self, pending: list[str]) -> list[str]:
        """Sections until one fails; those that are left."""
        deadlines = ",".join(str(self._deadlines[name]) for name in pending)
        command = [sys.executable, "-m", "benchmarks.gpu", "--child", ",".join(pending), deadlines]
        process = subprocess.Popen(
            command + ["--dry-run"] * self._dry,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        events: queue.Queue[dict | None] = queue.Queue()
        threading.Thread(target=_read, args=(process, events), daemon=True).start()
        began = time.time()
        try:
            while pending:
                name = pending[0]
                try:
                    event = events.get(timeout=max(0.1, self._deadlines[name] + self._grace - time.time()))
                except queue.Empty:
                    self._end(pending.pop(0), f"stopped after {time.time() - began:.0f} s", began)
                    return pending
                if event is None:
                    self._end(pending.pop(0), f"its process ended with exit code {process.wait()}", began)
                    return pending
                if "row" in event:
                    self._keep([event["row"]])
                elif "failed" in event:
                    self._end(pending.pop(0), event["failed"], began)
                    return pending
                elif "done" in event:
                    self._end(pending.pop(0), event["done"], began, event["done"] == "done")
                    began = time.time()
            return pending
        finally:
            _kill(process)

    def _end(self, name: str, how: str, began: float, good: bool = False) -> None:
        if not good and not how.startswith("left out"):
            self.failures.append(f"{name} ({how})")
        seconds = time.time() - began
        self._keep([{"suite": "gpu", "case": name, "peer": "dapo-fast", "state": how, "seconds": seconds}])

    def _keep(self, rows: list[dict]) -> None:
        self.rows += rows
        suites = {row["suite"] for row in rows}
        self._record([row for row in self.rows if row["suite"] in suites], self._commit)
        for row in rows:
            print("  ".join(f"{k}={_short(v)}" for k, v in row.items() if v is not None), flush=True)


def _read(process: subprocess.Popen, events: queue.Queue[dict | None]) -> None:
    for line in process.stdout:
        if line.startswith(MARK):
            events.put(json.loads(line.removeprefix(MARK)))
        else:
            print(line, end="", flush=True)
    events.put(None)


def _kill(process: subprocess.Popen) -> None:
    try:
        process.wait(timeout=0 if process.poll() is None else None)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _short(value: object) -> object:
    return f"{value:.4g}" if isinstance(value, float) else value
