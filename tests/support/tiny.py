"""Tiny random models of (nearly) every language model class that Transformers maps."""

from typing import Any

import torch
import transformers
from transformers.integrations.heterogeneity.configuration_utils import (
    AmbiguousGlobalPerLayerAttributeError,
)
from transformers.models.auto import modeling_auto as auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VOCABULARY = 128
KINDS = {
    "masked": auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    "causal": auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "seq2seq": auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
}
# What configurations call their sizes, and how small each may be.
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY, "src_vocab_size": VOCABULARY, "tgt_vocab_size": VOCABULARY,
    "hidden_size": 32, "d_model": 32, "n_embd": 32, "dim": 32, "emb_dim": 32, "embedding_size": 32,
    "d_embed": 32, "word_embed_proj_dim": 32, "dim_model": 32, "model_dim": 32,
    "true_hidden_size": 32, "intra_bottleneck_size": 32, "d_latents": 32,
    "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY,
    "num_hidden_layers": 2, "num_layers": 2, "n_layer": 2, "n_layers": 2, "encoder_layers": 2,
    "decoder_layers": 2, "num_encoder_layers": 2, "num_decoder_layers": 2, "decoder_layers_": 2,
    "num_attention_heads": 4, "num_heads": 4, "n_head": 4, "n_heads": 4,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "num_encoder_attention_heads": 4, "num_decoder_attention_heads": 4,
    "num_key_value_heads": 4, "num_kv_heads": 4, "head_dim": 8, "d_kv": 8, "d_head": 8,
    "attention_head_size": 8, "v_head_dim": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
    "q_lora_rank": 16, "kv_lora_rank": 16, "global_head_dim": 8,
    "intermediate_size": 64, "d_ff": 64, "ffn_dim": 64, "encoder_ffn_dim": 64, "d_inner": 64,
    "decoder_ffn_dim": 64, "n_inner": 64, "ffn_hidden_size": 64, "expert_ffn_hidden_size": 32,
    "hidden_dim": 64, "feed_forward_size": 64, "block_ff_dim": 64, "inner_dim": 64,
    "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4,
    "num_experts_per_tok": 2, "num_experts_per_token": 2, "moe_k": 2, "moe_topk": 2,
    "top_k_experts": 2,
    "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
    "max_position_embeddings": 64, "max_position": 64, "n_positions": 64, "n_ctx": 64,
    "max_source_positions": 64, "max_target_positions": 64, "max_encoder_position_embeddings": 64,
    "max_decoder_position_embeddings": 64, "max_seq_len": 64, "seq_length": 64,
    "sliding_window": 16, "attention_window": 8,
    "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 2,
    "mask_token_id": 4, "image_token_id": 5, "video_token_id": 5, "audio_token_id": 5,
    "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_num_heads": 8,
    "mamba_head_dim": 8, "ssm_state_size": 8, "state_size": 8, "mamba_chunk_size": 8,
    "chunk_size": 8, "mamba_d_ssm": 64, "time_step_rank": 4,
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "lru_width": 32, "num_labels": 2,
    "use_mamba_kernels": False, "output_router_logits": False,
}  # fmt: skip
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_ROPES = {"full_attention": _ROPE, "sliding_attention": _ROPE}
# Only what SMALL does not get right, by model type; ... leaves the class's own value.
SPECIAL: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "bamba": {"attn_layer_indices": [1]},
    "blt": {"use_cache": False, "decoder_config": {"hidden_size_global": 32}},
    "cohere_compass_text": {"rope_parameters": _ROPES},
    "codegen": {"rotary_dim": 4},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "kv_n_heads": 4, "clip_qkv": 8.0}},
    "dots1": {"n_shared_experts": 1},
    "dots3_note": {
        "vision_config": {"num_hidden_layers": ..., "adapter_in_dim": 32, "adapter_out_dim": 32},
        "audio_config": {"adapter_input_size": 32, "adapter_out_dim": 32},
    },
    "falcon": {"head_dim": ...},
    "gemma3n": {"text_config": {"num_kv_shared_layers": 0}},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gptj": {"rotary_dim": 4},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {"layer_types": ["linear_attention", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "lfm3": {"layer_types": ["conv", "full_attention"]},
    "mimo_v2_flash": {"num_key_value_heads": 2},
    "minicpm3": {"dim_model_base": 16},
    "mobilebert": {"embedding_size": 16},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "moshi": {"audio_vocab_size": VOCABULARY},
    "prophetnet": {"num_hidden_layers": ...},
    "nemo_speechlm": {"head_config": {"audio_hidden_size": 32}},
    "neomme": {"head_dim": 16},
    "qwen3_5": {"text_config": {"num_hidden_layers": 4}},
    "qwen3_5_moe": {"text_config": {"num_hidden_layers": 4}},
    "qwen3_next": {"num_hidden_layers": 4},
    "qwen4_exp": {
        "text_config": {
            "num_hidden_layers": 4, "use_cache": False, "indexer_n_heads": 2, "indexer_kv_heads": 1,
            "indexer_head_dim": 8, "indexer_budget": 8, "indexer_compress_ratio": 4,
        },
    },
    "recurrent_gemma": {"num_hidden_layers": 3},
    "xlnet": {"max_position_embeddings": ...},
    "xlstm": {
        "hidden_size": 64, "qk_dim_factor": 1.0, "v_head_dim": ..., "qk_head_dim": ...,
        "chunk_size": 64,
    },
    "zamba": {"num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2},
    "zamba2": {"num_hidden_layers": 2, "layers_block_type": ["linear_attention", "hybrid"]},
    "zaya": {"num_experts_per_tok": 1},
    "funnel": {"block_sizes": [1, 1], "num_decoder_layers": 1, "num_hidden_layers": ...},
    "perceiver": {"max_position_embeddings": 16},
    "reformer": {
        "axial_pos_shape": [4, 4], "axial_pos_embds_dim": [16, 16], "hash_seed": 0,
        "hidden_dropout_prob": 0.0, "local_attention_probs_dropout_prob": 0.0,
        "lsh_attention_probs_dropout_prob": 0.0, "local_attn_chunk_length": 4,
        "lsh_attn_chunk_length": 4, "num_buckets": 2,
    },
    "xmod": {"default_language": "en_XX"},
}  # fmt: skip
NEEDS_TRAINING_MODE = ("reformer", "rwkv", "xlstm")


def tiny_config(model_type: str) -> Any:
    """A configuration of two small layers."""
    return _shrink(CONFIG_MAPPING[model_type], SPECIAL.get(model_type, {}))


def _shrink(cls: Any, special: dict[str, Any]) -> Any:
    default = cls()
    chosen = {name: value for name, value in SMALL.items() if _has(default, name)}
    # A name and its alias must not contradict each other: the class's own name wins.
    for alias, own in getattr(cls, "attribute_map", {}).items():
        if alias in chosen and own in chosen:
            chosen.pop(alias)
    parts = {k: v for k, v in vars(default).items() if isinstance(v, transformers.PreTrainedConfig)}
    for name, part in parts.items():
        chosen[name] = _shrink(type(part), special.get(name, {}))
    chosen.update({name: value for name, value in special.items() if name not in parts})
    return cls(**{name: value for name, value in chosen.items() if value is not ...})


def _has(config: Any, name: str) -> bool:
    try:
        return hasattr(config, name)
    except AmbiguousGlobalPerLayerAttributeError:  # a value for each layer
        return True


def tiny_model(kind: str, model_type: str) -> Any:
    """A random model in evaluation mode, float32, whose logits are far from uniform."""
    torch.manual_seed(0)
    cls = getattr(transformers, KINDS[kind][model_type])
    config = tiny_config(model_type)
    if model_type == "encoder-decoder":
        bert = tiny_config("bert")
        config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(bert, bert)
        config.decoder_start_token_id, config.pad_token_id = 2, 1
    if cls.config_class is not type(config):  # a text model of a composite configuration
        config = config.get_text_config()
    if kind == "causal" and hasattr(config, "is_decoder"):
        config.is_decoder = True
    if getattr(config, "is_encoder_decoder", False) and not hasattr(
        config, "decoder_start_token_id"
    ):
        config.decoder_start_token_id = 2
    model = cls(config).train(model_type in NEEDS_TRAINING_MODE)
    decoder = model.get_output_embeddings()
    with torch.no_grad():
        if decoder is not None and getattr(decoder, "weight", None) is not None:
            decoder.weight.normal_(0, 0.5)
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith(("bias", "final_logits_bias")) and value.shape[-1:] == (VOCABULARY,):
                value.normal_(0, 0.5)
    return model


def tiny_batch(model: Any, rows: int = 2, length: int = 16) -> dict[str, torch.Tensor]:
    """Random tokens, a third of them labelled; some labels are the padding token."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(6, VOCABULARY, (rows, length), generator=generator)
    labels = ids.clone()
    labels[torch.rand(ids.shape, generator=generator) > 1 / 3] = -100
    labels[0, 1], labels[1, 0], labels[1, 3] = 1, 7, 8
    return {"input_ids": ids, "labels": labels}
