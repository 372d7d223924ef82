"""Tiny configs of families that cannot read trees: recurrent states, short convolutions, queries scaled by row."""

import transformers as hf

_SIZES = {
    "vocab_size": 29,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_HYBRID = _SIZES | {
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
_HEADS = _HYBRID | {"head_dim": 8}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
_ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 8}
_SHARED = _EXPERTS | {"shared_expert_intermediate_size": 8}
_SSM = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 4, "mamba_n_groups": 1, "mamba_chunk_size": 4}
_DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 4,
    "linear_value_head_dim": 4,
    "layer_types": ["linear_attention", "full_attention"],
}
_CONV = {"layer_types": ["conv", "full_attention"]}
FAMILIES = {
    "bamba": lambda: hf.BambaConfig(**_HYBRID, **_SSM, attn_layer_indices=[1]),
    "falcon_h1": lambda: hf.FalconH1Config(**_HEADS, **_SSM, mamba_d_ssm=32, lm_head_multiplier=0.7),
    "falcon_mamba": lambda: hf.FalconMambaConfig(**_SIZES, state_size=4),
    "granitemoehybrid": lambda: hf.GraniteMoeHybridConfig(
        **_HYBRID,
        **_SSM,
        layer_types=["mamba", "attention"],
        num_local_experts=4,
        num_experts_per_tok=2,
        shared_intermediate_size=8,
        logits_scaling=2.0,
    ),
    "jamba": lambda: hf.JambaConfig(
        **_HYBRID,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        num_experts=4,
        mamba_d_state=4,
        mamba_dt_rank=4,
    ),
    "lfm2": lambda: hf.Lfm2Config(**_HYBRID, **_CONV, block_auto_adjust_ff_dim=False),
    "lfm2_moe": lambda: hf.Lfm2MoeConfig(**_HYBRID, **_CONV, **_EXPERTS, num_dense_layers=1),
    "llama4_text": lambda: hf.Llama4TextConfig(
        **_HEADS,
        intermediate_size_mlp=24,
        num_local_experts=4,
        attention_chunk_size=4,
        layer_types=["chunked_attention", "full_attention"],
        no_rope_layers=[1, 0],
        floor_scale=4,
    ),
    "mamba": lambda: hf.MambaConfig(**_SIZES, state_size=4),
    "mamba2": lambda: hf.Mamba2Config(**_SIZES, state_size=4, head_dim=8, num_heads=4, n_groups=2, chunk_size=4),
    "minimax": lambda: hf.MiniMaxConfig(**_HEADS, layer_types=_DELTA["layer_types"], num_local_experts=4, block_size=4),
    "nemotron_h": lambda: hf.NemotronHConfig(
        **_HEADS | _ROUTED | {"num_hidden_layers": 4},
        layer_types=["linear_attention", "mlp", "full_attention", "moe"],
        mamba_num_heads=4,
        mamba_head_dim=8,
        n_groups=2,
        ssm_state_size=4,
        chunk_size=4,
        moe_shared_expert_intermediate_size=8,
    ),
    "olmo_hybrid": lambda: hf.OlmoHybridConfig(**_HYBRID, **_DELTA),
    "qwen3_5_moe_text": lambda: hf.Qwen3_5MoeTextConfig(**_HEADS, **_DELTA, **_SHARED),
    "qwen3_5_text": lambda: hf.Qwen3_5TextConfig(**_HEADS, **_DELTA),
    "qwen3_next": lambda: hf.Qwen3NextConfig(**_HEADS, **_DELTA, **_SHARED),
    "recurrent_gemma": lambda: hf.RecurrentGemmaConfig(
        **_HEADS | {"num_hidden_layers": 3},
        lru_width=16,
        attention_window_size=4,
        block_types=["recurrent", "recurrent", "attention"],
        logits_soft_cap=2.0,
    ),
    "zamba": lambda: hf.ZambaConfig(
        **_HYBRID | {"num_hidden_layers": 5},
        attn_layer_period=2,
        attn_layer_offset=1,
        mamba_d_state=4,
        mamba_dt_rank=4,
        n_mamba_heads=2,
    ),
    "zamba2": lambda: hf.Zamba2Config(
        **_HYBRID | {"num_hidden_layers": 4},
        layers_block_type=["mamba", "hybrid", "mamba", "hybrid"],
        mamba_d_state=4,
        mamba_ngroups=1,
        n_mamba_heads=4,
        mamba_headdim=8,
        chunk_size=4,
        num_mem_blocks=1,
        adapter_rank=4,
    ),
}
