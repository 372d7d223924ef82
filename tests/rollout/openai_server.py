"""An OpenAI-compatible server over a tiny model, with faults on demand: what the HTTP engine is tested against.

``openai_server.py MODEL PORT [SETTINGS]`` is one server, as ``engine.command`` starts it; ``fork_servers`` has one for
every line of settings. POST /faults takes a list of faults, one for each of the completions that follow, from
``FAULTS``; null is none. GET /log says what it was asked.

As vLLM does, it says its context (max_model_len) and refuses what does not fit in it, takes several prompts at once and
names what it stopped at (stop_reason). ``seeds`` "fail" and "die" are vLLM's CPU engine on a seeded request.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch

from dapo_fast.config import ModelSettings
from dapo_fast.rollout.engine import SamplingParams
from dapo_fast.rollout.in_process import InProcessEngine

OPENAI_FIELDS = {"model", "prompt", "max_tokens", "temperature", "top_p", "seed"}
OFFSET = "CPU Generator does not use offset"
# What each does to one completion: an error status; an answer that is half there, no answer, of another form, with too
# few choices; none for a while, none at all, a reset; tokens that cannot be; the end of the server.
FAULTS = (429, "429-after", 500, 502, 507, 400, "truncate", "garbage", "short", "hang", "drop", "reset", "abort")
WRONG = ("wrong-ids", "negative-ids", "too-many", "other-prompt")
VLLM_FIELDS = {"n", "return_token_ids", "top_k", "min_p", "repetition_penalty"}


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(
        self,
        directory: str,
        port: int = 0,
        dialect: str = "vllm",
        key: str | None = None,
        hang: float = 3.0,
        max_model_len: int = 512,
        seeds: str = "work",
        stop_at: int | None = None,
        faults: tuple = (),
    ) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.max_model_len = max_model_len
        self.seeds = seeds
        self.stop_at = stop_at
        self.engine = InProcessEngine.load(directory, ModelSettings(device="cpu"), 64)
        self.dialect = dialect
        self.key = key
        self.hang = hang
        self.faults = list(faults)
        self.seeded = 0
        self.lock = threading.Lock()
        self.served = 0
        self.tokens = 0
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
            known = {"max_model_len": self.server.max_model_len} if self.server.dialect == "vllm" else {}
            self.answer({"data": [{"id": "other", "max_model_len": 7}, {"id": "tiny"} | known][::-1]})
        elif self.path == "/log":
            names = ("served", "tokens", "most_in_flight", "seeded")
            self.answer({"pid": os.getpid()} | {name: getattr(self.server, name) for name in names})
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
        if fault == "die":
            print("the worker was killed", flush=True)
            os._exit(1)
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())
        if fault in ("drop", "reset"):
            self.close_connection = True
            return
        if "seed" in body and server.seeds != "work":
            self.answer({"error": {"message": OFFSET}}, 500)
            if server.seeds == "die":
                print("RuntimeError:", OFFSET, flush=True)
                os._exit(1)
            return
        if isinstance(fault, int):
            return self.answer({"error": {"message": f"fault {fault}"}}, fault)
        if fault == "429-after":
            return self.answer({"error": "busy"}, 429, [("Retry-After", "0.2")])
        if fault == "garbage":
            return self.answer(["not", "an", "answer"])
        allowed = OPENAI_FIELDS | (VLLM_FIELDS if dialect == "vllm" else {"n"} if dialect == "ids" else set())
        if set(body) - allowed:
            return self.answer({"detail": f"unexpected {sorted(set(body) - allowed)}"}, 422)
        prompts = body["prompt"]
        if isinstance(prompts, str) or isinstance(prompts[0], int):
            prompts = [prompts]
        if isinstance(prompts[0], str):
            prompts = [server.engine.tokenizer(prompt)["input_ids"] for prompt in prompts]
        elif dialect == "text":
            return self.answer({"detail": "prompt must be a string."}, 400)
        if max(map(len, prompts)) + body["max_tokens"] > server.max_model_len:
            return self.answer({"error": f"maximum context length is {server.max_model_len} tokens"}, 400)
        params = SamplingParams(
            body.get("n", 1), body["max_tokens"], body["temperature"], body["top_p"], body.get("seed", 0)
        )
        with server.lock:
            groups = server.engine.generate(prompts, params)
            server.served += 1
            server.tokens += sum(len(sample.ids) for group in groups for sample in group)
            server.seeded += "seed" in body
        pairs = [(prompt, sample) for prompt, group in zip(prompts, groups, strict=True) for sample in group]
        choices = [self.choice(i, sample, prompt, body) for i, (prompt, sample) in enumerate(pairs)]
        if fault == "short":
            choices = choices[:-1]
        if fault == "abort":
            choices[0]["finish_reason"] = "abort"
        if fault in WRONG:
            wrong = {"wrong-ids": [10**6], "negative-ids": [-1], "too-many": [2] * (body["max_tokens"] + 1)}
            choices[0] |= {"token_ids": wrong[fault]} if fault in wrong else {"prompt_token_ids": [2]}
        self.answer({"choices": choices, "usage": {"prompt_tokens": len(prompts[0])}}, cut=fault == "truncate")

    def choice(self, index, sample, prompt, body):
        ids, finished, stop = sample.ids, sample.finished, self.server.stop_at
        reason = None
        if stop in ids[:-1]:
            ids, finished, reason = ids[: ids.index(stop) + 1], True, stop
        found = {"index": index, "text": sample.text, "finish_reason": "stop" if finished else "length"}
        if body.get("return_token_ids"):
            found |= {"token_ids": ids, "prompt_token_ids": prompt, "stop_reason": reason}
        return found


def fork_servers(lines, answers):
    """For every line of settings (arguments of ``Server``) fork that server, and answer its process id and port."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children that are killed leave nothing behind
    for line in lines:
        settings = json.loads(line)
        if os.fork() == 0:
            server = Server(**settings)
            print(json.dumps({"pid": os.getpid(), "port": server.server_address[1]}), file=answers, flush=True)
            server.serve_forever()


if __name__ == "__main__":
    torch.set_num_threads(1)
    more = json.loads(sys.argv[3]) if len(sys.argv) > 3 else {}
    Server(sys.argv[1], int(sys.argv[2]), **more).serve_forever()
