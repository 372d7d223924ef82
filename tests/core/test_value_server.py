"""Step values over HTTP: those of ``StepValues``, and one line about whatever is wrong with a request."""

import json
import threading
import urllib.error
import urllib.request
from http.client import HTTPConnection

import pytest

from dapo_fast.cli import main
from dapo_fast.errors import InputError
from dapo_fast.step_values import ValuedStep
from dapo_fast.value_server import value_server


class Known:
    """Stands for a critic: says what it was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, problem, response, finished):
        self.asked.append((problem, response, finished))
        return [ValuedStep(response, 0.25, None if finished else 0.75)]


@pytest.fixture(scope="module")
def served():
    values = Known()
    with value_server(values, "a critic", port=0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield values, f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def ask(served, body, path="/values"):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(served[1] + path, data, timeout=20) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_values_of_a_response(served):
    assert ask(served, {"prompt": "1+1?", "response": "2"}) == (
        200, {"steps": [{"text": "2", "before": 0.25, "after": None}]},
    )  # fmt: skip
    problem, response, finished = served[0].asked[-1]
    assert (problem.prompt, problem.kind, response, finished) == ("1+1?", "math", "2", True)
    messages = [{"role": "user", "content": "f?"}]
    status, said = ask(served, {"prompt": messages, "response": "", "kind": "code", "finished": False})
    assert status == 200 and said["steps"][0]["after"] == 0.75
    assert served[0].asked[-1][0].messages == messages and served[0].asked[-1][0].kind == "code"
    with urllib.request.urlopen(served[1] + "/health", timeout=20) as response:
        assert json.load(response) == {"model": "a critic"}


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"{", 400, "request: not valid JSON"),
        ([], 400, "request: must be a JSON object"),
        ({"prompt": "1+1?"}, 400, "request: 'response' must be text, not null"),
        ({"response": "2"}, 400, "'prompt' must be text or messages, not null"),
        ({"prompt": [{"role": "user"}], "response": "2"}, 400, "prompt, message 1: 'content' must be text"),
        ({"prompt": "1", "response": "2", "kind": "chess"}, 400, "'kind' is one of math, code, open"),
        ({"prompt": "1", "response": "2", "finished": "no"}, 400, "'finished' true or false"),
        ({"prompt": "1", "response": "2", "answer": "2"}, 400, "request: there is no field answer"),
        (b" " * (2**20 + 1), 413, "at most 1048576 bytes"),
    ],
)
def test_what_is_wrong_with_a_request(body, status, words, served):
    got, said = ask(served, body)
    assert got == status and words in said["error"] and "\n" not in said["error"]


def test_other_paths_and_lengths(served):
    assert ask(served, {}, "/elsewhere")[0] == 404
    connection = HTTPConnection(served[1].removeprefix("http://"), timeout=20)
    connection.putrequest("POST", "/values")
    connection.putheader("Content-Length", "-1")
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()


def test_an_address_that_cannot_be_had_is_one_line(served, tmp_path, capsys):
    port = int(served[1].rpartition(":")[2])
    for wrong in (port, 70_000):
        with pytest.raises(InputError, match=rf"--host 127\.0\.0\.1 --port {wrong}: "):
            value_server(Known(), "a critic", port=wrong)
    for host in ("a\0b", "\udcff"):
        with pytest.raises(InputError, match=r"--host .* --port 0: no address to serve at"):
            value_server(Known(), "a critic", host, port=0)
    assert main(["serve-values", str(tmp_path / "run"), "--preset", "arithmetic"]) == 2
    assert "nothing here yet of critic" in capsys.readouterr().err
