"""Tiny configs of any other family: every size that its config has, made small by what it is called."""

from family_cases import SIZES
from transformers import DbrxConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from dapo_fast.models.variants import largest

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_CHOSEN = ("num_experts_per_tok", "moe_topk", "moe_k")
_LATENT = ("kv_lora_rank", "q_lora_rank", "v_head_dim", "qk_nope_head_dim")
_SMALL = {
    **{name: SIZES[name] for name in ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id")},
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "dff", "dense_intermediate_size"), 48),
    **dict.fromkeys(("num_attention_heads", "n_head", *_EXPERTS, "sliding_window", "sliding_window_size"), 4),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_key_value_heads", "index_n_heads", *_CHOSEN), 2),
    **dict.fromkeys(("n_shared_experts", "n_group", "topk_group", "first_k_dense_replace"), 1),
    **dict.fromkeys(("moe_intermediate_size", "shared_intermediate_size", "shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("head_dim", *_LATENT, "index_head_dim"), 8),
    **{"rotary_dim": 4, "qk_rope_head_dim": 4, "max_position_embeddings": 256},
}
_ROPE = {"rope_type": "default", "rope_theta": 1e4}
_LATENT_HEADS = {"num_key_value_heads": 4, "head_dim": 4}
_CHOOSING = _LATENT_HEADS | {"head_dim": 8, "index_n_heads": 8, "index_head_dim": 16, "index_topk": 4}
_MIXED = ["sliding_attention", "full_attention"]
_TURNED = _ROPE | {"mrope_section": [2, 1, 1]}
_ALTERNATING = {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]}
_OWN = {  # what a family needs beside
    "axk1": _LATENT_HEADS,
    "axk2": _CHOOSING,
    "bailing_hybrid": _LATENT_HEADS | _ALTERNATING,
    "cohere_compass_text": {"layer_types": _MIXED, "rope_parameters": dict.fromkeys(_MIXED, _TURNED)},
    "deepseek_v32": _CHOOSING,
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "gemma4_unified_text": {"head_dim": 8},
    "glm_moe_dsa": _CHOOSING,
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "hy_v4": _CHOOSING,
    "kimi_linear": _LATENT_HEADS | _ALTERNATING | {"linear_head_dim": 8, "linear_num_heads": 4},
    "minimax_m3_vl_text": {
        "num_hidden_layers": 2,
        "layer_types": ["minimax_m3_sparse", "full_attention"],
        "index_block_size": 4,
        "index_topk_blocks": 2,
    },
    "xlstm": {"num_heads": 4, "chunk_size": 4},
    "youtu": _LATENT_HEADS,
    "zaya": {"num_experts_per_tok": 1},
}


def config_of(family: str) -> PreTrainedConfig:
    """A tiny config of ``family``, a ``model_type``, with a layer of each of its kinds, two at least."""
    known = CONFIG_MAPPING[family]()
    computed = {name for name in _SMALL if isinstance(getattr(type(known), name, None), property)}
    sizes = {n: size for n, size in _SMALL.items() if n not in computed and largest(known, n) is not None}
    kinds = list(dict.fromkeys(getattr(known, "layer_types", None) or ()))
    if len(kinds) > 1:
        sizes |= {"num_hidden_layers": len(kinds), "layer_types": kinds}
    if family == "dbrx":  # whose sizes stand in three configs
        return _dbrx()
    return CONFIG_MAPPING[family](**sizes | _OWN.get(family, {}))


def _dbrx() -> PreTrainedConfig:
    attention = {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 1.0}
    experts = {"hidden_size": 32, "ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2}
    tokens = {name: SIZES[name] for name in ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id")}
    return DbrxConfig(d_model=32, n_heads=4, n_layers=2, attn_config=attention, ffn_config=experts, **tokens)
