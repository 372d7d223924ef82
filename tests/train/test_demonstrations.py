"""Demonstrations beside the actor's loss, against their cross-entropy by autograd over separate sequences."""

import json

import pytest
import torch
import train_cases as cases
from transformers import AutoModelForCausalLM

from dapo_fast.config import ActorSettings, ParallelSettings, load_config
from dapo_fast.errors import InputError
from dapo_fast.inputs import check_inputs
from dapo_fast.layout import Layout
from dapo_fast.parts import Parts
from dapo_fast.rundir import RunDirectory
from dapo_fast.train.actor import train_actor
from dapo_fast.train.sft import read_pairs


def train(base, out, **changes):
    settings = ActorSettings(**cases.ACTOR | {"steps": 1, "warmup_steps": 0, "clip_norm": 1e9} | changes)
    given = cases.stream if settings.sft_weight else None
    laid = ParallelSettings()
    return train_actor(
        base / "trees", base / "policy", settings, laid, cases.CPU, out, seed=7, digest="d", demonstrations=given
    )["last"]


def test_they_add_their_mean_cross_entropy_a_token(base, tmp_path):
    alone = train(base, tmp_path / "alone")
    # Small packs: the mean is over the tokens of all of them.
    both = train(base, tmp_path / "both", sft_weight=0.3, pack_tokens=64)
    model = AutoModelForCausalLM.from_pretrained(base / "policy").eval()
    logps = []
    with torch.no_grad():
        for prompt, response in cases.stream(0):
            found = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            logps.append(found.gather(1, torch.tensor(response)[:, None])[:, 0])
    assert both["loss"] == pytest.approx(alone["loss"] - 0.3 * torch.cat(logps).mean().item(), rel=1e-5)
    expected = sum(p.sum().exp().item() for p in logps) / len(logps)
    assert both["demonstration_probability"] == pytest.approx(expected, rel=1e-4)
    # What is said of the pairs is of the pairs alone.
    assert both["pairs"] == alone["pairs"] and both["explained"] == pytest.approx(alone["explained"], abs=1e-5)


def test_they_are_learnt(base, tmp_path):
    last = train(base, tmp_path / "a", sft_weight=1.0, steps=30, lr=3e-3)
    first = json.loads((tmp_path / "a" / "metrics.jsonl").read_text().splitlines()[0])
    assert last["demonstration_probability"] > 10 * first["demonstration_probability"]


def test_a_weight_without_demonstrations_is_refused(base, tmp_path):
    settings = ActorSettings(**cases.ACTOR, sft_weight=0.1)
    with pytest.raises(InputError, match=r"actor\.sft_weight 0\.1"):
        train_actor(
            base / "trees", base / "policy", settings, ParallelSettings(), cases.CPU, tmp_path / "a", seed=7, digest="d"
        )
    (tmp_path / "one.jsonl").write_text('{"prompt": "1+1", "answer": "2"}')
    given = [f"model.path={base / 'policy'}", f"data.problems={tmp_path / 'one.jsonl'}", "data.template=none"]
    run = RunDirectory(tmp_path / "run", load_config(overrides=[*given, "actor.sft_weight=0.1"]))
    with pytest.raises(InputError, match=r"actor\.sft_weight: needs sft\.data"):
        check_inputs(run.config, Parts(run.config), Layout(run))


def test_a_run_without_them_is_saved_as_before_there_were_any():
    assert "sft_weight" not in load_config(preset="arithmetic").model_dump()["actor"]
    config = load_config(preset="arithmetic", overrides=["actor.sft_weight=0.1"])
    assert config.model_dump()["actor"]["sft_weight"] == config.at(2).actor.sft_weight == 0.1


def test_rows_say_which_kind_of_problem_they_answer(tmp_path):
    rows = [{}, {"tests": "assert 1"}, {"kind": "open"}, {"kind": "poem"}]
    path = tmp_path / "pairs.jsonl"
    for count in (3, 4):
        path.write_text("".join(json.dumps({"prompt": "p", "response": "r", **row}) + "\n" for row in rows[:count]))
        if count == 3:
            assert [problem.kind for problem, _ in read_pairs(path)] == ["math", "code", "open"]
    with pytest.raises(InputError, match=r"pairs\.jsonl:4: \"kind\" is one of math, code, open"):
        read_pairs(path)
