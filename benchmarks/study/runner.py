"""Cells in chains, chains in workers: what is done is never done again, and a kill costs a stage's step in flight."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import threading
import time
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path

from tqdm import tqdm

from benchmarks.recorder import commit
from dapo_fast.cli import quiet_libraries
from dapo_fast.errors import InputError
from dapo_fast.inputs import check_inputs
from dapo_fast.logs import log_to
from dapo_fast.rundir import RunDirectory

from .config import Cell, Study, changed_cells, config_of, method_cells, tuning_cells
from .results import check_results, tuned_settings
from .rows import note_commit

log = logging.getLogger("dapo_fast.study")

EVIDENCE_OF = ("dapo", "completions-8")  # variants whose Q is measured against the truth


def run_study(
    study: Study, root: Path, workers: int, tasks: list[str], seeds: list[int], variants: list[str] | None
) -> None:
    """Tune the methods that need it, then run the cells of ``tasks``, ``seeds`` and ``variants`` (None: all).

    What is done already is left as it is.

    Raises:
        InputError: an unknown task or variant, a wrong setting, or results of other settings in ``root``.
    """
    for task in tasks:
        if task not in study.tasks:
            raise InputError(f"--task {task}: the study has {', '.join(study.tasks)}")
    chains: list[list[Cell]] = []  # of one task and seed each: its cells share stages, so one process has them all
    known: set[str] = set()
    for seed in seeds:  # a study that is cut short has whole seeds
        for task in tasks:
            cells = method_cells(study, task, seed) + changed_cells(study, task, seed)
            known |= {c.variant for c in cells}
            chains.append([c for c in cells if variants is None or c.variant in variants])
    for name in variants or []:
        if name not in known:
            raise InputError(f"--variant {name}: unknown; there are {', '.join(sorted(known))}")
    needed = {c.method for chain in chains for c in chain}
    tuning = [[c for c in tuning_cells(study, task) if c.variant.split("@")[0] in needed] for task in tasks]
    for cell in [c for chain in tuning + chains for c in chain]:
        config = config_of(study, cell, {})  # a wrong setting is named before anything runs
        if not config.evaluate.samples or (config.data.task is None and config.data.heldout is None):
            raise InputError(f"task {cell.task}: needs data.heldout and evaluate.samples, which settings are chosen by")
    directory = RunDirectory(root, config_of(study, method_cells(study, tasks[0], seeds[0])[0], {}))
    directory.lock()
    log_to(root)
    from .cell import open_cell  # brings torch: after whatever can be refused without it

    for task in tasks:
        first = open_cell(study, method_cells(study, task, seeds[0])[0], root, {})
        check_inputs(first.config, first.parts, first.layout)
    cells = [c for chain in tuning + chains for c in chain]
    check_results(study, [c for chain in tuning for c in chain], root)
    if _done(cells, root) < len(cells):
        note_commit(commit(), root)
    # A fresh interpreter for each worker, since torch's threads do not survive a fork; this is what it starts with.
    os.environ |= {"TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    quiet_libraries()
    with tqdm(total=len(cells), unit="cell", desc="study", initial=_done(cells, root)) as bar:
        pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))
        try:
            _wait([pool.submit(_chain, study, chain, root, False) for chain in tuning], cells, root, bar)
            for task in tasks:
                log.info("%s: tuned to %s", task, tuned_settings(study, task, root))
            check_results(study, [c for chain in chains for c in chain], root)  # known only now: tuning decides
            _wait([pool.submit(_chain, study, c, root, True) for c in chains if c], cells, root, bar)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in multiprocessing.active_children():
                worker.terminate()  # a cell goes on from its last checkpoint: an error need not wait for it
            raise
        pool.shutdown()


def _done(cells: list[Cell], root: Path) -> int:
    return sum((cell.directory(root) / "cell.json").exists() for cell in cells)


def _wait(futures: list[Future], cells: list[Cell], root: Path, bar: tqdm) -> None:
    """Until all are done, or one has failed: its error is raised here."""
    while not all(future.done() for future in futures):
        time.sleep(1)
        bar.update(_done(cells, root) - bar.n)
        for future in futures:
            if future.done():
                future.result()
    for future in futures:
        future.result()
    bar.update(_done(cells, root) - bar.n)


def _end_with(parent: int) -> None:
    """End this process when ``parent`` has ended: a killed study's workers must not go on beside the next one's."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _chain(study: Study, cells: list[Cell], root: Path, measure: bool) -> None:
    import torch

    from .cell import open_cell, run_cell
    from .truth import measure_evidence

    torch.set_num_threads(1)
    quiet_libraries()
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    for cell in cells:
        gc.freeze()  # what is there now stays: a stage that collects garbage need not look at it
        log_to(cell.directory(root), quiet=True)
        tuned = tuned_settings(study, cell.task, root).get(cell.method or "", {})
        run_cell(study, cell, root, tuned)
        if measure and study.truth and cell.variant in EVIDENCE_OF:
            measure_evidence(open_cell(study, cell, root, tuned), study.truth)
