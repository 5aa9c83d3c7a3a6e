"""Whatever a user gets wrong: exit 2, a clear sentence on stderr, nothing on stdout, no traceback."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "sample_models" / "tanh_gain_healthy.onnx"

NET = """
import torch
from torch import nn

def build():
    return nn.Linear(4, 4)

def wants(width, depth):
    return nn.Linear(width, depth)

def fails():
    raise RuntimeError("the factory is out of order")

text = "not a model"

class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        x = self.fc(x)
        raise ValueError("the forward is out of order")
"""


@pytest.fixture
def net(tmp_path):
    (tmp_path / "net_for_test.py").write_text(NET)
    return "net_for_test.py"


def check_refused(run, *args, says):
    code, out, err = run(*args)
    assert code == 2, err
    assert out == ""
    assert "Traceback" not in err
    for words in says:
        assert words in err
    return err


def _external(folder, location, *, length=None):
    """A model whose weight lies in another file."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[64, 64], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    tensor.external_data.add(key="length", value=str(length or 64 * 64 * 4))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [8, 64])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [8, 64])
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [tensor])
    path = folder / "external.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]).SerializeToString())
    return path.name


def test_missing_file(run):
    check_refused(run, "nowhere.onnx", says=["nowhere.onnx", "no such file"])


def test_empty_file(run, tmp_path):
    (tmp_path / "empty.onnx").touch()
    check_refused(run, "empty.onnx", says=["empty.onnx", "empty"])


def test_text_file_named_onnx(run, tmp_path):
    (tmp_path / "text.onnx").write_text("this is no model, it is a sentence\n" * 40)
    check_refused(run, "text.onnx", says=["text.onnx"])


def test_truncated_file(run, tmp_path):
    (tmp_path / "cut.onnx").write_bytes(SAMPLE.read_bytes()[:5000])
    check_refused(run, "cut.onnx", says=["cut.onnx"])


def test_external_data_missing(run, tmp_path):
    check_refused(run, _external(tmp_path, "weights.bin"), says=["weights.bin"])


@pytest.mark.parametrize("location", ["../weights.bin", "/etc/hostname"])
def test_external_data_outside_the_folder(run, tmp_path, location):
    check_refused(run, _external(tmp_path, location), says=[location])


def test_pickles_are_refused_and_not_read(run, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path(tmp_path / "exploded").touch, ())

    (tmp_path / "model.pt").write_bytes(pickle.dumps(Bomb()))
    check_refused(run, "model.pt", says=["model.pt", "runs code", "ONNX"])
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("name", ["weights.xyz", "model.safetensors", "model.pt2"])
def test_a_file_of_a_kind_that_is_not_read(run, tmp_path, name):
    (tmp_path / name).write_bytes(b"\0" * 100)
    check_refused(run, name, says=[name])


def test_module_that_cannot_be_imported(run):
    check_refused(run, "no_such_package.mod:build", says=["no_such_package"])


def test_attribute_that_does_not_exist(run, net):
    check_refused(run, f"{net}:biuld", says=["biuld", "build"])


def test_factory_that_needs_arguments(run, net):
    check_refused(run, f"{net}:wants", says=["width", "depth"])


def test_factory_that_raises(run, net):
    check_refused(run, f"{net}:fails", says=["the factory is out of order", "net_for_test.py:12"])


def test_object_that_is_no_model(run, net):
    check_refused(run, f"{net}:text", says=["str"])


def test_python_file_without_a_name(run, net):
    check_refused(run, net, says=[f"{net}:build"])


def test_forward_that_raises_is_shown_with_the_users_line(run, net):
    check_refused(run, f"{net}:Broken", "--input", "x=float32[2,4]", says=["the forward is out of order", "net_for_test.py:23"])


def test_wrong_input_shape(run, net):
    check_refused(run, f"{net}:build", "--input", "float32[2,5]", says=["5", "4"])
    check_refused(run, str(SAMPLE), "--input", "x=float32[8,5]", says=["x"])


def test_unknown_input_name(run):
    check_refused(run, str(SAMPLE), "--input", "y=float32[8,24]", says=["'y'", "x"])


@pytest.mark.parametrize("text", ["x=float32", "x=floaty[2]", "x=float32[2]<5", "x=@nowhere.npz"])
def test_input_that_is_not_understood(run, text):
    check_refused(run, str(SAMPLE), "--input", text, says=["--input"])


def test_unknown_rule_code(run):
    check_refused(run, str(SAMPLE), "--select", "GL999", says=["GL999"])
    check_refused(run, str(SAMPLE), "--ignore", "weight-gain-above", says=["weight-gain-above-critical"])


@pytest.mark.parametrize(("last", "code"), [("MatMul", 2), ("Tanh", 0)])
def test_an_unknown_operator_gives_a_partial_probe_that_says_so(run, tmp_path, last, code):
    """Where weight layers lie behind the operator there is no verdict, and exit 2."""
    weight = numpy_helper.from_array(np.eye(8, dtype=np.float32), "w")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="first"),
        helper.make_node("Tanh", ["h"], ["t"], name="second"),
        helper.make_node("Mystery", ["t"], ["m"], name="third", domain="org.example"),
        helper.make_node(last, ["m", "w"] if last == "MatMul" else ["m"], ["y"], name="fourth"),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 8])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("org.example", 1)]
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [y], [weight]), opset_imports=opsets)
    onnx.save(model, tmp_path / "mystery.onnx")
    exit_code, out, err = run("mystery.onnx", "--output-format", "concise")
    assert exit_code == code, err
    assert ("only 3 of 5 operators could be probed" in err) is (code == 2)
    assert "GL902" in out
    assert "GL901" in out
    assert "Mystery" in out
