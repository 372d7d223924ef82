"""The loop in one process: its mathematics, and what it does about bad input, old results and broken numbers."""

import json
import logging
import math
import shutil
import signal

import pytest
import torch
import train_cases as cases
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from dapo_fast.config import ActorSettings, ParallelSettings
from dapo_fast.data.batches import actor_batches
from dapo_fast.data.store import write_shard
from dapo_fast.errors import InputError
from dapo_fast.rundir import read_json, read_metrics
from dapo_fast.train import loop
from dapo_fast.train.actor import train_actor
from dapo_fast.train.loop import NonFiniteError


def curve(directory, key="loss"):
    return [json.loads(line)[key] for line in (directory / "metrics.jsonl").read_text().splitlines()]


def weights(directory):
    return load_file(directory / "model" / "model.safetensors")


def same_weights(first, second, tolerance):
    a, b = weights(first), weights(second)
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=tolerance, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("log_partition", [False, True])
def test_a_step_is_the_papers_loss_by_autograd_over_separate_sequences(base, tmp_path, log_partition):
    """One actor step against ½ mean (Â/β − u)² written out with one sequence a pair, and torch's own AdamW.

    With the log-partition the target is Â/β − log Σ_j c_j exp(Â_j/β) / Σ_j c_j.
    """
    own = {"steps": 1, "warmup_steps": 0, "pack_tokens": 64, "clip_norm": 1e9, "log_partition": log_partition}
    cases.run("actor", base, tmp_path / "a", {}, **own)
    trees = cases.make_trees(12)
    settings = ActorSettings(**cases.ACTOR)
    groups = actor_batches(trees, settings.batch_pairs, 7, 0)[0]
    model = AutoModelForCausalLM.from_pretrained(base / "policy").eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, betas=settings.adam_betas, weight_decay=0.0)
    losses = []
    for tree, state in groups:
        prefix = trees[tree].prefix_ids(trees[tree].states[state])
        actions = trees[tree].states[state].candidates
        z = sum(c.count * math.exp(c.advantage / settings.beta) for c in actions) / sum(c.count for c in actions)
        for candidate in actions:
            target = candidate.advantage / settings.beta - log_partition * math.log(z)
            ids = torch.tensor([prefix + candidate.ids])
            logps = model(ids).logits[0, len(prefix) - 1 : -1].log_softmax(-1)
            logp = logps.gather(1, torch.tensor(candidate.ids)[:, None]).sum()
            losses.append(0.5 * (target - (logp - logp.detach())) ** 2)
    loss = torch.stack(losses).mean()
    loss.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
    optimizer.step()
    assert curve(tmp_path / "a")[0] == pytest.approx(loss.item(), rel=1e-5)
    assert curve(tmp_path / "a", "grad_norm")[0] == pytest.approx(norm.item(), rel=1e-4)
    trained = weights(tmp_path / "a")
    for name, parameter in model.named_parameters():
        # Adam's first step is ± the rate wherever the gradient is not tiny.
        assert (trained[name] - parameter).abs().max() < 2e-5, name


@pytest.mark.parametrize("stage", ["sft", "critic", "actor"])
def test_packing_does_not_change_the_mathematics(base, tmp_path, stage):
    cases.run(stage, base, tmp_path / "one", {})
    cases.run(stage, base, tmp_path / "many", {}, pack_tokens=48)
    packs = curve(tmp_path / "one", "packs"), curve(tmp_path / "many", "packs")
    assert sum(packs[1]) > 2 * sum(packs[0])
    torch.testing.assert_close(
        torch.tensor(curve(tmp_path / "many")), torch.tensor(curve(tmp_path / "one")), rtol=1e-5, atol=1e-5
    )
    same_weights(tmp_path / "one", tmp_path / "many", 1e-5)


def test_packs_of_long_trunks_grow_where_memory_holds_them(base, tmp_path, caplog):
    """Under a budget shorter than any trunk, with what this machine is counted to hold, and with one pack for all."""
    with caplog.at_level(logging.INFO):
        for out, settings in (
            ("one", {}),
            ("cut", {"pack_tokens": 24}),
            ("grown", {"pack_tokens": 24, "longest_pack": None}),
        ):
            cases.run("actor", base, tmp_path / out, {}, **settings)
    tokens = {out: sum(curve(tmp_path / out, "tokens")) for out in ("one", "cut", "grown")}
    assert tokens["one"] <= tokens["grown"] < 0.8 * tokens["cut"]
    for out in ("cut", "grown"):
        same_weights(tmp_path / "one", tmp_path / out, 1e-5)
    said = [record.levelname for record in caplog.records if record.message.startswith("long trunks:")]
    assert said == ["WARNING", "INFO"]


def test_training_learns(base, tmp_path):
    """The actor meets its targets on average, the critic and sft lower their losses."""
    cases.run("actor", base, tmp_path / "actor", {}, steps=60, lr=3e-3)
    explained, sign = curve(tmp_path / "actor", "explained"), curve(tmp_path / "actor", "same_sign")
    assert abs(explained[0]) < 1e-4
    assert sum(explained[-5:]) / 5 > 0.5
    assert sum(sign[-5:]) / 5 > 0.8
    cases.run("sft", base, tmp_path / "sft", {}, steps=60, lr=3e-3)
    assert curve(tmp_path / "sft")[-1] < 0.7 * curve(tmp_path / "sft")[0]
    cases.run("critic", base, tmp_path / "critic", {}, epochs=30, lr=3e-3)
    assert curve(tmp_path / "critic")[-1] < curve(tmp_path / "critic")[0] - 0.05
    heldout = json.loads((tmp_path / "critic" / "heldout.json").read_text())
    assert heldout["states"] > 0
    assert heldout["constant"]["auc"] == 0.5


def test_checkpointed_activations_change_nothing(base, tmp_path):
    cases.run("actor", base, tmp_path / "none", {})
    for kind in ("selective", "full"):
        cases.run("actor", base, tmp_path / kind, {"activation_checkpointing": kind})
        assert curve(tmp_path / kind) == curve(tmp_path / "none")
        same_weights(tmp_path / kind, tmp_path / "none", 0)


def test_bf16_keeps_fp32_weights(base, tmp_path):
    """Updates too small for bf16 add up all the same: FSDP2 at world size 1 holds fp32 weights behind bf16 ones."""
    model = cases.CPU.model_copy(update={"dtype": "bfloat16"})
    settings = ActorSettings(**cases.ACTOR | {"lr": 1e-5, "steps": 30, "warmup_steps": 0})
    out = tmp_path / "a"
    train_actor(base / "trees", base / "policy", settings, ParallelSettings(), model, out, seed=7, digest="d")
    assert not torch.distributed.is_initialized()
    name = "model.layers.0.mlp.up_proj.weight"
    before, after = load_file(base / "policy" / "model.safetensors")[name].bfloat16(), weights(out)[name]
    assert after.dtype == torch.bfloat16
    # Next to 1/64 bf16 values are 2^-14 apart at least: a step of 1e-5 on such a weight would be rounded away.
    large = before.abs() > 1 / 64
    assert (after != before)[large].float().mean() > 0.5
    # Frozen weights behind adapters are held in bf16, the adapters in fp32.
    adapted = settings.model_copy(update={"lora_rank": 2, "lr": 1e-2, "steps": 2})
    train_actor(base / "trees", base / "policy", adapted, ParallelSettings(), model, tmp_path / "l", seed=7, digest="d")
    assert (weights(tmp_path / "l")[name] != before).float().mean() > 0.5


def test_lora_merges_into_a_plain_model(base, tmp_path):
    cases.run("actor", base, tmp_path / "lora", {}, lora_rank=4, steps=4, warmup_steps=0, lr=1e-2)
    before, after = load_file(base / "policy" / "model.safetensors"), weights(tmp_path / "lora")
    assert before.keys() == after.keys()
    change = after["model.layers.0.self_attn.q_proj.weight"] - before["model.layers.0.self_attn.q_proj.weight"]
    assert torch.linalg.matrix_rank(change) == 4
    torch.testing.assert_close(after["model.embed_tokens.weight"], before["model.embed_tokens.weight"], atol=0, rtol=0)
    # The merged model says what the adapted one said: scores.parquet was read before the merge.
    import pyarrow.parquet as pq

    row = pq.read_table(tmp_path / "lora" / "scores.parquet").to_pylist()[0]
    tree = cases.make_trees(12)[row["tree"]]
    state = tree.states[row["state"]]
    ids = state.candidates[row["candidate"]].ids
    prefix = tree.prefix_ids(state)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "lora" / "model").eval()
    logps = merged(torch.tensor([prefix + ids])).logits[0, len(prefix) - 1 : -1].log_softmax(-1)
    logp = logps.gather(1, torch.tensor(ids)[:, None]).sum().item()
    assert logp == pytest.approx(row["logp_after"], abs=1e-4)
    assert abs(row["logp_after"] - row["ref_logp"]) > 1e-3
    cases.run("critic", base, tmp_path / "critic", {}, lora_rank=2)
    assert weights(tmp_path / "critic")["score.weight"].abs().max() > 0


def test_a_finished_stage_returns_at_once_and_refuses_other_settings(base, tmp_path, monkeypatch):
    first = cases.run("actor", base, tmp_path / "a", {})
    monkeypatch.setattr("dapo_fast.train.actor.open_trees", None)  # nothing is read again
    assert cases.run("actor", base, tmp_path / "a", {}) == first
    with pytest.raises(InputError, match="other settings"):
        train_actor(
            base / "trees",
            base / "policy",
            ActorSettings(),
            ParallelSettings(),
            cases.CPU,
            tmp_path / "a",
            seed=7,
            digest="other",
        )


def test_no_kept_state_is_an_error(base, tmp_path):
    trees = cases.make_trees(2)
    for tree in trees:
        for state in tree.states:
            state.kept = False
    write_shard(tmp_path / "trees" / "shard-00000.parquet", trees)
    (tmp_path / "policy").symlink_to(base / "policy")
    with pytest.raises(InputError, match="no state is kept"):
        cases.run("actor", tmp_path, tmp_path / "a", {})
    assert not (tmp_path / "a").exists()


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(base, tmp_path):
    trees = cases.make_trees(12)
    first = actor_batches(trees, 32, 7, 0)
    tree, state = first[2][0]  # the batch of step 3
    trees[tree].states[state].candidates[0].advantage = 1e30
    write_shard(tmp_path / "trees" / "shard-00000.parquet", trees)
    (tmp_path / "policy").symlink_to(base / "policy")
    with pytest.raises(NonFiniteError, match="step 3"):
        cases.run("actor", tmp_path, tmp_path / "a", {}, save_every=1)
    saved = json.loads((tmp_path / "a" / "nonfinite-step-3.json").read_text())
    assert [tree, state, 0] in [key for pack in saved["packs"] for key in pack]
    assert sorted(p.name for p in (tmp_path / "a" / "checkpoints").iterdir()) == ["step-00000001", "step-00000002"]
    assert curve(tmp_path / "a", "step") == [1, 2]


def test_damaged_and_half_written_checkpoints(base, tmp_path, monkeypatch, caplog):
    """A bit flipped in a tensor, a missing file, a directory that was not renamed."""

    def stop(self, *args):
        raise KeyboardInterrupt

    out = tmp_path / "a"
    monkeypatch.setattr("dapo_fast.train.actor._write_scores", stop)
    with pytest.raises(KeyboardInterrupt):
        cases.run("actor", base, out, {}, save_every=2, steps=7)
    monkeypatch.undo()
    # None after the last step: the model is written next, and its checkpoint would be deleted.
    newest, older = out / "checkpoints" / "step-00000006", out / "checkpoints" / "step-00000004"
    assert newest.exists() and older.exists() and not (out / "checkpoints" / "step-00000002").exists()
    assert len(curve(out)) == 7
    data = newest / "__0_0.distcp"
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    with pytest.raises(InputError) as error:
        cases.run("actor", base, out, {}, save_every=2, steps=7)
    assert str(data) in str(error.value) and str(older) in str(error.value)
    data.unlink()
    with pytest.raises(InputError, match="missing"):
        cases.run("actor", base, out, {}, save_every=2, steps=7)
    newest.rename(newest.with_name(newest.name + ".tmp"))
    caplog.set_level(logging.WARNING, "dapo_fast.train")
    cases.run("actor", base, out, {}, save_every=2, steps=7)
    assert "half-written" in caplog.text
    cases.run("actor", base, tmp_path / "straight", {}, steps=7)
    assert curve(out) == curve(tmp_path / "straight")
    same_weights(out, tmp_path / "straight", 0)


def test_a_stage_killed_as_it_dropped_its_checkpoints_drops_them_when_it_runs_again(base, tmp_path):
    cases.run("sft", base, tmp_path / "a", {})
    (tmp_path / "a" / "checkpoints" / "step-00000003").mkdir(parents=True)
    cases.run("sft", base, tmp_path / "a", {})
    assert not (tmp_path / "a" / "checkpoints").exists()


def test_a_checkpoint_of_other_settings_is_refused(base, tmp_path, monkeypatch):
    monkeypatch.setattr("dapo_fast.train.stage.export", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        cases.run("sft", base, tmp_path / "a", {}, save_every=3)
    monkeypatch.undo()
    meta = tmp_path / "a" / "checkpoints" / "step-00000003" / "meta.json"
    saved = read_json(meta)  # which takes its sum off
    meta.write_text(json.dumps(saved).replace('"test"', '"else"'))
    with pytest.raises(InputError, match="other settings"):
        cases.run("sft", base, tmp_path / "a", {}, save_every=3)


def test_settings_that_cannot_be_met_are_named_before_anything_is_read(base, tmp_path):
    for parallel, pattern in (({"replicas": 2}, "replicas 2"), ({"tracker": "trackio"}, "tracker trackio")):
        with pytest.raises(InputError, match=pattern):
            cases.run("actor", base, tmp_path / "a", parallel)


def test_a_kl_budget_ends_training_and_a_rerun_stays_there(base, tmp_path):
    own = {"steps": 40, "lr": 3e-3, "kl_budget": 0.05, "save_every": 7}
    cases.run("actor", base, tmp_path / "a", {}, **own)
    kl = curve(tmp_path / "a", "kl_reference")
    assert len(kl) < 40 and kl[-1] > 0.05 >= max(kl[:-1])
    halted = json.loads((tmp_path / "a" / "halted.json").read_text())
    assert halted["step"] == len(kl) and "kl_budget" in halted["reason"]
    # Killed after it had halted and before it was done: the same weights, not one step more.
    before = weights(tmp_path / "a")
    for name in ("done.json", "model"):
        path = tmp_path / "a" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    cases.run("actor", base, tmp_path / "a", {}, **own)
    after = weights(tmp_path / "a")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert len(curve(tmp_path / "a")) == len(kl)


@pytest.fixture
def interruptible():
    """SIGINT is heard, which a job in the background ignores."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("when", ["clip_gradients", "learning_rate"])
def test_a_signal_in_the_last_step_is_heard(base, tmp_path, monkeypatch, when):
    """Before the ranks are asked for signals, and after: nothing is exported, and the same command goes on."""
    before, calls = getattr(loop, when), []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return before(*arguments)

    monkeypatch.setattr(loop, when, interrupted)
    with pytest.raises(SystemExit if when == "clip_gradients" else KeyboardInterrupt):
        cases.run("actor", base, tmp_path / "a", {}, steps=2)
    assert not (tmp_path / "a" / "model").exists()
    cases.run("actor", base, tmp_path / "a", {}, steps=2)
    assert [row["step"] for row in read_metrics(tmp_path / "a" / "metrics.jsonl")] == [1, 2]
    assert (tmp_path / "a" / "done.json").exists()
