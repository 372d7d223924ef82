"""Tiny configs of the families that people train, with windows and chunks that hide something of a small tree."""

import transformers as hf
from tokenizers import Tokenizer, models

SIZES = {
    "vocab_size": 29,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_HEADS = SIZES | {"head_dim": 8}
_WINDOW = {"sliding_window": 4}
_MIXED = _WINDOW | {"layer_types": ["sliding_attention", "full_attention"]}
_LATENT = SIZES | {
    "num_key_value_heads": 4,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 4,
}
_EXPERTS = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 8,
}
_THREE_N = {
    "num_hidden_layers": 3,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "intermediate_size": [24, 24, 24],
    "vocab_size_per_layer_input": 29,
    "hidden_size_per_layer_input": 8,
    "num_kv_shared_layers": 1,
    "altup_num_inputs": 2,
    "laurel_rank": 4,
    "activation_sparsity_pattern": [0.0, 0.0, 0.0],
}
_YARN = {"rope_theta": 1e4, "rope_type": "default"}
FAMILIES = {
    "arcee": lambda: hf.ArceeConfig(**SIZES),
    "cohere2": lambda: hf.Cohere2Config(**SIZES, **_MIXED),
    "deepseek_v2": lambda: hf.DeepseekV2Config(**_LATENT, **_EXPERTS),
    "deepseek_v3": lambda: hf.DeepseekV3Config(**_LATENT, **_EXPERTS),
    "exaone4": lambda: hf.Exaone4Config(**SIZES, **_MIXED, sliding_window_pattern=None),
    "gemma": lambda: hf.GemmaConfig(**_HEADS),
    "gemma2": lambda: hf.Gemma2Config(**_HEADS, **_MIXED, query_pre_attn_scalar=8, attn_logit_softcapping=2.0),
    "gemma3_text": lambda: hf.Gemma3TextConfig(**_HEADS, **_MIXED, query_pre_attn_scalar=8),
    "gemma3n_text": lambda: hf.Gemma3nTextConfig(**_HEADS | _MIXED | _THREE_N),
    "gemma4_text": lambda: hf.Gemma4TextConfig(
        **_HEADS, **_MIXED, vocab_size_per_layer_input=29, hidden_size_per_layer_input=8
    ),
    "glm4": lambda: hf.Glm4Config(**_HEADS),
    "glm4_moe": lambda: hf.Glm4MoeConfig(**_HEADS, **_EXPERTS),
    "glm4_moe_lite": lambda: hf.Glm4MoeLiteConfig(**_LATENT, **_EXPERTS),
    "gpt_oss": lambda: hf.GptOssConfig(
        **_HEADS, **_MIXED, num_local_experts=4, num_experts_per_tok=2, rope_parameters=_YARN
    ),
    "granite": lambda: hf.GraniteConfig(**SIZES),
    "granite_swa": lambda: hf.GraniteSWAConfig(**SIZES, **_MIXED),
    "minicpm3": lambda: hf.MiniCPM3Config(**_LATENT),
    "ministral": lambda: hf.MinistralConfig(**_HEADS, **_MIXED),
    "mistral": lambda: hf.MistralConfig(**SIZES, **_WINDOW),
    "mixtral": lambda: hf.MixtralConfig(**SIZES, **_WINDOW, num_local_experts=4),
    "olmo3": lambda: hf.Olmo3Config(**SIZES, **_MIXED),
    "olmoe": lambda: hf.OlmoeConfig(**SIZES, num_experts=4, num_experts_per_tok=2),
    "phi3": lambda: hf.Phi3Config(**SIZES, **_WINDOW),
    "qwen2": lambda: hf.Qwen2Config(**SIZES, **_WINDOW, use_sliding_window=True, max_window_layers=1),
    "qwen3_moe": lambda: hf.Qwen3MoeConfig(**_HEADS, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8),
    "seed_oss": lambda: hf.SeedOssConfig(**_HEADS, attention_dropout=0.0),
    "smollm3": lambda: hf.SmolLM3Config(**SIZES),
}


def tokenizer() -> hf.PreTrainedTokenizerFast:
    """Of the tiny vocabulary: tokens are numbers."""
    words = {str(number): number for number in range(29)}
    return hf.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, "0")), eos_token="2")
