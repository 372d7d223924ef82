"""A sampling server for as long as a stage needs it: started on the policy at hand, stopped with all its children."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from dapo_fast.config import EngineSettings
from dapo_fast.errors import InputError

log = logging.getLogger("dapo_fast.rollout.server")

_STOP_SECONDS = 30.0


@contextmanager
def serving(settings: EngineSettings, model: str | Path, log_path: Path) -> Iterator[None]:
    """Run ``settings.command`` with ``{model}`` replaced, until the block ends; nothing where no command is set.

    Args:
        settings: ``command`` is split like a shell line and started without a shell; ``urls`` are polled until each
            answers ``/v1/models``, for at most ``start_timeout_s``.
        model: Hugging Face directory of the policy to serve.
        log_path: Where the server's output goes.

    Raises:
        InputError: something else answers at one of ``urls`` already, which would be taken for the server; or the
            command cannot be started, ends early, or does not answer in time.
    """
    if settings.command is None:
        yield
        return
    for url in settings.urls:
        if _answers(url):
            raise InputError(
                f"engine.urls: {url} answers before engine.command has started anything there, and what it serves may "
                "be another policy; stop it, or take another port"
            )
    words = [word.replace("{model}", str(model)) for word in shlex.split(settings.command)]
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with open(log_path, "ab") as output:
        try:
            process = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        except OSError as error:
            raise InputError(f"engine.command: cannot start {words[0]} ({error})") from error
        try:
            _wait_until_ready(process, settings, log_path)
            yield
        finally:
            _stop(process)


def _wait_until_ready(process: subprocess.Popen, settings: EngineSettings, log_path: Path) -> None:
    log.info("waiting for %s (its output: %s)", ", ".join(settings.urls), log_path)
    deadline = time.monotonic() + settings.start_timeout_s
    waiting = list(settings.urls)
    while waiting:
        if process.poll() is not None:
            raise InputError(f"engine.command: ended with code {process.returncode} before it served; see {log_path}")
        if time.monotonic() > deadline:
            raise InputError(f"engine.command: no answer from {waiting[0]} in {settings.start_timeout_s:.0f} s")
        waiting = [url for url in waiting if not _answers(url)]
        time.sleep(0.2 if waiting else 0)


def _answers(url: str) -> bool:
    try:
        answer = httpx.get(f"{url.rstrip('/').removesuffix('/v1')}/v1/models", timeout=5)
    except httpx.HTTPError:
        return False
    return answer.is_success or answer.status_code in (401, 403)  # it is there and wants a key


def _stop(process: subprocess.Popen) -> None:
    for stop in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, stop)
        except ProcessLookupError:
            return
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            continue
