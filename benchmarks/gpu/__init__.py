"""Everything that needs a GPU to be known, in one command and nine minutes: ``python -m benchmarks.gpu``."""

import sys
from pathlib import Path

# The other benchmarks are programs too, and find each other beside themselves; the packages, in this checkout.
ROOT = Path(__file__).parents[2]
sys.path[:0] = [path for path in (str(ROOT / "benchmarks"), str(ROOT), str(ROOT / "kernels")) if path not in sys.path]
