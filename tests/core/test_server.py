"""A sampling server that lives as long as a stage needs it."""

import os
import socket
import sys
import time
from pathlib import Path

import httpx
import pytest

from dapo_fast.config import EngineSettings
from dapo_fast.errors import InputError
from dapo_fast.rollout.server import serving

SERVER = """
import http.server, json, subprocess, sys
model, port = sys.argv[1:]
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"data": [{"id": model}], "child": child.pid}).encode()
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): print("asked")
http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()
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


def alive(pid):
    # A killed child that nobody has waited for yet is a zombie, which is dead.
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def ends(pid):
    # A process that was sent SIGKILL is gone once the kernel gets to it.
    return any(not alive(pid) or time.sleep(0.05) for _ in range(400))


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
    ("command", "words"),
    [
        ("/no/such/server {model}", "cannot start /no/such/server"),
        (f"{sys.executable} -c 'raise SystemExit(7)' {{model}}", "code 7"),
        (f"{sys.executable} -c 'import time; time.sleep(60)' {{model}}", "no answer"),
    ],
)
def test_a_server_that_does_not_come_up_is_one_clear_error(tmp_path, command, words):
    server = settings(tmp_path, command, start_timeout_s=1.5)
    with pytest.raises(InputError, match=words), serving(server, "m", tmp_path / "server.log"):
        os.abort()


def test_without_a_command_nothing_is_started(tmp_path):
    with serving(EngineSettings(kind="http", urls=["http://127.0.0.1:1"]), "m", tmp_path / "server.log"):
        assert not (tmp_path / "server.log").exists()
