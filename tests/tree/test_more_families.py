"""Other families of docs/models.md, in one process: read, trained, exported and sampled as transformers has them."""

import random

import pytest
import torch
from families import LOCKSTEP, MORE, SERVER, of
from family_cases import tokenizer
from more_cases import config_of
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from tree_cases import (
    assert_same_gradients,
    gradients,
    random_tree,
    separate_logps,
    separate_loss,
    separate_values,
    shaken,
)

from dapo_fast.data.batches import actor_groups, critic_groups
from dapo_fast.data.dealing import Ranks
from dapo_fast.data.packing import pack_actor, pack_critic
from dapo_fast.errors import InputError
from dapo_fast.models.loading import load_causal_lm, load_value_model
from dapo_fast.models.padded import reads_padded
from dapo_fast.models.readpath import PolicyReader, ValueReader
from dapo_fast.rollout.engine import SamplingParams
from dapo_fast.rollout.in_process import InProcessEngine
from dapo_fast.train.export import export
from dapo_fast.train.parallel import ALONE

TREES = [random_tree(random.Random(seed), f"p{seed}", steps=4, width=2) for seed in (3, 5)]


@pytest.mark.parametrize("family", [family for row in MORE for family in row.families])
def test_a_family_reads_trains_and_exports(family, tmp_path):
    row = of(family)
    model = shaken(config_of(family))
    assert reads_padded(model.config) == (row.cpu is None)
    ranks = Ranks(padded=row.cpu is None)
    (tmp_path / "source").mkdir()
    export(model, tmp_path / "model", tmp_path / "source", torch.float32, ALONE)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32, attn_implementation="eager")

    (pack,) = pack_actor(TREES, actor_groups(TREES), 10_000, ranks=ranks)
    out = PolicyReader(model)(pack, 0.1, pack.steps)
    out.loss.backward()
    keys = [tuple(key) for key in pack.step_keys.tolist()]
    expected = separate_logps(plain.eval(), TREES, keys)
    separate_loss(expected, TREES, keys, 0.1, pack.steps).backward()
    torch.testing.assert_close(out.step_logps.double(), expected.detach(), rtol=2e-5, atol=2e-5)
    assert_same_gradients(gradients(model), gradients(plain), 2e-5)

    critic = load_value_model(tmp_path / "model", init="causal_lm")
    torch.nn.init.normal_(critic.value_head.weight, generator=torch.Generator().manual_seed(3))
    (pack,) = pack_critic(TREES, critic_groups(TREES), 10_000, ranks=ranks)
    values = ValueReader(critic).values(pack)
    if row.cpu is not None:
        critic.model.set_attn_implementation("eager")
    with torch.no_grad():
        logits = separate_values(critic, TREES, [tuple(key) for key in pack.value_keys.tolist()])
    torch.testing.assert_close(values.double(), logits.sigmoid(), rtol=2e-5, atol=2e-6)

    if row.sampled == SERVER:
        with pytest.raises(InputError, match="in-process engine cannot"):
            InProcessEngine(model, tokenizer())
        return
    engine = InProcessEngine(model, tokenizer())
    assert engine.cached == (row.sampled == LOCKSTEP)
    prompts = [[5, 6, 7, 8, 9, 3], [9, 4]]
    for prompt, (sample,) in zip(
        prompts, engine.generate(prompts, SamplingParams(1, 4, seed=1, logprobs=True)), strict=True
    ):
        with torch.inference_mode():
            logits = plain(torch.tensor([prompt + sample.ids]), use_cache=False).logits[0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1).gather(1, torch.tensor(sample.ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(sample.logprobs), expected, atol=1e-4, rtol=1e-4)


def test_the_weights_are_those_of_the_files(tmp_path):
    """Also where transformers writes initial values over what it read, as it does over Youtu's padding row."""
    config = config_of("youtu")
    config.pad_token_id = 0
    shaken(config).save_pretrained(tmp_path)
    held = load_file(tmp_path / "model.safetensors")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).get_input_embeddings().weight
    assert not torch.equal(plain, held["model.embed_tokens.weight"])
    for model in (load_causal_lm(tmp_path), load_value_model(tmp_path, init="causal_lm").model):
        loaded = {name: tensor for name, tensor in model.state_dict().items() if name in held}
        assert len(loaded) > 20 and all(torch.equal(tensor, held[name]) for name, tensor in loaded.items())
