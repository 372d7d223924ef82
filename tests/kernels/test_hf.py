"""hidden_states_and_weight on tiny random Hugging Face models: the same log-probabilities as their own logits."""

import copy
import inspect

import dapo_kernels as dk
import pytest
import torch
import transformers
from torch import nn

TINY = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# Config class → settings that make its logits differ from a plain linear map, where it has such.
FAMILIES = {
    "Llama": {},
    "Qwen2": {},
    "Qwen3": {},
    "Mistral": {},
    "Gemma2": {"final_logit_softcapping": 5.0, "query_pre_attn_scalar": 8},
    "Gemma3Text": {"final_logit_softcapping": 4.0, "query_pre_attn_scalar": 8},
    "Cohere": {"logit_scale": 0.25},
    "Granite": {"logits_scaling": 3.0},
}


def tiny(family):
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**TINY, **FAMILIES[family])
    # Large weights, so that a forgotten softcap or scale shows.
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_agrees_with_the_models_own_logits(family):
    model = tiny(family)
    ids = torch.randint(3, 61, (2, 9))
    mask = torch.ones_like(ids)
    logits = model(input_ids=ids, attention_mask=mask).logits.float()
    targets = ids.roll(-1, 1).flatten()
    wanted = logits.log_softmax(-1).flatten(0, 1).gather(1, targets[:, None])[:, 0]
    head = dk.hidden_states_and_weight(model, input_ids=ids, attention_mask=mask)
    got = dk.linear_token_logprobs(head.hidden.flatten(0, 1), head.weight, targets, **head.options)
    assert (logits.max() - logits.min()) > 3
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)
    (wanted_gradient,) = torch.autograd.grad(wanted.sum(), head.weight)
    (gradient,) = torch.autograd.grad(got.sum(), head.weight)
    torch.testing.assert_close(gradient, wanted_gradient, atol=1e-4, rtol=1e-3)


def test_computes_no_logits():
    model = tiny("Llama")
    called = []
    model.lm_head.register_forward_hook(lambda *_: called.append(1))
    dk.hidden_states_and_weight(model, input_ids=torch.tensor([[3, 4, 5]]))
    assert not called


def test_refuses_what_has_no_plain_head():
    with pytest.raises(ValueError, match=r"^model: Linear has no decoder"):
        dk.hidden_states_and_weight(nn.Linear(2, 2))
    model = tiny("Llama")
    with pytest.raises(ValueError, match=r"^model: LlamaModel has no decoder"):
        dk.hidden_states_and_weight(model.model, input_ids=torch.tensor([[3, 4]]))


def test_refuses_an_adapter_on_the_head():
    peft = pytest.importorskip("peft")
    model = tiny("Llama")
    ids = torch.tensor([[3, 4, 5]])
    on_attention = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"]))
    head = dk.hidden_states_and_weight(on_attention, input_ids=ids)
    assert head.weight is on_attention.get_output_embeddings().weight
    on_head = peft.get_peft_model(tiny("Llama"), peft.LoraConfig(target_modules=["lm_head"]))
    with pytest.raises(ValueError, match=r"^model: its output head is"):
        dk.hidden_states_and_weight(on_head, input_ids=ids)


def labelled():
    ids = torch.randint(3, 61, (2, 9), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[0, :4] = labels[1, 7:] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


@pytest.mark.parametrize("family", ["Llama", "Gemma2", "Cohere", "Granite"])
@pytest.mark.parametrize("items", [None, 5])
def test_the_fused_loss_is_the_models_own(family, items):
    batch = labelled() | ({} if items is None else {"num_items_in_batch": torch.tensor(items)})
    losses = []
    for change in (lambda model: model, dk.use_fused_loss):
        model = change(tiny(family).train())
        loss = model(**batch).loss
        loss.backward()
        losses.append((loss.detach(), {name: p.grad for name, p in model.named_parameters()}))
    torch.testing.assert_close(losses[1][0], losses[0][0], atol=1e-4, rtol=1e-4)
    for name, gradient in losses[0][1].items():
        torch.testing.assert_close(losses[1][1][name], gradient, atol=1e-4, rtol=1e-3)


def test_the_fused_loss_makes_no_logits_and_leaves_the_rest_alone():
    model = dk.use_fused_loss(tiny("Llama").train())
    called, batch = [], labelled()
    ids, labels = batch["input_ids"], batch["labels"]
    model(ids, labels=labels)  # the first call compares the two
    model.lm_head.register_forward_hook(lambda *_: called.append(1))
    assert model(ids, labels=labels).logits is None and not called  # positional, as well
    assert model(input_ids=ids).logits.shape == (2, 9, 61)
    assert model(ids, labels=labels, return_dict=False)[1].shape == (2, 9, 61)
    model.eval()
    assert model(input_ids=ids, labels=labels).logits is not None
    with pytest.raises(ValueError, match=r"^model: the forward .* is replaced already"):
        dk.use_fused_loss(model)
    del model.forward
    assert model.train()(input_ids=ids, labels=labels).logits is not None
    model.config.output_router_logits = True
    with pytest.raises(ValueError, match=r"^model: .*router"):
        dk.use_fused_loss(model)


def test_a_copy_runs_its_own_weights():
    model = dk.use_fused_loss(tiny("Llama").train())
    copied, batch = copy.deepcopy(model), labelled()
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.mul_(1.5)
    plain = tiny("Llama").train()
    plain.load_state_dict(copied.state_dict())
    loss = copied(**batch).loss
    torch.testing.assert_close(loss, plain(**batch).loss, atol=1e-4, rtol=1e-4)
    assert abs(loss - model(**batch).loss) > 0.1
    wanted = plain.eval()(**batch).logits
    torch.testing.assert_close(copied.eval()(**batch).logits, wanted)
    assert inspect.signature(copied.forward) == inspect.signature(model.forward) == inspect.signature(plain.forward)


@pytest.mark.parametrize("ignored", [-100, 7])
def test_shifted_labels_ignore_index_and_a_scattered_count_are_honoured(ignored):
    batch = labelled()
    shifted = batch["labels"].roll(3, 1)
    batch["shift_labels"] = shifted.masked_fill(shifted == -100, ignored)
    batch |= {"ignore_index": ignored, "num_items_in_batch": torch.tensor([5])}
    wanted = tiny("Llama").train()(**batch).loss
    model = dk.use_fused_loss(tiny("Llama").train())
    torch.testing.assert_close(model(**batch).loss, wanted.reshape(()), atol=1e-4, rtol=1e-4)
    del batch["labels"]
    torch.testing.assert_close(model(**batch).loss, wanted.reshape(()), atol=1e-4, rtol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_labels_on_the_cpu_serve_a_model_on_cuda():
    batch = {name: t if name == "labels" else t.cuda() for name, t in labelled().items()}
    wanted = tiny("Llama").cuda().train()(**batch).loss
    torch.testing.assert_close(dk.use_fused_loss(tiny("Llama").cuda().train())(**batch).loss, wanted, atol=0, rtol=1e-2)


def test_what_the_fused_path_does_not_make_comes_from_the_plain_forward():
    model, batch = dk.use_fused_loss(tiny("Llama").train()), labelled()
    assert len(model(**batch, output_hidden_states=True).hidden_states) == 3
    assert model(**batch, use_cache=True).past_key_values is not None
    model.config.output_hidden_states = True
    assert len(model(**batch).hidden_states) == 3
    with pytest.raises(ValueError, match=r"^model: .*router"):
        model(**batch, output_router_logits=True, output_hidden_states=False)


class TwiceAsSharp(transformers.LlamaForCausalLM):
    """Logits that are another function of the hidden states than config says."""

    def forward(self, *args, **inputs):
        out = super().forward(*args, **inputs)
        out.logits = out.logits * 2
        return out


def test_other_logits_are_refused_by_the_first_training_call():
    plain = tiny("Llama")
    other = TwiceAsSharp(plain.config)
    other.load_state_dict(plain.state_dict())
    model = dk.use_fused_loss(other)
    assert model.eval()(**labelled()).logits is not None
    with pytest.raises(ValueError, match=r"^model: the logits of TwiceAsSharp are not the linear map"):
        model.train()(**labelled())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_first_call_leaves_the_trainings_random_numbers_alone(dtype):
    losses = []
    for change in (lambda model: model, dk.use_fused_loss):
        model = change(tiny("Llama").to(dtype).train())
        for layer in model.model.layers:
            layer.self_attn.attention_dropout = 0.5
        torch.manual_seed(3)
        losses.append(model(**labelled()).loss.detach().float())
    torch.testing.assert_close(losses[1], losses[0], atol=0, rtol=1e-5 if dtype == torch.float32 else 1e-2)


def test_a_model_of_images_and_text_is_refused():
    model = tiny("Llama")
    model.config.get_text_config = lambda *_, **__: transformers.LlamaConfig(**TINY)
    with pytest.raises(ValueError, match=r"^model: .* several models"):
        dk.hidden_states_and_weight(model, input_ids=torch.tensor([[3, 4]]))
