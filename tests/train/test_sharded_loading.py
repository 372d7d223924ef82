"""What two sharded processes load is what one process loads, and what one refuses two refuse."""

import json
import logging

import pytest
import torch
import train_cases as cases
from safetensors.torch import load_file, save_file
from transformers import (
    ApertusConfig,
    AutoModelForCausalLM,
    Glm4MoeConfig,
    HrmTextConfig,
    LlamaConfig,
    NemotronConfig,
    Qwen2Config,
    Qwen3MoeConfig,
)

from dapo_fast.config import ActorSettings, CriticSettings, ModelSettings, ParallelSettings
from dapo_fast.data.batches import actor_groups
from dapo_fast.data.packing import pack_actor
from dapo_fast.errors import InputError
from dapo_fast.models.files import stored_tensors
from dapo_fast.models.loading import causal_lm_skeleton, load_causal_lm
from dapo_fast.train.dealer import Dealer, read_values
from dapo_fast.train.export import export
from dapo_fast.train.parallel import ALONE, World, open_world
from dapo_fast.train.readers import policy_reader, value_reader
from dapo_fast.train.weights import match_files

SMALL = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ROUTED = {
    "head_dim": 8,
    "moe_intermediate_size": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}


def write(base, name, config):
    """A model of which every stored value is random, buffers too, as one of our exports."""
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if "norm" not in key and "act_fn" not in key:
                tensor.copy_(0.3 * torch.randn(tensor.shape))
    (base / "none").mkdir(exist_ok=True)
    export(model, base / name, base / "none", torch.float32, World(0, 1, torch.device("cpu"), torch.float32, None))
    (base / name / "sums.json").unlink()  # some are changed below


def edit(directory, changes):
    path = directory / "model.safetensors"
    tensors = load_file(path)
    changes(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def one_nan_in_the_last_row(tensors):
    tensors["model.embed_tokens.weight"][-1, -1] = float("nan")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    base = tmp_path_factory.mktemp("models")
    write(base, "nemotron", NemotronConfig(**SMALL))
    write(base, "apertus", ApertusConfig(**SMALL))
    write(base, "glm4_moe", Glm4MoeConfig(**SMALL | ROUTED))
    routed = Qwen3MoeConfig(**SMALL, head_dim=8, num_experts=5, num_experts_per_tok=2, moe_intermediate_size=8)
    for name in ("qwen3_moe", "merged", "an expert missing"):
        write(base, name, routed)
    merged = AutoModelForCausalLM.from_pretrained(base / "merged").state_dict()
    save_file(merged, base / "merged" / "model.safetensors", metadata={"format": "pt"})
    gone = "model.layers.1.mlp.experts.3.up_proj.weight"
    edit(base / "an expert missing", lambda tensors: tensors.pop(gone))
    for name in ("tied", "tied by lm_head", "own lm_head"):
        write(base, name, Qwen2Config(**SMALL, tie_word_embeddings=True))
    head, embedding = "lm_head.weight", "model.embed_tokens.weight"
    edit(base / "tied by lm_head", lambda tensors: tensors.update({head: tensors.pop(embedding)}))
    edit(base / "own lm_head", lambda tensors: tensors.update({head: tensors[embedding].flip(0).contiguous()}))
    write(base, "one rank's", LlamaConfig(**SMALL))
    edit(base / "one rank's", one_nan_in_the_last_row)
    return base


SAME = ("apertus", "glm4_moe", "qwen3_moe", "merged", "tied", "tied by lm_head", "own lm_head")
NAMES = (*SAME, "nemotron", "one rank's", "an expert missing")


def loaded(directory, stage, dtype="float32"):
    """Log-probabilities (or values) of a few trees by the model in ``directory``, or what the error says."""
    settings, parallel = ModelSettings(device="cpu", dtype=dtype), ParallelSettings()
    trees = cases.make_trees(2)
    try:
        with open_world(settings, parallel) as world:
            if stage == "actor":
                reader = policy_reader(directory, ActorSettings(), settings, parallel, world)
                dealer = Dealer(world, reader.model, 256)
                batch = dealer(dealer.packs(pack_actor, trees, actor_groups(trees)), 1)
                keys = torch.cat([pack.step_keys for pack in batch.packs]).tolist()  # packs are cut by the ranks
                values = read_values(reader, batch, world, reader.step_logps).tolist()
                return [value for _, value in sorted(zip(keys, values, strict=True))]
            value_reader(directory, "causal_lm", CriticSettings(), settings, parallel, world, 0)
            return []
    except InputError as error:
        return str(error)


def load_all(base):
    logging.getLogger("dapo_fast").handlers.clear()
    torch.set_num_threads(1)
    found = {f"{stage} {name}": loaded(base / name, stage) for name in NAMES for stage in ("actor", "critic")}
    with open(base / f"found-{cases.os.environ['RANK']}.json", "w") as file:
        json.dump(found, file)


@pytest.fixture(scope="module")
def found(base):
    processes = cases.forked(2, lambda: load_all(base), base / "log")
    for process in processes:
        process.join(600)
    assert [process.exitcode for process in processes] == [0, 0], (base / "log").read_text()
    ranks = [json.loads((base / f"found-{rank}.json").read_text()) for rank in range(2)]
    assert ranks[0] == ranks[1]
    return ranks[0]


@pytest.mark.parametrize("name", SAME)
def test_two_processes_load_what_one_loads(base, found, name):
    alone = loaded(base / name, "actor")
    assert len(alone) > 20
    assert found[f"actor {name}"] == pytest.approx(alone, abs=2e-4)


def test_one_tensor_of_the_files_may_be_several_of_the_model(tmp_path):
    """Fused queries, keys and values, cut as they are read; an export keeps the model's own names."""
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(HrmTextConfig(**SMALL | {"num_key_value_heads": 2}, head_dim=8))
    model.save_pretrained(tmp_path / "fused")
    assert any("gqkv_proj" in name for name in stored_tensors(tmp_path / "fused"))
    (tmp_path / "none").mkdir()
    export(model, tmp_path / "apart", tmp_path / "none", torch.float32, ALONE)
    state = model.state_dict()
    for name in ("fused", "apart"):
        again = AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict()
        matched = match_files(causal_lm_skeleton(tmp_path / name), tmp_path / name)
        for key, (_, source) in matched.items():
            assert torch.equal(source.rows(slice(None)), state[key]) and torch.equal(again[key], state[key])
            assert torch.equal(source.rows(slice(3, 7)), state[key][3:7])
        assert matched.keys() == state.keys()


@pytest.mark.parametrize("stage", ["actor", "critic"])
def test_what_one_process_refuses_two_refuse(base, found, stage):
    if stage == "actor":
        for dtype in ("float32", "bfloat16"):
            assert "nemotron: Nemotron" in (message := loaded(base / "nemotron", stage, dtype))
            assert "separate sequences differ by" in message
    assert "separate sequences differ by" in found[f"{stage} nemotron"]
    for message in (found[f"{stage} an expert missing"], loaded(base / "an expert missing", stage)):
        assert "an expert missing" in message and "\n" not in message
    message = "one rank's/model.safetensors: model.embed_tokens.weight holds values that are not finite"
    assert found[f"{stage} one rank's"] == str(base / message) == loaded(base / "one rank's", stage)


def test_files_with_two_matrices_are_two_matrices(base, caplog):
    """On every path, with a message; and the export says so."""
    for dtype in ("float32", "bfloat16"):
        caplog.clear()
        loaded(base / "own lm_head", "actor", dtype)
        assert "own lm_head: config.json ties lm_head and embedding, but the files hold two" in caplog.text
        caplog.clear()
        loaded(base / "tied", "actor", dtype)
        assert "config.json ties" not in caplog.text
    model = load_causal_lm(base / "own lm_head")
    export(model, base / "again", base / "none", torch.float32, World(0, 1, model.device, torch.float32, None))
    assert json.loads((base / "again" / "config.json").read_text())["tie_word_embeddings"] is False
    again = AutoModelForCausalLM.from_pretrained(base / "again")
    ids = torch.tensor([[1, 2, 3]])
    torch.testing.assert_close(again(ids).logits, model(ids).logits)
