"""Algorithm 1: the stages in their order, each iteration's policy kept or not, and the table of results."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from dapo_fast import state
from dapo_fast.data.store import sealed_summary
from dapo_fast.events import Callback, Event, telling
from dapo_fast.inputs import check_inputs, warn_of_memory
from dapo_fast.layout import Layout
from dapo_fast.loan import free_memory
from dapo_fast.provenance import record
from dapo_fast.report import write_report
from dapo_fast.rundir import RunDirectory, read_rows, read_state, write_json
from dapo_fast.stages import NoContrastError, Stages, why_no_state
from dapo_fast.statistics import with_interval
from dapo_fast.train.torchrun import is_first_rank, torchrun

log = logging.getLogger("dapo_fast.pipeline")

RESULTS = "results.json"


class Pipeline(Stages):
    """All iterations of one run directory."""

    def __init__(
        self,
        directory: RunDirectory,
        given: Mapping[str, Any] | None = None,
        callbacks: Sequence[Callback] = (),
        layout: Layout | None = None,
    ) -> None:
        """As ``Stages``; ``callbacks`` are told of every stage and step."""
        super().__init__(directory, given, layout)
        self._callbacks = callbacks

    def run(self) -> list[dict]:
        """Every stage of every iteration. Returns the rows of the results table."""
        with self.engines.lending():
            rows = [self.start()]
            for iteration in range(1, self.config.iterations + 1):
                rows.append(self.advance(iteration))
                if rows[-1].get("stopped"):
                    break
        write_json(self.directory.path / RESULTS, rows)
        write_report(self.directory.path)
        return rows

    def start(self) -> dict:
        """What comes before iteration 1, after everything has been checked. Returns its row of the results table."""
        self.layout.check_settings()
        check_inputs(self.config, self.parts, self.layout)
        warn_of_memory(self.config)
        self.directory.save_config()
        record(self.directory.path, self.config)
        if self.layout.has_sft():
            self.perform("sft", 0)
        return self._recorded({"iteration": 0, "accepted": True, **(self.perform("evaluate", 0) or {})})

    def advance(self, iteration: int) -> dict:
        """``iterate``, recorded in the results; says so where there was nothing to train on."""
        row = self._recorded(self.iterate(iteration))
        if row.get("stopped"):
            log.warning("iteration %d: %s; the policy stays as it was", iteration, row["stopped"])
        return row

    def _recorded(self, row: dict) -> dict:
        """``row``, which is in results.json from now on; those of other iterations stay."""
        path = self.directory.path / RESULTS
        before = read_rows(path) if path.exists() else []
        others = [other for other in before if other["iteration"] != row["iteration"]]
        write_json(path, sorted([*others, row], key=lambda one: one["iteration"]))
        return row

    def iterate(self, iteration: int) -> dict:
        """Every stage of ``iteration``, and whether its policy is kept. Returns its row of the results table."""
        row: dict[str, Any] = {"iteration": iteration}
        row["collect"] = self.perform("collect", iteration)
        if self.config.at(iteration).advantages.source == "critic":
            row["critic"] = self.perform("critic", iteration)
        row["advantages"] = self.perform("advantages", iteration)
        try:
            self.perform("actor", iteration)
        except NoContrastError as error:
            return row | {"accepted": False, "stopped": str(error)}
        measured = self.perform("evaluate", iteration)
        return row | (measured or {}) | self._decide(iteration, measured)

    def _decide(self, iteration: int, measured: dict | None) -> dict:
        """Keep the new policy, unless it is worse than the one before by more than the intervals allow."""
        decision: dict[str, Any] = {"accepted": True, "reason": "not measured: no held-out problems"}
        previous_iteration = next(i for i in reversed(range(iteration)) if i == 0 or self.layout.accepted(i))
        path = self.directory.stage(previous_iteration, "evaluate") / "summary.json"
        if measured is not None and not path.exists():
            decision["reason"] = f"the policy of iteration {previous_iteration} was not measured"
        elif measured is not None:
            previous = read_state(path, state.Evaluated)
            # The objective is the expected reward of the policy, so sampled accuracy decides where it was measured.
            mode = "sampled" if "sampled" in measured and "sampled" in previous else "greedy"
            new, old = measured[mode], previous[mode]
            worse = new["high"] < old["low"]
            reason = f"{mode} accuracy {with_interval(new)} after iteration {iteration}, {with_interval(old)} before"
            decision = {"accepted": not (worse and self.config.keep_best), "reason": reason}
            if worse:
                fate = "the previous policy is kept" if self.config.keep_best else "it is kept all the same"
                log.warning("iteration %d made the policy worse: %s; %s", iteration, reason, fate)
        write_json(self.directory.path / f"iter{iteration}" / "decision.json", decision)
        return decision

    def perform(self, name: str, iteration: int) -> Any:
        """Run a stage here, or under torchrun where training asks for several processes."""
        log.info("%s%s", name, f", iteration {iteration}" if name != "sft" else "")
        if name not in ("evaluate", "collect"):
            self.engines.release()
        config = self.config.at(iteration)
        processes = config.parallel.processes
        here = name in ("collect", "evaluate") or (name == "advantages" and config.advantages.source != "critic")
        if processes == 1 or here:
            result = self.do(name, iteration)
            free_memory()
            return result
        if name == "actor":
            done = read_state(self.directory.stage(iteration, "advantages") / "done.json", state.AdvantagesDone)
            if not done["kept"]:
                raise NoContrastError(why_no_state(done))
        words = [name, str(self.directory.path), "--iteration", str(iteration)]
        code = torchrun(words, processes, self.directory.held())
        if code:
            raise ChildFailedError(f"{name}: ended with exit code {code}; its messages are above", code)
        directory = self.directory.stage(iteration, name)
        done = sealed_summary(directory) if name == "advantages" else read_state(directory / "done.json", state.Done)
        self._tell_end(name, iteration, done)
        return done

    def do(self, name: str, iteration: int) -> Any:
        """Run a stage in this process, and tell of it."""
        with telling(self._callbacks, name, iteration):
            result = getattr(self, name)(iteration)
        self._tell_end(name, iteration, result)
        return result

    def _tell_end(self, name: str, iteration: int, result: Any) -> None:
        for callback in self._callbacks if result is not None and is_first_rank() else ():
            callback(Event(name, iteration, None, dict(result) if isinstance(result, dict) else {}))


class ChildFailedError(RuntimeError):
    """A stage that ran under torchrun failed."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code
