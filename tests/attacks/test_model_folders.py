"""Hostile folders of models as Hugging Face saves them."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
import torch

from tests.attacks.planted import CALL, Planted
from tests.attacks.test_torch_weights import TENSORS, one, weights

CONFIG = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "n_embd": 8,
    "n_layer": 1,
    "n_head": 2,
    "vocab_size": 16,
    "n_positions": 8,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


def folder(config=CONFIG, content=None):
    Path("hub").mkdir(exist_ok=True)
    Path("hub/config.json").write_bytes(config if isinstance(config, bytes) else json.dumps(config).encode())
    Path("hub/model.safetensors").write_bytes(weights(one(), bytes(16)) if content is None else content)
    return "hub"


CODE = "module.Class"
CONFIGURATIONS = {
    "no JSON": b"\xff",
    "nothing": b"",
    "a list": b"[]",
    "nested deeply": b'{"a":' * 10**5 + b"1" + b"}" * 10**5,
    "lists nested deeply": b'{"a":' + b"[" * 10**5 + b"]" * 10**5 + b"}",
    "nested": json.dumps({**CONFIG, "a": json.loads("[" * 100 + "]" * 100)}).encode(),
    "a huge file": b'{"a": "' + b"a" * (17 << 20) + b'"}',
    "not a number": b'{"model_type": "gpt2", "n_embd": NaN}',
    "infinity": b'{"model_type": "gpt2", "n_embd": Infinity}',
    "a name twice": b'{"model_type": "gpt2", "model_type": "bert"}',
    "many digits": b'{"model_type": "gpt2", "n_embd": ' + b"9" * 5000 + b"}",
    "code of the folder": {**CONFIG, "auto_map": {"AutoModel": CODE}},
    "code in a part": {**CONFIG, "text_config": {"auto_map": {"AutoModel": CODE}}},
    "code in a list": {**CONFIG, "parts": [{"auto_map": {"AutoConfig": CODE}}]},
    "trust": {**CONFIG, "trust_remote_code": True},
    "a pipeline": {**CONFIG, "custom_pipelines": {"x": {"impl": CODE}}},
    "an unknown type": {"model_type": "nothing", "architectures": None},
    "no type": {"n_embd": 8},
    "a type that is a list": {"model_type": ["gpt2"], "architectures": None},
    "an unknown architecture": {**CONFIG, "architectures": ["NothingModel"]},
    "an architecture that is a function": {**CONFIG, "architectures": ["pipeline"]},
    "an architecture that is a tokenizer": {**CONFIG, "architectures": ["GPT2Tokenizer"]},
    "an architecture that is a path": {**CONFIG, "architectures": ["__class__.__init__"]},
    "an architecture that is a number": {**CONFIG, "architectures": [7]},
    "a billion layers": {**CONFIG, "n_layer": 10**9},
    "many layers": {**CONFIG, "n_layer": 10**5},
    "layers that are text": {**CONFIG, "n_layer": "many"},
    "layers as a fraction": {**CONFIG, "n_layer": 1e9},
    "a billion heads": {**CONFIG, "n_head": 10**9},
    "a huge width": {**CONFIG, "n_embd": 10**7},
    "a wider width": {**CONFIG, "n_embd": 2**62},
    "a huge vocabulary": {**CONFIG, "vocab_size": 10**12},
    "many positions": {**CONFIG, "n_positions": 10**12},
    "a negative width": {**CONFIG, "n_embd": -8},
    "a width of zero": {**CONFIG, "n_embd": 0},
    "an activation that is code": {**CONFIG, "activation_function": CALL},
    "a dtype that is code": {**CONFIG, "dtype": CALL},
    "quantized": {**CONFIG, "quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
    "other weights": CONFIG,
}


@pytest.mark.parametrize("config", CONFIGURATIONS.values(), ids=CONFIGURATIONS.keys())
def test_configurations(refused_within_limits, config):
    pytest.importorskip("transformers")
    Path("module.py").write_text("import pathlib\npathlib.Path('PLANTED').touch()\n", encoding="utf-8")
    place = folder(config)
    Path("hub/module.py").write_text("import pathlib\npathlib.Path('PLANTED').touch()\n", encoding="utf-8")
    refused_within_limits(place, because="hub")


@pytest.mark.parametrize("name", ["nothing", "a header without end", "tensors that overlap", "a negative size", "a pickle"])
def test_weights_in_a_folder(refused_within_limits, name):
    refused_within_limits(folder(content=TENSORS[name]), because="model.safetensors")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("how", ["link", "link up", "hard link", "pipe", "device", "folder"])
def test_files_that_are_not_of_the_folder(refused_within_limits, name, how):
    path = Path(folder()) / name
    outside = path.rename(f"outside-{name}")
    if how == "link":
        path.symlink_to(outside.resolve())
    elif how == "link up":
        path.symlink_to(f"../outside-{name}")
    elif how == "hard link":
        os.link(outside, path)
    elif how == "pipe":
        os.mkfifo(path)
    elif how == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    refused_within_limits("hub", because="hub")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.ckpt"])
def test_pickles_in_a_folder(refused_within_limits, name):
    Path(folder(), "model.safetensors").unlink()
    Path("hub", name).write_bytes(pickle.dumps(Planted()))
    refused_within_limits("hub", because="save_pretrained")


INDICES = {
    "nested deeply": b"[" * 10**5,
    "no map": b"{}",
    "a file elsewhere": b'{"weight_map": {"a": "../outside.safetensors"}}',
    "a pickle": b'{"weight_map": {"a": "pytorch_model.bin"}}',
    "a number": b'{"weight_map": {"a": 7}}',
}


@pytest.mark.parametrize("index", INDICES.values(), ids=INDICES.keys())
def test_an_index_of_other_files(refused_within_limits, index):
    pytest.importorskip("transformers")
    Path(folder(), "model.safetensors").rename("hub/model-00001-of-00001.safetensors")
    Path("hub/model.safetensors.index.json").write_bytes(index)
    refused_within_limits("hub", because="cannot be read")


def test_a_sound_folder_is_read_also_through_the_links_of_a_cache(run, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    home = tmp_path / "models--a" / "snapshots" / "0"
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**CONFIG)).save_pretrained(home)
    blobs = home.parent.parent / "blobs"
    blobs.mkdir()
    (home / "pytorch_model.bin").write_bytes(pickle.dumps(Planted()))  # beside safetensors, it is not looked at
    for path in (home / "config.json", home / "model.safetensors"):
        path.rename(blobs / f"blob-{path.name}")
        path.symlink_to(f"../../blobs/blob-{path.name}")
    code, out, err = run(str(home), "--input", "input_ids=int64[2,8]<16", "--seeds", "1", "--output-format", "json")
    assert code == 0, err
    assert json.loads(out)["targets"][0]["verdict"] == "healthy"
    assert not [*tmp_path.rglob("PLANTED")]
