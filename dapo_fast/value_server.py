"""Step values over HTTP: what ``StepValues`` says of a response, for whoever is not Python or not on this machine.

``POST /values`` with ``{"prompt": text or messages, "response": text}`` is answered with ``{"steps": [{"text",
"before", "after"}]}``, and ``GET /health`` with ``{"model"}``. What is wrong with a request comes back as
``{"error"}``, status 400.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from dapo_fast.data.problems import KINDS, load_problems
from dapo_fast.data.rows import read_json, text
from dapo_fast.errors import InputError, blaming
from dapo_fast.step_values import StepValues

MOST_BYTES = 2**20  # of a request
_FIELDS = {"prompt", "response", "kind", "finished", "tools"}


def answer(values: StepValues, body: bytes) -> dict[str, Any]:
    """What a request is answered.

    Args:
        body: JSON of "prompt" and "response"; "kind", which decides what a chat template is told beside the prompt
            ("math" if left out, "code" or "open"); "finished", whether the response ends here (true if left out);
            "tools", for messages.

    Raises:
        InputError: names what is wrong with the request.
    """
    row = read_json(body, "request")
    if not isinstance(row, dict):
        raise InputError("request: must be a JSON object")
    if unknown := sorted(row.keys() - _FIELDS):
        raise InputError(f"request: there is no field {', '.join(unknown)}; there are {', '.join(sorted(_FIELDS))}")
    response, kind, finished = text(row, "response", "request"), row.get("kind", "math"), row.get("finished", True)
    if kind not in KINDS or not isinstance(finished, bool):
        raise InputError(f"request: 'kind' is one of {', '.join(KINDS)}, and 'finished' true or false")
    (problem,) = load_problems([{"prompt": row.get("prompt"), "tools": row.get("tools")}])
    return {"steps": [asdict(step) for step in values(replace(problem, kind=kind), response, finished)]}


def value_server(values: StepValues, name: str, host: str = "127.0.0.1", port: int = 8001) -> ThreadingHTTPServer:
    """A server of one model, bound and not yet serving: ``serve_forever`` does.

    Args:
        name: What /health calls the model.
        port: 0: one that is free (``server_address``).

    Raises:
        InputError: the address cannot be had.
    """
    one_at_a_time = threading.Lock()

    def answered(body: bytes) -> dict[str, Any]:
        with one_at_a_time:
            return answer(values, body)

    with blaming(f"--host {host} --port {port}", "no address to serve at"):
        return ThreadingHTTPServer((host, port), _handler(answered, name))


def _handler(answered: Callable[[bytes], dict[str, Any]], name: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 60  # of a client that says nothing

        def do_GET(self) -> None:
            self._send(200, {"model": name}) if self.path == "/health" else self._no_such_path()

        def do_POST(self) -> None:
            length = self.headers.get("Content-Length", "")
            if self.path != "/values":
                self._no_such_path()
            elif not (length.isascii() and length.isdecimal()) or int(length) > MOST_BYTES:
                self._drop(length)
                self._send(413, {"error": f"request: its length must be said, and at most {MOST_BYTES} bytes"})
            else:
                try:
                    self._send(200, answered(self.rfile.read(int(length))))
                except InputError as error:
                    self._send(400, {"error": str(error)})

        def _drop(self, length: str) -> None:
            """Read what is a little too long, since a client that is still sending would not read the answer."""
            self.close_connection = True
            if length.isascii() and length.isdecimal() and int(length) <= 16 * MOST_BYTES:
                self.rfile.read(int(length))

        def _no_such_path(self) -> None:
            self._send(404, {"error": f"{self.path}: there are POST /values and GET /health"})

        def _send(self, status: int, value: dict[str, Any]) -> None:
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: Any) -> None:
            """Nothing: a line a request would be most of what is said."""

    return Handler
