"""Models of the transformers library from shrunken configurations: inputs found, captured in full, no weight lost."""

from __future__ import annotations

import pytest

from tests.models.torch_samples import check_sound, owners, run

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
TEXT = {"vocab_size": 99, **SPECIAL, **SMALL}
VISION = {"image_size": 32, "patch_size": 8, **SMALL}

MODELS = {
    "Bert": lambda t: t.BertModel(t.BertConfig(**TEXT)),
    "GPT2": lambda t: t.GPT2LMHeadModel(t.GPT2Config(vocab_size=99, n_embd=32, n_layer=2, n_head=4, **SPECIAL)),
    "ViT": lambda t: t.ViTModel(t.ViTConfig(**VISION)),
    "T5": lambda t: t.T5ForConditionalGeneration(
        t.T5Config(vocab_size=99, d_model=32, d_ff=64, d_kv=8, num_layers=2, num_heads=4, decoder_start_token_id=0)
    ),
    "Llama": lambda t: t.LlamaForCausalLM(t.LlamaConfig(num_key_value_heads=2, **TEXT)),
    "Mamba": lambda t: t.MambaForCausalLM(
        t.MambaConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, state_size=4, **SPECIAL)
    ),
    "Wav2Vec2": lambda t: t.Wav2Vec2Model(
        t.Wav2Vec2Config(conv_dim=(16,) * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4, layerdrop=0.0, **SMALL)
    ),
    "CLIP": lambda t: t.CLIPModel(t.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=16)),
}
INPUTS = {
    "Bert": {"input_ids": "int64[8,16]<99"},
    "GPT2": {"input_ids": "int64[8,16]<99"},
    "ViT": {"pixel_values": "float32[8,3,32,32]"},
    "T5": {"input_ids": "int64[8,16]<99", "decoder_input_ids": "int64[8,16]<99"},
    "Llama": {"input_ids": "int64[8,16]<99"},
    "Mamba": {"input_ids": "int64[8,16]<99"},
    "Wav2Vec2": {"input_values": "float32[8,4000]"},
    "CLIP": {"input_ids": "int64[8,16]<99", "pixel_values": "float32[8,3,32,32]"},
}
RESIDUAL_ADDS = {"Bert": 4, "GPT2": 4, "ViT": 4, "T5": 10, "Llama": 4, "Mamba": 2, "Wav2Vec2": 4, "CLIP": 8}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
def test_a_transformers_model_is_captured_in_full(name):
    module = MODELS[name](transformers)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    result = run(module)
    assert {spec.name: spec.text for spec in result.runnable.inputs} == INPUTS[name]
    assert result.runnable.capture == "full"
    assert [node.id for node in result.graph if node.op == "unknown"] == []
    assert [node.id for node in result.graph if node.op != "input" and node.source is None] == []
    sums = [node for node in result.graph if node.op == "add" and sum(ref is not None for ref in node.inputs) == 2]
    assert len(sums) >= RESIDUAL_ADDS[name]
    check_sound(result, module)
    assert all(value.equal(before[key]) for key, value in module.state_dict().items())


def test_the_tied_head_of_gpt2_has_the_name_of_its_embedding():
    result = run(MODELS["GPT2"](transformers))
    assert result.graph["lm_head:linear"].weights["weight"].name == "transformer.wte.weight"
    assert "transformer.wpe.weight" in owners(result)
