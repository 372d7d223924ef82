"""A command on several processes of this machine, through torchrun: its lock, its signals and its exit code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from dapo_fast.names import import_path
from dapo_fast.signals import handled

EXIT_CODE_VARIABLE = "DAPO_FAST_EXIT_CODES"
# A step under way is finished and saved before torchrun, which would do so after 30 s, kills anybody.
_SHUTDOWN_SECONDS = "600"


def torchrun(words: Sequence[str], processes: int, held: Sequence[int] = ()) -> int:
    """Run ``python -m dapo_fast WORDS`` in ``processes`` ranks and return the exit code that the command had.

    SIGTERM, SIGINT and SIGHUP are passed on and waited for, and the code is then 128 + the signal, however far the
    ranks were. A second signal ends torchrun, and its ranks notice that.

    Args:
        held: File descriptors that torchrun inherits, a run directory's lock among them: it then outlives this process
            with the ranks.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    signals = _PassedOn()
    asked = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    heard = [number for number in asked if signal.getsignal(number) is not signal.SIG_IGN]  # as nohup has SIGHUP
    with tempfile.TemporaryDirectory(prefix="dapo-fast-") as folder, handled(heard, signals):
        environment = {"DAPO_FAST_LOCKED": "1", EXIT_CODE_VARIABLE: folder, "PYTHONPATH": import_path()}
        environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = _SHUTDOWN_SECONDS
        # A session of its own: Ctrl-C in a terminal is for this process, which passes it on.
        process = subprocess.Popen(
            [*command, "-m", "dapo_fast", *words],
            env=os.environ | environment,
            pass_fds=tuple(held),
            start_new_session=True,
        )
        code = signals.wait_for(process)
        if signals.first is not None:
            return 128 + signals.first
        return code and _most_telling([code, *(int(path.read_text()) for path in Path(folder).iterdir())])


def is_first_rank() -> bool:
    """Whether this process is rank 0 of those that a launcher started, or was started alone."""
    return int(os.environ.get("RANK", "0")) == 0


def tell_exit_code(code: int) -> None:
    """Leave this rank's exit code to ``torchrun``, if that started it."""
    folder = os.environ.get(EXIT_CODE_VARIABLE)
    if folder and Path(folder).is_dir():
        (Path(folder) / os.environ.get("RANK", "0")).write_text(str(code))


def _most_telling(codes: list[int]) -> int:
    """torchrun says 1 whatever its ranks said, and ends those that live on by a signal: neither is the reason."""
    reasons = [code for code in codes if 0 < code < 128]
    return max(reasons) if reasons else max(128 - code if code < 0 else code for code in codes)


class _PassedOn:
    """Signals to this process go to torchrun; ``first`` is the first of them."""

    def __init__(self) -> None:
        self.first: int | None = None
        self._process: subprocess.Popen | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        again = self.first is not None
        self.first = self.first or number
        if self._process is not None and self._process.poll() is None:
            # The ranks save and stop on SIGTERM and SIGINT; SIGHUP would end them where they are.
            once = signal.SIGTERM if number == signal.SIGHUP else number
            self._process.send_signal(signal.SIGKILL if again else once)

    def wait_for(self, process: subprocess.Popen) -> int:
        """The code that ``process`` ends with."""
        self._process = process
        if self.first is not None:  # it came while torchrun was being started
            process.send_signal(signal.SIGTERM)
        return process.wait()
