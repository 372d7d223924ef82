"""Servers of a tiny model, for whatever samples over HTTP. The module that asks brings ``directory``, the policy."""

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from dapo_fast.rollout.http import client, servers

SERVER = Path(__file__).with_name("openai_server.py")


@pytest.fixture(scope="module")
def launcher():
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen([sys.executable, str(SERVER)], **pipes) as process:
        yield process
        process.kill()


@pytest.fixture(scope="module")
def serve(launcher, directory):
    """Starts a server process; yields its URL and a function that kills it."""

    @contextmanager
    def start(directory=directory, **settings):
        launcher.stdin.write(json.dumps({"directory": str(directory)} | settings) + "\n")
        launcher.stdin.flush()
        answer = json.loads(launcher.stdout.readline())

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
