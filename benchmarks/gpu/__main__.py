"""``python -m benchmarks.gpu``: check and measure what needs a GPU, most important first, within ``--budget`` seconds.

Needs a driver, torch, triton and transformers; whatever else is missing is named and left out. Results are written as
soon as each is known, to one JSON file (the GPU's in benchmarks/results) and, at the end, one PNG beside it. The last
line says what failed; the exit code is 1 then, and 2 without a GPU. ``--dry-run``: tiny shapes, on a CPU as well.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from . import figure
from .processes import end_on_sigterm
from .runner import Runner
from .sections import SECTIONS, Setup, child


def main(argv: list[str] | None = None) -> int:
    """Run what is asked for; 0: nothing failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--budget", type=float, default=540.0, metavar="S", help="seconds for everything")
    parser.add_argument("--section", action="append", choices=list(SECTIONS), help="only this; may be repeated")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the JSON and the PNG go")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes, without a GPU too; nothing is measured")
    parser.add_argument("--child", nargs=2, metavar=("SECTION,…", "DEADLINE,…"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child:
        deadlines = map(float, args.child[1].split(","))
        return child(list(zip(args.child[0].split(","), deadlines)), args.dry_run)
    if not (args.dry_run or Setup.has_gpu()):
        print("python -m benchmarks.gpu: torch sees no GPU (--dry-run goes through it on a CPU)", file=sys.stderr)
        return 2
    if args.out is None and args.dry_run:
        args.out = Path(tempfile.mkdtemp())
    began = time.time()
    end_on_sigterm()
    runner = Runner(args.section or list(SECTIONS), args.budget, args.out, args.dry_run)
    runner.run()
    drawn = figure.draw(runner.rows, runner.path.with_suffix(".png"))
    print(f"\n{runner.path}{f', {drawn}' if drawn else ''}; {time.time() - began:.0f} of {args.budget:.0f} s")
    print(f"failed: {'; '.join(runner.failures)}" if runner.failures else "nothing failed")
    return int(bool(runner.failures))


if __name__ == "__main__":
    sys.exit(main())
