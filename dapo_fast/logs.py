"""Where the project's log goes: the screen, and a run directory's own file."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from tqdm import tqdm


class _TqdmHandler(logging.StreamHandler):
    """Log lines above the progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


class _FileHandler(logging.FileHandler):
    """The file is the screen's copy: a full disk must not put a traceback of logging's own beside every line."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Nothing: the line is on the screen."""


def log_to(directory: Path | None, quiet: bool = False) -> None:
    """Send the project's log to stderr and to ``directory/run.log``."""
    logger = logging.getLogger("dapo_fast")
    logger.setLevel(logging.INFO)
    logger.handlers.clear()
    logger.propagate = False
    screen = _TqdmHandler()
    screen.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    screen.setLevel(logging.WARNING if quiet else logging.INFO)
    logger.addHandler(screen)
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
        file = _FileHandler(directory / "run.log")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logger.addHandler(file)
