"""The HTTP engine against a real server process on loopback, in good days and bad."""

import logging
import shutil
import threading
import time

import httpx
import pytest
from openai_server import OFFSET, WRONG
from rollout_cases import byte_level_tokenizer, tiny_model

from dapo_fast.config import EngineSettings, ModelSettings
from dapo_fast.errors import InputError
from dapo_fast.rollout.engine import SamplingParams, make_engine
from dapo_fast.rollout.http import HttpEngine, ServerError
from dapo_fast.rollout.http import engine as http_engine
from dapo_fast.rollout.http.answers import end_of
from dapo_fast.rollout.http.client import retry_after
from dapo_fast.rollout.steps import Splitter

pytestmark = pytest.mark.usefixtures("quick_retries")
TOKENIZER = byte_level_tokenizer()
PROMPTS = [TOKENIZER(t)["input_ids"] for t in ("Let x = 3.\n", "So", "Then we add: 12", "数学")]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("policy")
    tiny_model("qwen2", len(TOKENIZER)).save_pretrained(path)
    TOKENIZER.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def vllm(serve):
    with serve() as (url, _):
        yield url


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


def test_an_end_token_that_is_none_is_refused_before_a_server_is_asked(directory, tmp_path):
    policy = shutil.copytree(directory, tmp_path / "policy")
    (policy / "generation_config.json").write_text('{"eos_token_id": [1, -7]}')
    with pytest.raises(InputError, match=r"policy: generation_config\.json: eos_token_id is \[1, -7\]"):
        engine(policy, "http://127.0.0.1:9")


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


@pytest.mark.parametrize("chunk", [1, 3, 32])
def test_first_steps_are_those_of_the_in_process_engine(directory, vllm, monkeypatch, chunk):
    monkeypatch.setattr(http_engine, "STEP_TOKENS", chunk)
    local = make_engine(EngineSettings(), directory, ModelSettings(device="cpu"))
    client = engine(directory, vllm)
    seen = []
    for stop in ("line", "regex:[aeiou]"):
        params = SamplingParams(1, (1, 30, 30, 25), temperature=0, stop=stop)
        assert client.generate(PROMPTS, params, seen.append) == local.generate(PROMPTS, params)
    assert sum(seen) == 2 * len(PROMPTS)


def test_first_steps_cost_little_more_than_their_tokens(directory, vllm, monkeypatch):
    monkeypatch.setattr(http_engine, "STEP_TOKENS", 4)
    client = engine(directory, vllm)
    params = SamplingParams(5, 60, seed=1, stop="regex:[aeiou]")
    before = httpx.get(f"{vllm}/log").json()["tokens"]
    cut = client.generate(PROMPTS, params)
    spent = httpx.get(f"{vllm}/log").json()["tokens"] - before
    check(cut, 5, 60)
    splitter = Splitter(client.tokenizer, params.stop)
    assert all(splitter.first(s.ids) == len(s.ids) for group in cut for s in group)
    steps = sum(len(s.ids) for group in cut for s in group)
    assert steps <= spent <= steps + 5 * 5 * len(PROMPTS)
    assert client.generate(PROMPTS, params) == cut


def test_first_steps_through_text_alone_are_cut_here(directory, serve):
    with serve(dialect="text") as (url, _):
        cut = engine(directory, url).generate(PROMPTS[:2], SamplingParams(3, 30, seed=1, stop="regex:[aeiou]"))
        whole = engine(directory, url).generate(PROMPTS[:2], SamplingParams(3, 30, seed=1))
    assert all(a.ids == b.ids[: len(a.ids)] for x, y in zip(cut, whole) for a, b in zip(x, y))


@pytest.mark.parametrize("bad", [429, "429-after", 500, 507, "truncate", "garbage", "short", "drop", "reset", "abort"])
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
    with pytest.raises(ServerError, match=r"HTTP 500: .*fault 500.*; given up after 2 retries"):
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
            thread.join(600)
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
    with pytest.raises(InputError, match="is it up"):
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
def testretry_after(header, low, high):
    response = httpx.Response(429, headers={} if header is None else {"Retry-After": header})
    seconds = retry_after(response)
    assert seconds == low if low is None else low <= seconds <= high


def test_retry_after_a_date():
    later = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 30))
    assert 20 <= retry_after(httpx.Response(429, headers={"Retry-After": later})) <= 31


# What vLLM does ------------------------------------------------------------------------------------------------------


def test_one_line_for_all_requests_that_wait(directory, vllm, caplog):
    engine_ = engine(directory, vllm)
    fault(vllm, *[500] * 20)
    with caplog.at_level(logging.INFO):
        engine_.generate(PROMPTS * 5, SamplingParams(1, 4))
    assert caplog.text.count("asked again") == 1 and "HTTP 500" in caplog.text and "fault 500" in caplog.text


@pytest.mark.parametrize("bad", WRONG)
def test_what_cannot_be_an_answer_is_an_error_at_once(directory, vllm, bad):
    engine_ = engine(directory, vllm)
    fault(vllm, bad)
    before = httpx.get(f"{vllm}/log").json()["served"]
    with pytest.raises(ServerError, match=r"token id (1000000|-1)|5 tokens where at most 4|changed a prompt"):
        engine_.generate(PROMPTS[:1], SamplingParams(1, 4))
    assert httpx.get(f"{vllm}/log").json()["served"] == before + 1


def test_a_stop_that_is_no_end_token_is_not_taken_for_one(directory, serve):
    params = SamplingParams(n=4, max_tokens=12, seed=5)
    with serve() as (url, _):
        whole = engine(directory, url).generate(PROMPTS, params)
    ids = [token for group in whole for s in group for token in s.ids[:-1] if token != TOKENIZER.eos_token_id]
    stop = max(set(ids), key=ids.count)
    with serve(stop_at=stop) as (url, _):
        cut = engine(directory, url).generate(PROMPTS, params)
    pairs = [(a, b) for x, y in zip(whole, cut) for a, b in zip(x, y)]
    assert any(stop in a.ids[:-1] for a, _ in pairs)
    for a, b in pairs:
        if stop in a.ids[:-1]:
            assert b.ids == a.ids[: a.ids.index(stop) + 1] and not b.finished
        else:
            assert b == a


@pytest.mark.parametrize("more", [{"stop_reason": 7}, {"stop_reason": "User:"}, {"matched_stop": "\n"}])
def test_ends_by_name(more):
    choice = {"finish_reason": "stop"}
    assert end_of(choice | more, [5, 6], {1, 2}, 1) is None
    assert end_of(choice | {"stop_reason": None}, [5, 6], {1, 2}, 1) == [5, 6, 1]
    assert end_of(choice | {"stop_reason": 2}, [5, 6], {1, 2}, 1) == [5, 6, 2]
    assert end_of(choice | more, [5, 2, 6], {1, 2}, 1) == [5, 2]
    assert end_of({"finish_reason": "length"}, [5, 6], {1, 2}, 1) is None


def test_the_context_is_the_servers(directory, serve, caplog):
    with serve(max_model_len=70) as (url, _):
        engine_ = engine(directory, url)
        assert engine_.context == 70
        prompt = (PROMPTS[0] * 20)[:64]
        groups = engine_.generate([prompt], SamplingParams(3, 30))
        assert all(len(s.ids) <= 6 for s in groups[0]) and "1 of 1 prompts have less" in caplog.text
        with pytest.raises(InputError, match="prompt 1: 70 tokens fill the context of 70"):
            engine_.generate([prompt, (PROMPTS[0] * 20)[:70]], SamplingParams(1, 4))


@pytest.mark.parametrize("asked", ["auto", True, False])
def test_seeds_that_a_server_fails_at(directory, serve, asked, caplog):
    with serve(seeds="fail") as (url, _):
        engine_ = engine(directory, url, seed=asked, retries=3)
        params = SamplingParams(n=2, max_tokens=12, seed=5)
        if asked is True:
            with pytest.raises(ServerError, match=OFFSET):
                engine_.generate(PROMPTS, params)
            return
        assert not engine_.seeds
        check(engine_.generate(PROMPTS, params), 2)
    assert "CANNOT be repeated" in caplog.text


def test_seeds_are_used_where_they_work(directory, serve, caplog):
    for asked, seeded in (("auto", True), (True, True), (False, False)):
        with serve() as (url, _):
            engine_ = engine(directory, url, seed=asked)
            before = httpx.get(f"{url}/log").json()["seeded"]
            engine_.generate(PROMPTS, SamplingParams(1, 4))
            assert (httpx.get(f"{url}/log").json()["seeded"] == before + len(PROMPTS)) == seeded


def test_a_failure_while_seeds_are_tried_is_not_taken_for_theirs(directory, serve, caplog):
    for faults in ([500], [503, "reset"]):
        with serve(faults=[None] * 2 + faults) as (url, _):
            assert engine(directory, url).seeds
