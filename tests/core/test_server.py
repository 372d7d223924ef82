"""A sampling server that lives as long as a stage needs it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from dapo_fast.config import EngineSettings
from dapo_fast.errors import InputError
from dapo_fast.rollout.server import serving

SERVER = r'''
import http.server, json, subprocess, sys
model, port = sys.argv[1:]
WORKER = """
import pathlib, signal, sys, time
def leave(*_):
    time.sleep(0.3); pathlib.Path(sys.argv[1]).unlink(); sys.exit()  # slower than its parent, as vLLM's workers are
signal.signal(signal.SIGTERM, leave)
pathlib.Path(sys.argv[1]).touch()
time.sleep(600)
"""
child = subprocess.Popen([sys.executable, "-c", WORKER, f"shared-memory-{port}"])
print("listening on", port, flush=True)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"data": [{"id": model}], "child": child.pid}).encode()
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): print("asked")
http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()
'''

# A run that starts the server and is then busy: RUN SETTINGS LOG
RUN = """
import sys, time
from pathlib import Path
from dapo_fast.config import EngineSettings
from dapo_fast.rollout.server import serving
with serving(EngineSettings.model_validate_json(sys.argv[1]), "m", Path(sys.argv[2])):
    print("up", flush=True)
    time.sleep(600)
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def settings(tmp_path, command=None, **more):
    script = tmp_path / "server.py"
    script.write_text(SERVER)
    port = free_port()
    command = command or f"{sys.executable} {script} {{model}} {port}"
    return EngineSettings(kind="http", urls=[f"http://127.0.0.1:{port}/v1"], command=command, **more)


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@contextmanager
def run_of(server, tmp_path):
    command = [sys.executable, "-c", RUN, server.model_dump_json(), str(tmp_path / "server.log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "up\n"
            yield process
        finally:
            process.kill()


def asked(server):
    return httpx.get(f"{server.urls[0]}/models").json()


def of(tmp_path, who):
    return int(json.loads((tmp_path / "server.pid").read_text())[who].split()[0])


def alive(pid):
    # A killed child that nobody has waited for yet is a zombie, which is dead.
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def ends(pid):
    # A process that was sent SIGKILL is gone once the kernel gets to it.
    return any(not alive(pid) or time.sleep(0.05) for _ in range(12000))


def test_serves_the_policy_and_ends_with_its_children(tmp_path):
    server = settings(tmp_path)
    with serving(server, "/models/after 3", tmp_path / "server.log"):
        told = httpx.get(f"{server.urls[0]}/models").json()
        assert told["data"][0]["id"] == "/models/after 3"
        assert alive(told["child"])
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"{server.urls[0]}/models")
    assert ends(told["child"])
    assert (tmp_path / "server.log").exists()


def test_it_ends_when_the_stage_fails(tmp_path):
    server = settings(tmp_path)
    with pytest.raises(RuntimeError, match="stage"), serving(server, "m", tmp_path / "server.log"):
        pid = httpx.get(f"{server.urls[0]}/models").json()["child"]
        raise RuntimeError("stage")
    assert ends(pid)


def test_what_answers_already_is_not_taken_for_the_server(tmp_path):
    server = settings(tmp_path)
    with serving(server, "old", tmp_path / "old.log"):
        with pytest.raises(InputError, match="answers before"), serving(server, "new", tmp_path / "new.log"):
            raise AssertionError("not reached")
        assert httpx.get(f"{server.urls[0]}/models").json()["data"][0]["id"] == "old"
    assert not (tmp_path / "new.log").exists()


@pytest.mark.parametrize(
    ("command", "limit", "words"),
    [
        ("/no/such/server {model}", 300, "cannot start /no/such/server"),
        (f"{sys.executable} -c 'raise SystemExit(7)' {{model}}", 300, "code 7"),
        (f"{sys.executable} -c 'import time; time.sleep(600)' {{model}}", 1.5, "no answer"),
    ],
)
def test_a_server_that_does_not_come_up_is_one_clear_error(tmp_path, command, limit, words):
    server = settings(tmp_path, command, start_timeout_s=limit)
    with pytest.raises(InputError, match=words), serving(server, "m", tmp_path / "server.log"):
        os.abort()


def test_without_a_command_nothing_is_started(tmp_path):
    with serving(EngineSettings(kind="http", urls=["http://127.0.0.1:1"]), "m", tmp_path / "server.log"):
        assert not (tmp_path / "server.log").exists()


def test_workers_have_time_to_leave_after_the_server_itself_has_ended(tmp_path):
    server = settings(tmp_path)
    with serving(server, "m", tmp_path / "server.log"):
        while not list(tmp_path.glob("shared-memory-*")):
            time.sleep(0.02)
    assert not list(tmp_path.glob("shared-memory-*"))
    assert not (tmp_path / "server.pid").exists()


def test_a_run_killed_with_9_takes_its_server_along(tmp_path):
    server = settings(tmp_path)
    with run_of(server, tmp_path) as run:
        pids = [asked(server)["child"], of(tmp_path, "server"), of(tmp_path, "guard")]
        run.kill()
        assert all(ends(pid) for pid in pids)
    assert not list(tmp_path.glob("shared-memory-*"))


def test_the_next_run_starts_although_the_killed_ones_server_may_still_be_there(tmp_path):
    server = settings(tmp_path)
    with run_of(server, tmp_path) as run:
        before = asked(server)["child"]
        run.kill()
        run.wait()
        with serving(server, "again", tmp_path / "server.log"):
            assert asked(server)["data"][0]["id"] == "again"
            assert not alive(before)


def test_what_guard_and_run_left_is_ended_by_the_next_run(tmp_path):
    server = settings(tmp_path)
    with run_of(server, tmp_path) as run:
        before = asked(server)["child"]
        os.kill(of(tmp_path, "guard"), signal.SIGKILL)
        run.kill()
        run.wait()
        assert asked(server)["child"] == before  # an orphan that answers
        with serving(server, "again", tmp_path / "server.log"):
            assert asked(server)["data"][0]["id"] == "again"
            assert not alive(before)


@pytest.mark.parametrize("known", ["{", "{}", "[]", '{"owner": "1 1 x", "guard": "1 1 x", "server": "1 1 x"}'])
def test_what_is_not_provably_ours_is_left_alone(tmp_path, known):
    server = settings(tmp_path)
    with run_of(server, tmp_path):
        (tmp_path / "other.pid").write_text(known)
        with pytest.raises(InputError, match="answers before"), serving(server, "new", tmp_path / "other.log"):
            os.abort()
        assert asked(server)["data"][0]["id"] == "m"


def test_a_living_runs_server_is_left_alone(tmp_path):
    server = settings(tmp_path)
    with (
        run_of(server, tmp_path),
        pytest.raises(InputError, match=r"server\.pid: process \d+ has a server running"),
        serving(server, "new", tmp_path / "server.log"),
    ):
        os.abort()


@pytest.mark.parametrize("who", ["server", "guard"])
def test_a_server_that_died_is_started_again(tmp_path, who):
    server = settings(tmp_path)
    with serving(server, "m", tmp_path / "server.log") as process:
        first = asked(server)["child"]
        assert not process.revive(1)  # it is alive
        pid = of(tmp_path, who)
        os.kill(pid, signal.SIGKILL)
        assert ends(pid)
        assert process.revive(1) and process.revive(1)  # the second time by another thread, say
        assert process.generation == 2
        assert asked(server)["child"] != first and ends(first)
        assert "listening" in process.last_words
    with pytest.raises(InputError, match="stopped"):
        process.revive(2)


def test_the_error_of_a_server_that_does_not_come_up_has_its_last_words(tmp_path):
    command = f"{sys.executable} -c 'raise SystemExit(chr(10).join([chr(98) * 2, \"no memory\"]))' {{model}}"
    server = settings(tmp_path, command)
    words = r"ended with code 1 .*: bb \| no memory$"
    with pytest.raises(InputError, match=words), serving(server, "m", tmp_path / "server.log"):
        os.abort()
