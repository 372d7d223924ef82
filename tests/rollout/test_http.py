"""The HTTP engine against a real server process on loopback, in good days and bad."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from rollout_cases import byte_level_tokenizer, tiny_model

import dapo_fast.rollout.http as http_module
from dapo_fast.config import EngineSettings, ModelSettings
from dapo_fast.errors import InputError
from dapo_fast.rollout.engine import SamplingParams, make_engine
from dapo_fast.rollout.http import HttpEngine, ServerError, _retry_after

SERVER = Path(__file__).with_name("openai_server.py")
TOKENIZER = byte_level_tokenizer()
PROMPTS = [TOKENIZER(t)["input_ids"] for t in ("Let x = 3.\n", "So", "Then we add: 12", "数学")]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("policy")
    tiny_model("qwen2", len(TOKENIZER)).save_pretrained(path)
    TOKENIZER.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def launcher():
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen([sys.executable, str(SERVER)], env=environment, **pipes) as process:
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


@pytest.fixture(scope="module")
def vllm(serve):
    with serve() as (url, _):
        yield url


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch):
    monkeypatch.setattr(http_module, "_FIRST_WAIT", 0.02)
    monkeypatch.setattr(http_module, "_DOWN_SECONDS", 0.1)


def engine(directory, *urls, **more):
    return HttpEngine(EngineSettings(kind="http", urls=list(urls), **{"timeout_s": 20, "retries": 6} | more), directory)


def fault(url, *faults):
    httpx.post(f"{url}/faults", json=list(faults)).raise_for_status()


def check(groups, n, budget=12):
    assert len(groups) == len(PROMPTS)
    for samples in groups:
        assert len(samples) == n
        for s in samples:
            assert 1 <= len(s.ids) <= budget
            assert s.finished == (s.ids[-1] == TOKENIZER.eos_token_id)
            assert s.text == TOKENIZER.decode(s.ids, skip_special_tokens=True)


def test_token_ids_in_and_out(directory, vllm):
    client = make_engine(EngineSettings(kind="http", urls=[vllm + "/v1"]), directory, ModelSettings())
    assert client.dialect.ids_in and client.dialect.ids_out and client.dialect.many
    assert client.model_name == "tiny"
    seen = []
    params = SamplingParams(n=5, max_tokens=12, seed=3)
    groups = client.generate(PROMPTS, params, seen.append)
    check(groups, 5)
    assert sum(seen) == 20
    assert client.generate(PROMPTS, params) == groups
    assert client.generate(PROMPTS, SamplingParams(n=5, max_tokens=12, seed=4)) != groups
    assert len({tuple(s.ids) for s in groups[0]}) > 1


def test_greedy_is_the_in_process_engines(directory, vllm):
    params = SamplingParams(n=1, max_tokens=12, temperature=0)
    local = make_engine(EngineSettings(), directory, ModelSettings(device="cpu"))
    assert engine(directory, vllm).generate(PROMPTS, params) == local.generate(PROMPTS, params)


def test_budgets_of_each_prompt_and_stop(directory, vllm):
    client = engine(directory, vllm)
    groups = client.generate(PROMPTS, SamplingParams(3, (1, 2, 3, 4)))
    assert all(len(s.ids) <= budget for group, budget in zip(groups, (1, 2, 3, 4)) for s in group)
    cut = client.generate(PROMPTS, SamplingParams(3, 30, seed=1, stop="regex:[aeiou]"))
    whole = client.generate(PROMPTS, SamplingParams(3, 30, seed=1))
    assert all(a.ids == b.ids[: len(a.ids)] for x, y in zip(cut, whole) for a, b in zip(x, y))
    assert sum(len(s.ids) for g in cut for s in g) < sum(len(s.ids) for g in whole for s in g)


@pytest.mark.parametrize("bad", [429, "429-after", 500, "truncate", "garbage", "short", "drop"])
def test_a_fault_costs_nothing_but_time(directory, vllm, bad):
    client = engine(directory, vllm)
    params = SamplingParams(n=2, max_tokens=12, seed=5)
    expected = client.generate(PROMPTS, params)
    fault(vllm, bad, None, bad, bad)
    assert client.generate(PROMPTS, params) == expected


def test_a_hang_is_given_up_and_asked_again(directory, serve):
    with serve(hang=6.0) as (url, _):
        client = engine(directory, url, timeout_s=1.5)
        params = SamplingParams(n=2, max_tokens=12, seed=5)
        expected = client.generate(PROMPTS, params)
        fault(url, "hang")
        assert client.generate(PROMPTS, params) == expected


def test_retries_are_spent(directory, vllm):
    client = engine(directory, vllm, retries=2)
    fault(vllm, *[500] * 20)
    with pytest.raises(ServerError, match=r"HTTP 500; given up after 2 retries"):
        client.generate(PROMPTS, SamplingParams(1, 4))
    fault(vllm)


def test_a_refusal_is_not_repeated(directory, vllm):
    client = engine(directory, vllm)
    fault(vllm, 400)
    before = httpx.get(f"{vllm}/log").json()["served"]
    with pytest.raises(ServerError, match=r"HTTP 400: .*fault 400"):
        client.generate(PROMPTS[:1], SamplingParams(1, 4))
    assert httpx.get(f"{vllm}/log").json()["served"] == before


def test_concurrency_is_bounded(directory, serve):
    with serve() as (url, _):
        engine(directory, url, concurrency=2).generate(PROMPTS * 5, SamplingParams(1, 4))
        assert httpx.get(f"{url}/log").json()["most_in_flight"] <= 2


def test_a_restart_in_the_middle(directory, serve):
    params = SamplingParams(n=2, max_tokens=12, seed=5)
    with serve() as (url, kill):
        port = url.rsplit(":", 1)[1]
        client = engine(directory, url, retries=12, concurrency=1)
        expected = client.generate(PROMPTS, params)
        kill()
        found = []
        thread = threading.Thread(target=lambda: found.extend(client.generate(PROMPTS, params)))
        thread.start()
        time.sleep(0.3)
        with serve(port=int(port)):
            thread.join(60)
            assert found == expected


def test_two_servers_of_which_one_dies(directory, serve, vllm):
    params = SamplingParams(n=2, max_tokens=12, seed=5)
    with serve() as (url, kill):
        client = engine(directory, vllm, url)
        expected = client.generate(PROMPTS * 4, params)
        assert httpx.get(f"{url}/log").json()["served"] > 3  # the work is shared
        kill()
        assert client.generate(PROMPTS * 4, params) == expected


@pytest.mark.parametrize("dialect", ["vllm", "ids", "text"])
def test_a_wrong_tokenizer_is_found_out(directory, serve, tmp_path, dialect, caplog):
    other = byte_level_tokenizer(270)
    tiny_model("qwen2", len(TOKENIZER)).save_pretrained(tmp_path)
    other.save_pretrained(tmp_path)
    with serve(tmp_path, dialect=dialect) as (url, _):
        if dialect == "ids":  # nothing to compare with: said, not hidden
            engine(directory, url)
            assert "NOT checked" in caplog.text
        else:
            with pytest.raises(InputError, match="its tokenizer"):
                engine(directory, url)


@pytest.mark.parametrize("dialect", ["ids", "text"])
def test_servers_that_speak_text(directory, serve, dialect, caplog):
    with serve(dialect=dialect) as (url, _), caplog.at_level(logging.WARNING):
        client = engine(directory, url)
        assert client.dialect.ids_in == (dialect == "ids") and not client.dialect.ids_out
        assert client.dialect.many == (dialect == "ids")
        groups = client.generate(PROMPTS, SamplingParams(3, 12, seed=2))
    assert [len(g) for g in groups] == [3] * len(PROMPTS)
    assert len({tuple(s.ids) for s in groups[0]}) > 1
    assert "tokenized here" in caplog.text


def test_the_key_comes_from_the_environment_and_is_never_written(directory, serve, monkeypatch, caplog):
    with serve(key="secret-123") as (url, _), caplog.at_level(logging.DEBUG):
        monkeypatch.delenv("OPENAI_API_KEY", raising=False)
        with pytest.raises(InputError, match="DAPO_FAST_API_KEY"):
            engine(directory, url)
        monkeypatch.setenv("DAPO_FAST_API_KEY", "secret-123")
        check(engine(directory, url).generate(PROMPTS, SamplingParams(2, 12)), 2)
    assert "secret-123" not in caplog.text


def test_no_server(directory):
    with pytest.raises(InputError, match="is the server up"):
        engine(directory, "http://127.0.0.1:9", retries=1)
    with pytest.raises(InputError, match="is it up"):
        engine(directory, "http://127.0.0.1:9", retries=1, model_name="tiny")


def test_what_a_server_cannot_do_is_refused(directory, vllm):
    client = engine(directory, vllm)
    with pytest.raises(InputError, match="logprobs"):
        client.generate(PROMPTS, SamplingParams(1, 4, logprobs=True))
    with pytest.raises(InputError, match="empty"):
        client.generate([[]], SamplingParams(1, 4))


@pytest.mark.parametrize(("header", "low", "high"), [("3", 3, 3), ("-1", 0, 0), ("x", None, None), (None, None, None)])
def test_retry_after(header, low, high):
    response = httpx.Response(429, headers={} if header is None else {"Retry-After": header})
    seconds = _retry_after(response)
    assert seconds == low if low is None else low <= seconds <= high


def test_retry_after_a_date():
    later = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 30))
    assert 20 <= _retry_after(httpx.Response(429, headers={"Retry-After": later})) <= 31
