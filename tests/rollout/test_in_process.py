"""The in-process engine samples what the model says: the same as transformers, whatever shares the batch."""

import numpy as np
import pytest
import torch
from rollout_cases import byte_level_tokenizer, tiny_model
from transformers import DynamicCache

from dapo_fast.config import ModelSettings
from dapo_fast.errors import InputError
from dapo_fast.rollout.engine import SamplingParams
from dapo_fast.rollout.in_process import InProcessEngine
from dapo_fast.rollout.in_process import engine as in_process
from dapo_fast.rollout.in_process.draw import stream_keys, stream_uniforms
from dapo_fast.rollout.in_process.prefixes import prefix_groups
from dapo_fast.rollout.steps import split_steps

TOKENIZER = byte_level_tokenizer()
VOCABULARY = len(TOKENIZER)


def engine_for(kind="qwen2", max_rows=64, **more):
    return InProcessEngine(tiny_model(kind, VOCABULARY, **more), TOKENIZER, max_rows)


def prompts_of(seed=0, count=6, longest=24):
    """Random prompts, some of which begin others."""
    rng = np.random.default_rng(seed)
    prompts = []
    for _ in range(count):
        trunk = rng.integers(2, VOCABULARY, rng.integers(4, longest)).tolist()
        prompts += [trunk, trunk[: len(trunk) // 2], trunk[:1]]
    return [prompts[i] for i in rng.permutation(len(prompts))]


def fresh_logprobs(engine_kind, prompt, ids, **more):
    model = tiny_model(engine_kind, VOCABULARY, **more)
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + ids]), past_key_values=DynamicCache()).logits[0].float()
    rows = torch.log_softmax(logits[len(prompt) - 1 : -1], -1)
    return rows.gather(-1, torch.tensor(ids)[:, None])[:, 0]


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral"])
def test_greedy_is_transformers_greedy_token_for_token(kind):
    prompts = prompts_of()
    got = engine_for(kind, max_rows=5).generate(prompts, SamplingParams(n=1, max_tokens=20, temperature=0))
    model = tiny_model(kind, VOCABULARY)
    for prompt, [sample] in zip(prompts, got, strict=True):
        ids = torch.tensor([prompt])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False)
        assert sample.ids == out[0, len(prompt) :].tolist()
        assert sample.finished == (sample.ids[-1] == TOKENIZER.eos_token_id)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral"])
def test_logprobs_are_those_of_a_fresh_forward(kind):
    prompts = prompts_of(1)
    params = SamplingParams(n=3, max_tokens=16, temperature=0.8, top_p=0.9, seed=3, logprobs=True)
    for prompt, samples in zip(prompts, engine_for(kind, max_rows=7).generate(prompts, params), strict=True):
        for sample in samples:
            expected = fresh_logprobs(kind, prompt, sample.ids)
            torch.testing.assert_close(torch.tensor(sample.logprobs), expected, atol=2e-4, rtol=1e-4)


def test_samples_do_not_depend_on_what_shares_the_batch():
    prompts = prompts_of(2)
    params = SamplingParams(n=4, max_tokens=12, seed=7)
    whole = engine_for(max_rows=64).generate(prompts, params)
    for rows in (1, 3, 17):
        assert engine_for(max_rows=rows).generate(prompts, params) == whole
    assert engine_for().generate(prompts, SamplingParams(n=4, max_tokens=12, seed=8)) != whole
    assert engine_for().generate(prompts[:3], params) == whole[:3]


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.3, 0.8)])
def test_distribution_of_the_first_two_tokens(temperature, top_p):
    model = tiny_model("qwen2", 12, spread=20.0)
    engine = InProcessEngine(tiny_model("qwen2", 12, spread=20.0), TOKENIZER, 256)
    prompt = [5, 3, 8]
    n = 6000
    params = SamplingParams(n=n, max_tokens=2, temperature=temperature, top_p=top_p, seed=11)
    [samples] = engine.generate([prompt], params)
    firsts = np.bincount([s.ids[0] for s in samples], minlength=12)
    _fits(firsts, _distribution(model, prompt, temperature, top_p))
    common = int(np.argmax(np.where(np.arange(12) == TOKENIZER.eos_token_id, -1, firsts)))
    seconds = np.bincount([s.ids[1] for s in samples if s.ids[0] == common], minlength=12)
    _fits(seconds, _distribution(model, [*prompt, common], temperature, top_p))


def _distribution(model, prompt, temperature, top_p):
    with torch.inference_mode():
        p = torch.softmax(model(torch.tensor([prompt])).logits[0, -1].double() / temperature, -1).numpy()
    order = np.argsort(-p)
    kept = order[np.cumsum(p[order]) - p[order] < top_p]
    out = np.zeros_like(p)
    out[kept] = p[kept] / p[kept].sum()
    return out


def _fits(counts, distribution):
    assert counts[distribution == 0].sum() == 0
    expected = distribution * counts.sum()
    big = expected >= 5
    seen, wanted = counts[big].astype(float), expected[big]
    if not big.all() and expected[~big].sum() > 0:
        seen, wanted = np.append(seen, counts[~big].sum()), np.append(wanted, expected[~big].sum())
    assert len(seen) > 2
    assert chi_square_p(seen, wanted) > 1e-4


def chi_square_p(seen, wanted):
    """How likely counts as far from ``wanted`` are."""
    statistic = ((seen - wanted) ** 2 / wanted).sum()
    return torch.special.gammaincc(torch.tensor((len(seen) - 1) / 2), torch.tensor(statistic / 2)).item()


def test_random_numbers_are_uniform_and_each_row_has_its_own():
    keys = stream_keys(3, 50, 20)
    assert len(np.unique(keys)) == 1000
    values = np.stack([stream_uniforms(keys.ravel(), np.full(1000, t)) for t in range(50)])
    assert values.min() >= 0 and values.max() < 1
    counts = np.histogram(values, bins=100, range=(0, 1))[0]
    assert chi_square_p(counts, np.full(100, counts.mean())) > 1e-4
    assert abs(np.corrcoef(values[0], values[1])[0, 1]) < 0.15
    assert abs(np.corrcoef(values[:, 0], values[:, 1])[0, 1]) < 0.5


def test_budgets_ends_and_text():
    engine = engine_for(spread=1.0)
    prompts = prompts_of(3)
    budgets = tuple(1 + i % 9 for i in range(len(prompts)))
    ended = []
    for samples, budget in zip(engine.generate(prompts, SamplingParams(8, budgets, seed=1)), budgets, strict=True):
        assert len(samples) == 8
        for s in samples:
            assert 1 <= len(s.ids) <= budget
            assert s.finished == (s.ids[-1] == TOKENIZER.eos_token_id)
            assert s.finished or len(s.ids) == budget
            assert TOKENIZER.eos_token_id not in s.ids[:-1]
            assert s.text == TOKENIZER.decode(s.ids, skip_special_tokens=True)
            ended.append(s.finished)
    assert any(ended) and not all(ended)


def test_progress_counts_every_sample():
    seen = []
    engine_for(max_rows=4).generate(prompts_of(4), SamplingParams(3, 6), seen.append)
    assert sum(seen) == 3 * len(prompts_of(4))


def test_states_of_a_trunk_are_prefilled_once():
    engine = engine_for()
    trunk = prompts_of(5, count=1, longest=40)
    trunk = max(trunk, key=len)
    states = [trunk[:k] for k in range(1, len(trunk) + 1)]
    engine.generate(states, SamplingParams(n=2, max_tokens=4))
    assert engine.prefilled_tokens == len(trunk)


def test_prefix_groups():
    prompts = [[1, 2, 3], [1], [1, 2], [1, 3], [2], [1, 2, 3]]
    groups = prefix_groups(prompts)
    assert sorted(i for _, members in groups for i in members) == list(range(6))
    for longest, members in groups:
        assert all(prompts[longest][: len(prompts[i])] == prompts[i] for i in members)
    assert len(groups) == 3


def test_stopping_at_a_step_gives_the_first_step_of_the_whole_sample():
    engine = engine_for(spread=1.0)
    prompts = prompts_of(6)
    newline = TOKENIZER("\n", add_special_tokens=False)["input_ids"][0]
    with torch.no_grad():
        engine.model.lm_head.weight[newline] = engine.model.lm_head.weight.mean(0)
    whole = engine.generate(prompts, SamplingParams(6, 40, seed=2))
    cut = engine.generate(prompts, SamplingParams(6, 40, seed=2, stop="line"))
    shorter = 0
    for a, b in zip(whole, cut, strict=True):
        for long, short in zip(a, b, strict=True):
            assert short.ids == long.ids[: split_steps(long.ids, TOKENIZER)[0]]
            shorter += len(short.ids) < len(long.ids)
    assert shorter > 0


def test_what_cannot_be_sampled_is_refused():
    engine = engine_for(max_position_embeddings=16)
    with pytest.raises(InputError, match="prompt 1: empty"):
        engine.generate([[3], []], SamplingParams(1, 4))
    with pytest.raises(InputError, match="vocabulary"):
        engine.generate([[VOCABULARY]], SamplingParams(1, 4))
    with pytest.raises(InputError, match="fill the context of"):
        engine.generate([[3] * 16], SamplingParams(1, 4))
    [[sample]] = engine.generate([[3] * 14], SamplingParams(1, 40))
    assert len(sample.ids) <= 2
    assert engine.generate([], SamplingParams(1, 4)) == []
    with pytest.raises(InputError, match="max_tokens"):
        engine.generate([[3], [4]], SamplingParams(1, (4,)))
    broken = engine_for()
    with torch.no_grad():
        broken.model.lm_head.weight.fill_(float("nan"))
    for temperature in (1.0, 0.0):
        with pytest.raises(InputError, match="not finite"):
            broken.generate([[3]], SamplingParams(1, 4, temperature=temperature))


@pytest.mark.parametrize("bad", [{"n": 0}, {"max_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}])
def test_bad_parameters_are_refused(bad):
    with pytest.raises(InputError, match=next(iter(bad))):
        SamplingParams(**{"n": 1, "max_tokens": 4} | bad)


def test_loading_a_directory(tmp_path):
    tiny_model("llama", VOCABULARY).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="tokenizer"):
        InProcessEngine.load(tmp_path, ModelSettings(device="cpu"))
    TOKENIZER.save_pretrained(tmp_path)
    engine = InProcessEngine.load(tmp_path, ModelSettings(device="cpu"), 8)
    params = SamplingParams(2, 5, seed=1)
    assert engine.generate([[3, 4]], params) == engine_for("llama").generate([[3, 4]], params)


def test_a_cpu_with_bf16_products_samples_larger_models_in_bf16(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "dapo_fast.rollout.in_process")
    tiny_model("llama", VOCABULARY).save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    auto = ModelSettings(device="cpu")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    assert InProcessEngine.load(tmp_path, auto, 8).model.dtype == torch.float32  # too small to gain
    monkeypatch.setattr(in_process, "BF16_PARAMETERS", 1000)
    engine = InProcessEngine.load(tmp_path, auto, 8)
    assert engine.model.dtype == torch.bfloat16 and "in torch.bfloat16" in caplog.text
    assert engine.model.model.rotary_emb.inv_freq.dtype == torch.float32
    params = SamplingParams(3, 20, seed=1, logprobs=True)
    exact = engine_for("llama")
    for prompt, samples in zip(prompts_of(), engine.generate(prompts_of(), params), strict=True):
        for sample in samples:
            with torch.inference_mode():
                logits = exact.model(torch.tensor([prompt + sample.ids])).logits[0, len(prompt) - 1 : -1]
            expected = logits.log_softmax(-1).gather(1, torch.tensor(sample.ids)[:, None])[:, 0]
            torch.testing.assert_close(torch.tensor(sample.logprobs), expected, atol=0.2, rtol=0.05)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True}, raising=False)
    assert InProcessEngine.load(tmp_path, auto, 8).model.dtype == torch.float32
    monkeypatch.undo()
    assert InProcessEngine.load(tmp_path, ModelSettings(device="cpu", dtype="float32"), 8).model.dtype == torch.float32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda(tmp_path):
    tiny_model("qwen2", VOCABULARY).save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    engine = InProcessEngine.load(tmp_path, ModelSettings(device="cuda", dtype="bfloat16"), 16)
    prompts = prompts_of()
    params = SamplingParams(n=3, max_tokens=12, seed=3, logprobs=True)
    for prompt, samples in zip(prompts, engine.generate(prompts, params), strict=True):
        for sample in samples:
            expected = fresh_logprobs("qwen2", prompt, sample.ids)
            torch.testing.assert_close(torch.tensor(sample.logprobs), expected, atol=0.3, rtol=0.05)
