"""Architectures of the transformers library: configurations shrunken until a probe takes a second."""

from __future__ import annotations

from typing import Any

import torch

_HEADS = {"num_hidden_layers": 3, "num_attention_heads": 4}
_BODY = {"hidden_size": 64, "intermediate_size": 128, **_HEADS}
_TEXT = {"vocab_size": 99, **_BODY, "max_position_embeddings": 64}
_KV = {**_TEXT, "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0}
_GPT2 = {"vocab_size": 99, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 64}
_FFN = {"encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
_PAIR = {"d_model": 64, "encoder_layers": 2, "decoder_layers": 2, **_FFN}
_BART = {"vocab_size": 99, **_PAIR, "max_position_embeddings": 64, "pad_token_id": 0}
_T5 = {"vocab_size": 99, "d_model": 64, "d_ff": 128, "d_kv": 16, "num_layers": 3, "num_heads": 4}
_PIXELS = {"image_size": 32, "patch_size": 8}
_WAVE = {**_BODY, "conv_dim": (32,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
_STAGES = {"hidden_sizes": [16, 32, 64, 64], "depths": [1, 1, 2, 1]}
RESNET = {"embedding_size": 16, **_STAGES, "layer_type": "basic"}
_DETR = {**_PAIR, "num_queries": 10, "use_timm_backbone": False, "backbone": None, "use_pretrained_backbone": False}
_SWIN = {"image_size": 64, "patch_size": 4, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
_VISION = {**_BODY, **_PIXELS}
_TWO_TOWERS = {"text_config": _TEXT, "vision_config": _VISION}

# class and settings of its configuration
TRANSFORMERS: dict[str, tuple[str, dict[str, Any]]] = {
    # encoders of text
    "bert": ("BertForMaskedLM", _TEXT),
    "roberta": ("RobertaModel", _TEXT),
    "distilbert": ("DistilBertModel", {"vocab_size": 99, "dim": 64, "hidden_dim": 128, "n_layers": 3, "n_heads": 4}),
    "albert": ("AlbertModel", {**_TEXT, "embedding_size": 32}),
    "electra": ("ElectraModel", {**_TEXT, "embedding_size": 32}),
    "deberta-v2": ("DebertaV2Model", _TEXT),
    "mpnet": ("MPNetModel", _TEXT),
    "modernbert": ("ModernBertModel", {**_TEXT, "pad_token_id": 0, "reference_compile": False}),
    "fnet": ("FNetModel", _TEXT),
    "roformer": ("RoFormerModel", _TEXT),
    "convbert": ("ConvBertModel", {**_TEXT, "embedding_size": 32}),
    "xlnet": ("XLNetModel", {"vocab_size": 99, "d_model": 64, "n_layer": 3, "n_head": 4, "d_inner": 128}),
    "funnel": (
        "FunnelModel",
        {"vocab_size": 99, "block_sizes": [1, 1, 1], "d_model": 64, "n_head": 4, "d_head": 16, "d_inner": 128},
    ),
    "longformer": ("LongformerModel", {**_TEXT, "attention_window": 8, "pad_token_id": 0}),
    "mobilebert": ("MobileBertModel", {**_TEXT, "embedding_size": 32, "intra_bottleneck_size": 32, "true_hidden_size": 32}),
    # decoders
    "gpt2": ("GPT2LMHeadModel", _GPT2),
    "gpt-neo": (
        "GPTNeoForCausalLM",
        {"vocab_size": 99, "hidden_size": 64, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
    ),
    "gpt-neox": ("GPTNeoXForCausalLM", _TEXT),
    "gptj": ("GPTJForCausalLM", {**_GPT2, "rotary_dim": 8}),
    "opt": ("OPTForCausalLM", {**_TEXT, "ffn_dim": 128, "word_embed_proj_dim": 64}),
    "bloom": ("BloomForCausalLM", {"vocab_size": 99, "hidden_size": 64, "n_layer": 3, "n_head": 4}),
    "llama": ("LlamaForCausalLM", _KV),
    "mistral": ("MistralForCausalLM", _KV),
    "qwen2": ("Qwen2ForCausalLM", _KV),
    "qwen3": ("Qwen3ForCausalLM", _KV),
    "gemma": ("GemmaForCausalLM", _KV),
    "gemma2": ("Gemma2ForCausalLM", _KV),
    "phi": ("PhiForCausalLM", _TEXT),
    "phi3": ("Phi3ForCausalLM", _KV),
    "falcon": ("FalconForCausalLM", _TEXT),
    "mpt": ("MptForCausalLM", {"vocab_size": 99, "d_model": 64, "n_layers": 3, "n_heads": 4, "max_seq_len": 64}),
    "stablelm": ("StableLmForCausalLM", _KV),
    "cohere": ("CohereForCausalLM", _KV),
    "olmo2": ("Olmo2ForCausalLM", _KV),
    # mixtures of experts
    "mixtral": ("MixtralForCausalLM", {**_KV, "num_local_experts": 4}),
    "qwen2-moe": (
        "Qwen2MoeForCausalLM",
        {**_KV, "num_experts": 4, "moe_intermediate_size": 64, "shared_expert_intermediate_size": 64},
    ),
    "olmoe": ("OlmoeForCausalLM", {**_KV, "num_experts": 4, "num_experts_per_tok": 2}),
    "switch-transformers": ("SwitchTransformersForConditionalGeneration", {**_T5, "num_experts": 4}),
    # state spaces
    "mamba": ("MambaForCausalLM", {"vocab_size": 99, "hidden_size": 64, "num_hidden_layers": 3, "state_size": 8}),
    "mamba2": (
        "Mamba2ForCausalLM",
        {
            "vocab_size": 99,
            "hidden_size": 64,
            "num_hidden_layers": 3,
            "state_size": 8,
            "num_heads": 8,
            "head_dim": 16,
            "n_groups": 1,
        },
    ),
    "rwkv": ("RwkvForCausalLM", {"vocab_size": 99, "hidden_size": 64, "num_hidden_layers": 3, "attention_hidden_size": 64}),
    "recurrent-gemma": ("RecurrentGemmaForCausalLM", {**_KV, "lru_width": 64}),
    # sequence to sequence
    "t5": ("T5ForConditionalGeneration", _T5),
    "bart": ("BartForConditionalGeneration", _BART),
    "marian": ("MarianMTModel", {**_BART, **_TOKENS}),
    "pegasus": ("PegasusModel", _BART),
    "m2m100": ("M2M100Model", {**_BART, **_TOKENS}),
    "prophetnet": (
        "ProphetNetModel",
        {
            "vocab_size": 99,
            "hidden_size": 64,
            "num_encoder_layers": 2,
            "num_decoder_layers": 2,
            "num_encoder_attention_heads": 4,
            "num_decoder_attention_heads": 4,
            "encoder_ffn_dim": 128,
            "decoder_ffn_dim": 128,
            "max_position_embeddings": 64,
        },
    ),
    # images
    "vit": ("ViTForImageClassification", {**_BODY, **_PIXELS}),
    "deit": ("DeiTModel", {**_BODY, **_PIXELS}),
    "beit": ("BeitModel", {**_BODY, **_PIXELS}),
    "dinov2": ("Dinov2Model", {**_BODY, **_PIXELS}),
    "vit-mae": ("ViTMAEModel", {**_BODY, **_PIXELS}),
    "swin": ("SwinForImageClassification", _SWIN),
    "swinv2": ("Swinv2Model", _SWIN),
    "convnext": ("ConvNextForImageClassification", {**_STAGES, "image_size": 64}),
    "convnextv2": ("ConvNextV2Model", {**_STAGES, "image_size": 64}),
    "resnet": ("ResNetForImageClassification", RESNET),
    "regnet": ("RegNetModel", {**RESNET, "groups_width": 8, "layer_type": "y"}),
    "bit": ("BitModel", {"embedding_size": 16, **_STAGES, "num_groups": 8}),
    "mobilenet-v1": ("MobileNetV1Model", {"image_size": 64, "depth_multiplier": 0.25}),
    "mobilenet-v2": ("MobileNetV2Model", {"image_size": 64, "depth_multiplier": 0.35}),
    "efficientnet": (
        "EfficientNetModel",
        {"image_size": 64, "width_coefficient": 0.25, "depth_coefficient": 0.5, "hidden_dim": 320},
    ),
    "segformer": (
        "SegformerForSemanticSegmentation",
        {
            "image_size": 64,
            "hidden_sizes": [16, 32, 32, 64],
            "depths": [1] * 4,
            "num_attention_heads": [1, 2, 2, 4],
            "decoder_hidden_size": 32,
        },
    ),
    "poolformer": ("PoolFormerModel", {"hidden_sizes": [16, 32, 32, 64], "depths": [1, 1, 2, 1]}),
    "levit": (
        "LevitForImageClassification",
        {
            "image_size": 64,
            "hidden_sizes": [16, 32, 48],
            "num_attention_heads": [1, 2, 3],
            "depths": [2, 2, 2],
            "key_dim": [8] * 3,
        },
    ),
    "pvt": (
        "PvtModel",
        {
            "image_size": 64,
            "hidden_sizes": [16, 32, 32, 64],
            "depths": [1] * 4,
            "num_attention_heads": [1, 2, 2, 4],
        },
    ),
    "cvt": ("CvtModel", {"embed_dim": [16, 32, 64], "num_heads": [1, 2, 4], "depth": [1, 2, 3]}),
    "focalnet": (
        "FocalNetModel",
        {
            "image_size": 64,
            "embed_dim": 16,
            "depths": [1, 1],
            "hidden_sizes": [16, 32],
            "focal_levels": [2, 2],
            "focal_windows": [3, 3],
        },
    ),
    "mobilevit": (
        "MobileViTModel",
        {"image_size": 128, "hidden_sizes": [32, 48, 64], "neck_hidden_sizes": [8, 16, 24, 32, 48, 48, 64]},
    ),
    "dpt": (
        "DPTForDepthEstimation",
        {
            **_BODY,
            **_PIXELS,
            "num_hidden_layers": 4,
            "backbone_out_indices": [0, 1, 2, 3],
            "neck_hidden_sizes": [64] * 4,
            "fusion_hidden_size": 64,
            "initializer_range": 0.04,
        },
    ),
    "glpn": (
        "GLPNForDepthEstimation",
        {
            "hidden_sizes": [16, 32, 32, 64],
            "depths": [1] * 4,
            "num_attention_heads": [1, 2, 2, 4],
            "decoder_hidden_size": 16,
        },
    ),
    # detection
    "yolos": ("YolosForObjectDetection", {**_BODY, "image_size": [32, 32], "patch_size": 8, "num_detection_tokens": 10}),
    "detr": ("DetrForObjectDetection", _DETR),
    # sound
    "wav2vec2": ("Wav2Vec2Model", _WAVE),
    "hubert": ("HubertModel", _WAVE),
    "wavlm": ("WavLMModel", _WAVE),
    "whisper": ("WhisperModel", {"vocab_size": 99, **_PAIR, "num_mel_bins": 16, "max_source_positions": 50, **_TOKENS}),
    "speech-to-text": ("Speech2TextModel", {**_BART, **_TOKENS, "input_feat_per_channel": 16, "conv_channels": 64}),
    "audio-spectrogram-transformer": ("ASTModel", {**_BODY, "max_length": 64, "num_mel_bins": 32}),
    "encodec": ("EncodecModel", {"num_filters": 8, "hidden_size": 32, "codebook_size": 32, "codebook_dim": 32}),
    # several inputs
    "clip": ("CLIPModel", _TWO_TOWERS),
    "siglip": ("SiglipModel", _TWO_TOWERS),
    "blip": ("BlipModel", {"text_config": _TEXT, "vision_config": {**_VISION, "initializer_range": 0.02}}),
    "vilt": ("ViltModel", {**_TEXT, **_PIXELS}),
    "clipseg": ("CLIPSegForImageSegmentation", {**_TWO_TOWERS, "extract_layers": [0, 1, 2], "reduce_dim": 16}),
    # series and decisions
    "patchtst": (
        "PatchTSTModel",
        {"num_input_channels": 3, "context_length": 32, "d_model": 32, "ffn_dim": 64, "patch_length": 4},
    ),
    "decision-transformer": (
        "DecisionTransformerModel",
        {"state_dim": 5, "act_dim": 2, "hidden_size": 64, "n_layer": 2, "n_head": 4},
    ),
}

# What these do as the library initializes them is no false alarm: the scales of BatchNorm drawn from N(0, 0.02) (EfficientNet,
# MobileViT), the weights of the vision tower from N(0, 1e-10) (BLIP). The rows without the suffix have that mended.
AS_SHIPPED: dict[str, tuple[str, dict[str, Any]]] = {
    "efficientnet-as-shipped": TRANSFORMERS["efficientnet"],
    "mobilevit-as-shipped": TRANSFORMERS["mobilevit"],
    "blip-as-shipped": ("BlipModel", _TWO_TOWERS),
}

# where nothing in the model tells what it takes
INPUTS: dict[str, dict[str, torch.Tensor]] = {
    "decision-transformer": {
        "states": torch.randn(8, 16, 5),
        "actions": torch.randn(8, 16, 2),
        "rewards": torch.randn(8, 16, 1),
        "returns_to_go": torch.randn(8, 16, 1),
        "timesteps": torch.arange(16).expand(8, 16),
    },
}
