"""``python -m benchmarks.study RUN``: run the study in RUN, or go on with it; its rows go to this machine's results.

Cells of one task and seed run one after another and share stages; ``--workers`` of such chains run side by side.
``--task``, ``--seed`` and ``--variant`` run some cells only, in a directory of their own or in the study's.
"""

from __future__ import annotations

import argparse
import os
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from benchmarks.recorder import Recorder
from dapo_fast.errors import InputError

from .config import DEFAULT, load_study
from .rows import commits_of, rows_of
from .runner import run_study


def main(argv: list[str] | None = None) -> int:
    """Run what is asked for and record what is there.

    Exit code 1 where a worker was killed, 2 for bad input, 130 when interrupted.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="directory of the study's runs")
    parser.add_argument("--config", type=Path, default=DEFAULT, metavar="FILE", help="the study (default: study.yaml)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="chains side by side, a core each")
    parser.add_argument("--task", action="append", help="only this task")
    parser.add_argument("--seed", action="append", type=int, help="only this seed")
    parser.add_argument("--variant", action="append", help="only this variant, such as dapo or beta=0.05")
    parser.add_argument("--no-record", action="store_true", help="leave the results file as it is")
    args = parser.parse_args(argv)
    try:
        study = load_study(args.config)
        if args.workers < 1:
            raise InputError(f"--workers {args.workers}: at least 1")
        run_study(study, args.run, args.workers, args.task or list(study.tasks), args.seed or study.seeds, args.variant)
        if not args.no_record:
            record = Recorder(quick=False)
            record(rows_of(study, args.run), commits_of(args.run))
            print(record.path)
        return 0
    except InputError as error:
        print(f"study: {error}", file=sys.stderr)
        return 2
    except BrokenProcessPool:
        print("study: a worker was killed (out of memory?); the same command goes on from there", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("study: interrupted; the same command goes on from there", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
