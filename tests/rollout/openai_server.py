"""An OpenAI-compatible server over a tiny model, with faults on demand: what the HTTP engine is tested against.

The process reads settings of a server (arguments of ``Server``) from each line of its input, forks that server and
prints its process id and port. POST /faults takes a list of faults, one for each of the completions that follow: 429,
429-after, 500, 400, truncate, garbage, short, hang, drop; null is none. GET /log says what it was asked.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch

from dapo_fast.config import ModelSettings
from dapo_fast.rollout.engine import SamplingParams
from dapo_fast.rollout.in_process import InProcessEngine

OPENAI_FIELDS = {"model", "prompt", "max_tokens", "temperature", "top_p", "seed"}
VLLM_FIELDS = {"n", "return_token_ids", "top_k", "min_p", "repetition_penalty"}


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(
        self, directory: str, port: int = 0, dialect: str = "vllm", key: str | None = None, hang: float = 3.0
    ) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.engine = InProcessEngine.load(directory, ModelSettings(device="cpu"), 64)
        self.dialect = dialect
        self.key = key
        self.hang = hang
        self.faults: list = []
        self.lock = threading.Lock()
        self.served = 0
        self.in_flight = 0
        self.most_in_flight = 0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_):
        """Silence."""

    def answer(self, body, status=200, headers=(), cut=False):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            self.close_connection = True

    def do_GET(self):
        if self.path == "/v1/models":
            self.answer({"data": [{"id": "tiny"}]})
        elif self.path == "/log":
            self.answer({"served": self.server.served, "most_in_flight": self.server.most_in_flight})
        else:
            self.answer({"error": "no such path"}, 404)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/faults":
            self.server.faults[:] = body
            self.answer({})
        elif self.server.key and self.headers.get("Authorization") != f"Bearer {self.server.key}":
            self.answer({"error": "wrong key"}, 401)
        elif self.path == "/tokenize" and self.server.dialect == "vllm":
            ids = self.server.engine.tokenizer(body["prompt"], add_special_tokens=body["add_special_tokens"])
            self.answer({"tokens": ids["input_ids"]})
        elif self.path == "/v1/completions":
            self.completions(body)
        else:
            self.answer({"error": "no such path"}, 404)

    def completions(self, body):
        server = self.server
        with server.lock:
            fault = server.faults.pop(0) if server.faults else None
            server.in_flight += 1
            server.most_in_flight = max(server.most_in_flight, server.in_flight)
        try:
            self.complete(body, fault)
        finally:
            with server.lock:
                server.in_flight -= 1

    def complete(self, body, fault):
        server, dialect = self.server, self.server.dialect
        if fault == "hang":
            time.sleep(server.hang)
        if fault == "drop":
            self.close_connection = True
            return
        if fault in (429, 500, 400):
            return self.answer({"error": f"fault {fault}"}, fault)
        if fault == "429-after":
            return self.answer({"error": "busy"}, 429, [("Retry-After", "0.2")])
        if fault == "garbage":
            return self.answer(["not", "an", "answer"])
        allowed = OPENAI_FIELDS | (VLLM_FIELDS if dialect == "vllm" else {"n"} if dialect == "ids" else set())
        if set(body) - allowed:
            return self.answer({"detail": f"unexpected {sorted(set(body) - allowed)}"}, 422)
        prompt = body["prompt"]
        if isinstance(prompt, str):
            prompt = server.engine.tokenizer(prompt)["input_ids"]
        elif dialect == "text":
            return self.answer({"detail": "prompt must be a string."}, 400)
        params = SamplingParams(
            body.get("n", 1), body["max_tokens"], body["temperature"], body["top_p"], body.get("seed", 0)
        )
        with server.lock:
            [samples] = server.engine.generate([prompt], params)
            server.served += 1
        choices = [self.choice(i, s, prompt, body) for i, s in enumerate(samples)]
        if fault == "short":
            choices = choices[:-1]
        self.answer({"choices": choices, "usage": {"prompt_tokens": len(prompt)}}, cut=fault == "truncate")

    @staticmethod
    def choice(index, sample, prompt, body):
        found = {"index": index, "text": sample.text, "finish_reason": "stop" if sample.finished else "length"}
        if body.get("return_token_ids"):
            found |= {"token_ids": sample.ids, "prompt_token_ids": prompt}
        return found


def main():
    """Fork a server for every line of settings on the standard input: importing everything takes longer than a test."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children that are killed leave nothing behind
    for line in sys.stdin:
        settings = json.loads(line)
        if os.fork() == 0:
            server = Server(**settings)
            print(json.dumps({"pid": os.getpid(), "port": server.server_address[1]}), flush=True)
            server.serve_forever()


if __name__ == "__main__":
    main()
