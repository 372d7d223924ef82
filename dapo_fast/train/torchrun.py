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

EXIT_CODE_VARIABLE = "DAPO_FAST_EXIT_CODES"
# A step under way is finished and saved before torchrun, which would do so after 30 s, kills anybody.
_SHUTDOWN_SECONDS = "600"


def torchrun(words: Sequence[str], processes: int, held: Sequence[int] = ()) -> int:
    """Run ``python -m dapo_fast WORDS`` in ``processes`` ranks and return the exit code that the command had.

    SIGTERM and SIGINT are passed on once and waited for; a second one ends torchrun, and its ranks notice that.

    Args:
        held: File descriptors that torchrun inherits, a run directory's lock among them: it then outlives this process
            with the ranks.
    """
    with tempfile.TemporaryDirectory(prefix="dapo-fast-") as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        environment = {"DAPO_FAST_LOCKED": "1", EXIT_CODE_VARIABLE: folder}
        environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = _SHUTDOWN_SECONDS
        # A session of its own: Ctrl-C in a terminal is for this process, which passes it on.
        with subprocess.Popen(
            [*command, "-m", "dapo_fast", *words],
            env=os.environ | environment,
            pass_fds=tuple(held),
            start_new_session=True,
        ) as process:
            code = _wait(process)
        # torchrun says 1 whatever its ranks said. Of those, one that knows more than "failed" has the larger number.
        codes = [int(path.read_text()) for path in Path(folder).iterdir()]
        return max([code, *codes]) if code else 0


def tell_exit_code(code: int) -> None:
    """Leave this rank's exit code to ``torchrun``, if that started it."""
    folder = os.environ.get(EXIT_CODE_VARIABLE)
    if folder and Path(folder).is_dir():
        (Path(folder) / os.environ.get("RANK", "0")).write_text(str(code))


def _wait(process: subprocess.Popen) -> int:
    passed_on = False

    def pass_on(number: int, frame: FrameType | None) -> None:
        nonlocal passed_on
        if process.poll() is None:
            process.send_signal(signal.SIGKILL if passed_on else number)
        passed_on = True

    try:
        before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not the main thread: whoever runs there owns the signals
        return process.wait()
    try:
        return process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
