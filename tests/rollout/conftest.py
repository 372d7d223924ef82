"""Servers of a tiny model, for whatever samples over HTTP. The module that asks brings ``directory``, the policy."""

import json
import multiprocessing
import os
import signal
from contextlib import contextmanager, suppress

import pytest
from openai_server import fork_servers

from dapo_fast.rollout.http import client, servers


@pytest.fixture(scope="module")
def launcher():
    """Where to write settings of a server, and where to read of it: of a fork of this process, with all its imports."""
    (lines, ask), (told, answers) = os.pipe(), os.pipe()
    files = [open(lines), open(ask, "w", buffering=1), open(told), open(answers, "w")]  # noqa: SIM115
    process = multiprocessing.get_context("fork").Process(target=fork_servers, args=(files[0], files[3]), daemon=True)
    process.start()
    yield files[1], files[2]
    process.kill()
    process.join()
    for file in files:
        file.close()


@pytest.fixture(scope="module")
def serve(launcher, directory):
    """Starts a server process; yields its URL and a function that kills it."""
    settings_of, answer_of = launcher

    @contextmanager
    def start(directory=directory, **settings):
        print(json.dumps({"directory": str(directory)} | settings), file=settings_of)
        answer = json.loads(answer_of.readline())

        def kill():
            with suppress(ProcessLookupError):
                os.kill(answer["pid"], signal.SIGKILL)

        try:
            yield f"http://127.0.0.1:{answer['port']}", kill
        finally:
            kill()

    return start


@pytest.fixture
def quick_retries(monkeypatch):
    monkeypatch.setattr(client, "_FIRST_WAIT", 0.02)
    monkeypatch.setattr(servers, "_DOWN_SECONDS", 0.1)
    monkeypatch.setattr(servers, "_LINE_SECONDS", 3600.0)
