"""Formats beside .onnx: exported programs, weights beside a factory, folders of Hugging Face, models on the meta device."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

import gradlint
from gradlint.errors import GradlintError, TargetError, UnsafeFileError
from gradlint.frontends.torch.weights import read_safetensors


def stack(gain=1.0, depth=6):
    torch.manual_seed(0)
    layers = [layer for _ in range(depth) for layer in (nn.Linear(16, 16, bias=False), nn.Tanh())]
    module = nn.Sequential(*layers, nn.Linear(16, 3))
    for layer in layers[::2]:
        nn.init.orthogonal_(layer.weight, gain)
    return module


def on_meta(depth=6):
    with torch.device("meta"):
        return nn.Sequential(*(layer for _ in range(depth) for layer in (nn.Linear(16, 16), nn.Tanh())), nn.Linear(16, 3))


def save(path, tensors):
    """Write a .safetensors file, by its specification."""
    header, blobs, place = {"__metadata__": {"format": "pt"}}, [], 0
    for name, tensor in tensors.items():
        blob = tensor.detach().numpy().tobytes()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [place, place + len(blob)]}
        place += len(blob)
        blobs.append(blob)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))
    return path


class Planted:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    pytest.importorskip("torch.export.pt2_archive")
    path = tmp_path_factory.mktemp("exported") / "model.pt2"
    batch = torch.export.Dim("batch", min=2, max=64)
    torch.export.save(torch.export.export(stack(), (torch.randn(4, 16),), dynamic_shapes=({0: batch},)), path)
    return path


def changed(path, out, edit):
    """Copy an archive; `edit` gets the name and the content of each entry and returns the new content."""
    with zipfile.ZipFile(path) as before, zipfile.ZipFile(out, "w") as after:
        for name in before.namelist():
            after.writestr(name, edit(name, before.read(name)))
    return out


def test_an_exported_program_is_measured_like_its_module(exported):
    report, of_module = gradlint.check(exported, seeds=1), gradlint.check(stack(), (torch.ones(4, 16),), seeds=1)
    assert report.verdict == "healthy"
    assert report.growth.decades == pytest.approx(of_module.growth.decades, abs=0.3)
    assert report.result.inputs[0].spec.startswith("float32[4,16]")


def test_pickles_and_code_of_an_exported_program_never_run(exported, tmp_path):
    planted = tmp_path / "PLANTED"
    call = f"__import__('pathlib').Path({str(planted)!r}).touch()"

    def in_program(change):
        def edit(name, content):
            if not name.endswith("models/model.json"):
                return content
            document = json.loads(content)
            change(document)
            return json.dumps(document)

        return edit

    def of_constants(name, content):
        return (
            json.dumps({"config": {"a": {"path_name": "opaque_obj_0", "use_pickle": True}}})
            if "constants_config" in name
            else content
        )

    def of_weights(name, content):
        return content.replace(b'"use_pickle": false', b'"use_pickle": true') if "weights_config" in name else content

    def of_target(document):
        document["graph_module"]["graph"]["nodes"][0]["target"] = "os.system"

    def of_spec(document):
        call_of = next(entry for entry in document["graph_module"]["module_call_graph"] if entry["signature"])
        spec = json.loads(call_of["signature"]["in_spec"])
        spec[1].update(
            type="collections.defaultdict", context=json.dumps({"default_factory_module": "os", "default_factory_name": "abort"})
        )
        call_of["signature"]["in_spec"] = json.dumps(spec)

    def of_size(name, content):
        return content.replace(b"Symbol('", f"{call} + Symbol('".encode()) if name.endswith("models/model.json") else content

    edits = {
        "sample inputs": lambda name, content: pickle.dumps(Planted(planted)) if "sample_inputs" in name else content,
        "guards": in_program(lambda document: document.update(guards_code=[call])),
        "size": of_size,
        "constants": of_constants,
        "weights": of_weights,
        "target": in_program(of_target),
        "arguments": in_program(of_spec),
    }
    for what, edit in edits.items():
        path = changed(exported, tmp_path / f"{what}.pt2", edit)
        if what in {"sample inputs", "guards"}:  # left out
            assert gradlint.check(path, seeds=1).verdict == "healthy"
        else:
            with pytest.raises(UnsafeFileError, match="export the model to ONNX"):
                gradlint.check(path)
        assert not planted.exists(), what


@pytest.mark.parametrize("content", [b"", b"PK", b"no archive", None], ids=["empty", "cut", "text", "another archive"])
def test_a_damaged_exported_program_is_an_error(content, tmp_path):
    if content is None:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("a/b", "c")
        content = buffer.getvalue()
    (tmp_path / "model.pt2").write_bytes(content)
    with pytest.raises(TargetError, match=r"model\.pt2"):
        gradlint.check(tmp_path / "model.pt2")


def test_weights_of_a_file_are_the_ones_that_are_judged(tmp_path):
    path = save(tmp_path / "model.safetensors", stack(gain=6.0).state_dict())
    module = stack()
    before = module[0].weight.clone()
    own, loaded = (gradlint.check(module, (torch.randn(8, 16),), seeds=1, weights=weights) for weights in (None, path))
    assert own.growth.decades < 1.0 < loaded.growth.decades
    assert torch.equal(module[0].weight, before)


def test_missing_unexpected_and_misshapen_keys_are_named(tmp_path):
    tensors = stack().state_dict()
    tensors["strange"] = tensors.pop("2.weight")
    tensors["4.weight"] = torch.zeros(2, 2)
    path = save(tmp_path / "model.safetensors", tensors)
    with pytest.raises(TargetError) as caught:
        gradlint.check(stack(), weights=path)
    for text in ("missing: 2.weight", "unexpected: strange", "4.weight ((2, 2) for (16, 16))"):
        assert text in str(caught.value)


def test_tied_weights_are_stored_once(tmp_path):
    module = stack()
    module[2].weight = module[0].weight
    tensors = module.state_dict()
    del tensors["2.weight"]
    gradlint.check(module, (torch.randn(8, 16),), seeds=1, weights=save(tmp_path / "model.safetensors", tensors))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 70) + b'{"a": {"dtype": "F32", "shape": [99999999], "data_offsets": [0, 4]}}  ',
        struct.pack("<Q", 68) + b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}}     ',
        struct.pack("<Q", 100_000) + b"[" * 100_000,
    ],
    ids=["empty", "huge header", "list", "outside", "negative", "deep"],
)
def test_a_damaged_weights_file_is_an_error(content, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(TargetError, match=r"model\.safetensors"):
        read_safetensors(path)


def test_pickles_are_refused_as_weights_and_weights_alone_as_a_model(tmp_path):
    (tmp_path / "model.pt").write_bytes(pickle.dumps(Planted(tmp_path / "PLANTED")))
    with pytest.raises(UnsafeFileError, match="save_file"):
        gradlint.check(stack(), weights=tmp_path / "model.pt")
    with pytest.raises(UnsafeFileError, match="runs code"):
        gradlint.check(tmp_path / "model.pt")
    with pytest.raises(TargetError, match="--weights"):
        gradlint.check(save(tmp_path / "model.safetensors", stack().state_dict()))
    assert not (tmp_path / "PLANTED").exists()


def test_a_model_on_the_meta_device(tmp_path):
    model = on_meta()
    with pytest.raises(TargetError, match="--materialize"):
        gradlint.check(model)
    torch.manual_seed(0)
    drawn = nn.Sequential(*(layer for _ in range(6) for layer in (nn.Linear(16, 16), nn.Tanh())), nn.Linear(16, 3))
    expected = gradlint.check(drawn, seeds=1)
    static, probed = gradlint.check(model, probe=False), gradlint.check(model, seeds=1, materialize=True)
    assert static.growth.decades == pytest.approx(expected.growth.decades, abs=0.6)
    assert probed.growth.decades == pytest.approx(expected.growth.decades, abs=0.6)
    assert all(parameter.is_meta for parameter in model.parameters())
    loaded = gradlint.check(on_meta(), seeds=1, weights=save(tmp_path / "model.safetensors", drawn.state_dict()))
    assert loaded.growth.decades == expected.growth.decades


def test_what_nothing_initializes_is_named():
    model = on_meta()
    model.scale = nn.Parameter(torch.empty(3, device="meta"))
    with pytest.raises(TargetError, match=r"nothing initializes Sequential"):
        gradlint.check(model, materialize=True)


def test_a_folder_of_hugging_face(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_layer=2, n_embd=16, n_head=2, vocab_size=50, n_positions=32, bos_token_id=1, eos_token_id=1
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "model")
    assert gradlint.check(tmp_path / "model", seeds=1).verdict == "healthy"
    document = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "evil.py").write_text("import pathlib; pathlib.Path(__file__).with_name('PLANTED').touch()")
    for change, said in (
        ({"auto_map": {"AutoModel": "evil.Model"}}, "wants code to be run"),
        ({"architectures": ["NoSuchModel"]}, "no architecture 'NoSuchModel'"),
        ({"n_layer": 3}, r"missing: transformer\.h\.2"),
        ({"n_layer": 1}, r"unexpected: .*h\.1"),
    ):
        (tmp_path / "model" / "config.json").write_text(json.dumps(document | change))
        with pytest.raises(GradlintError, match=said):
            gradlint.check(tmp_path / "model")
    assert not (tmp_path / "model" / "PLANTED").exists()
