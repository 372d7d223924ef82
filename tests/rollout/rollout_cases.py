"""Tiny models and a byte-level tokenizer for the tests of sampling."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

TEXT = [
    "Let x = 3.\n\nThen x + 4 = 7.\nSo the answer is 7.\n",
    "First, we add: 12 + 30 = 42!\n  Is it right? Yes.\n\n\nTherefore \\boxed{42}.",
    "Ünïcödé — naïve café; 数学は楽しい。はい！\n\t🙂🙂 emoji\r\n\r\nend",
    "for i in range(3):\n    print(i)\n\n    pass\n",
]


def byte_level_tokenizer(vocabulary: int = 320) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", clean_up_tokenization_spaces=False
    )


_SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
CONFIGS = {
    "llama": lambda **more: LlamaConfig(**_SMALL | more),
    "qwen2": lambda **more: Qwen2Config(**_SMALL | more),
    "qwen3": lambda **more: Qwen3Config(**_SMALL | {"head_dim": 16} | more),
    "mistral": lambda **more: MistralConfig(**_SMALL | {"sliding_window": None} | more),
}


def tiny_model(kind: str, vocabulary: int, seed: int = 0, spread: float = 6.0, **more):
    """A random model whose distributions are neither flat nor certain."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIGS[kind](vocab_size=vocabulary, **more), dtype=torch.float32)
    with torch.no_grad():
        model.lm_head.weight.mul_(spread)
    return model.eval()
