"""Reading ONNX files: real ones, memory maps against onnx.load, and files that are damaged or hostile."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from gradlint.errors import InputError, TargetError, UnsafeFileError
from gradlint.frontends.inputs import parse_inputs
from gradlint.frontends.onnx.file import read_onnx
from gradlint.frontends.onnx.skeleton import ITSELF, load_skeleton
from gradlint.frontends.onnx.walk import tensors
from gradlint.ops import UNKNOWN, operator
from tests.models.onnxruntime_sessions import by_onnxruntime


def wheel_models():
    folders = {"silero_vad": "data", "rapidocr_onnxruntime": "models", "magika": "models"}
    for package, folder in folders.items():
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            yield from sorted((Path(spec.origin).parent / folder).rglob("*.onnx"))


def linear_model(weight, name="w", **fields):
    node = helper.make_node("MatMul", ["x", name], ["y"])
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", weight.shape[0]])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "g", [x], [y], [numpy_helper.from_array(weight, name)])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8, **fields)


def external_model(tmp_path, location, *, offset=0, length=None, written=4096):
    model = linear_model(np.zeros((32, 32), np.float32))
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entries = {"location": location, "offset": offset, "length": 4096 if length is None else length}
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))
    path = tmp_path / "model" / "model.onnx"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(model.SerializeToString())
    if written and not Path(location).is_absolute():
        (path.parent / location).write_bytes(bytes(written))
    return path


WHEEL_MODELS = list(wheel_models())
in_wheels = pytest.mark.parametrize("path", WHEEL_MODELS, ids=lambda path: path.stem)


@in_wheels
def test_every_operator_of_a_published_model_is_in_the_vocabulary(path):
    graph = read_onnx(path).graph
    unknown = {str(node.attrs["name"]) for node in graph if operator(node.op) is UNKNOWN}
    assert len(graph) > 20
    assert unknown == set()


@in_wheels
def test_mapped_weights_are_bit_identical_to_those_of_onnx_load(path):
    skeleton = load_skeleton(path)
    pairs = zip(tensors(skeleton.proto), tensors(onnx.load(path)), strict=True)
    assert all(skeleton.array(ours).tobytes() == numpy_helper.to_array(theirs).tobytes() for ours, theirs in pairs)


@in_wheels
def test_inferred_inputs_of_a_published_model_run_in_onnxruntime(path):
    file = read_onnx(path)
    feeds = {spec.name: spec.draw(np.random.default_rng(0)) for spec in file.inputs}
    assert all(np.isfinite(output).all() for output in by_onnxruntime(path, feeds))


DTYPES = (np.float32, np.float64, np.float16, np.int8, np.int64, np.uint8, np.bool_)


@pytest.mark.parametrize("rows", [64, 27_000])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_large_tensors_of_any_dtype_are_read_from_where_they_lie(tmp_path, dtype, rows):
    values = (np.random.default_rng(0).standard_normal((rows, 40)) * 3).astype(dtype)
    path = tmp_path / "m.onnx"
    onnx.save(linear_model(values), path)
    for source in (path, path.read_bytes(), onnx.load(path)):
        file = read_onnx(source)
        tensor = file.proto.graph.initializer[0]
        assert not tensor.raw_data
        assert file.array(tensor).dtype == values.dtype
        assert np.array_equal(file.array(tensor), values)
    file = read_onnx(path)
    assert isinstance(file.array(file.proto.graph.initializer[0]), np.memmap) == (values.nbytes >= 1 << 20)


@pytest.mark.parametrize("name", ["BFLOAT16", "FLOAT8E4M3FN", "FLOAT8E5M2", "INT4", "UINT4"])
def test_tensors_without_a_numpy_dtype_equal_what_onnx_decodes(tmp_path, name):
    kind = TensorProto.DataType.Value(name)
    values = np.arange(-1500, 1500).reshape(60, 50) % 8
    tensor = helper.make_tensor("w", kind, values.shape, values.astype(np.float32).ravel())
    bits = 4 if name.endswith("INT4") else 16 if name == "BFLOAT16" else 8
    raw = np.random.default_rng(1).integers(0, 100, values.size * bits // 8).astype(np.uint8).tobytes()
    tensor = TensorProto(name="w", data_type=kind, dims=values.shape, raw_data=raw)
    model = linear_model(np.zeros((60, 50), np.float32))
    model.graph.initializer[0].CopyFrom(tensor)
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    file = read_onnx(path)
    found = file.array(file.proto.graph.initializer[0])
    expected = numpy_helper.to_array(tensor)
    assert not file.proto.graph.initializer[0].raw_data
    assert np.array_equal(found.astype(np.float64), expected.astype(np.float64), equal_nan=True)


def test_external_data_is_mapped_from_the_folder_of_the_model(tmp_path):
    weight = np.random.default_rng(0).standard_normal((50, 60)).astype(np.float32)
    path = tmp_path / "m.onnx"
    onnx.save(linear_model(weight), path, save_as_external_data=True, location="m.bin", size_threshold=0)
    file = read_onnx(path)
    assert np.array_equal(file.array(file.proto.graph.initializer[0]), weight)
    assert np.array_equal(file.graph["MatMul:y"].weights["weight"].array(), weight)


def test_weights_in_attributes_subgraphs_and_functions_leave_the_skeleton():
    big = numpy_helper.from_array(np.ones((40, 40), np.float32))
    constant = helper.make_node("Constant", [], ["w"], value=big)
    output = helper.make_tensor_value_info("w", TensorProto.FLOAT, [40, 40])
    branch = helper.make_graph([constant], "b", [], [output])
    function = helper.make_function("local", "F", ["a"], ["b"], [constant, helper.make_node("MatMul", ["a", "w"], ["b"])], [
        helper.make_opsetid("", 18)
    ])  # fmt: skip
    nodes = [
        helper.make_node("If", ["c"], ["p"], then_branch=branch, else_branch=branch),
        helper.make_node("F", ["p"], ["y"], domain="local"),
    ]
    c = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [40, 40])
    model = helper.make_model(
        helper.make_graph(nodes, "g", [c], [y]),
        functions=[function],
        opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("local", 1)],
    )
    skeleton = load_skeleton(model)
    found = list(tensors(skeleton.proto))
    assert len(found) == 3
    assert skeleton.proto.ByteSize() < 2000
    assert all(np.array_equal(skeleton.array(tensor), np.ones((40, 40))) for tensor in found)
    assert [node.op for node in read_onnx(model).graph] == ["input", "control", "linear"]


@pytest.mark.parametrize("location", ["../outside.bin", "/etc/passwd", "sub/../../outside.bin", ""])
def test_external_data_outside_the_folder_is_refused(tmp_path, location):
    path = external_model(tmp_path, location, written=0)
    with pytest.raises(UnsafeFileError, match="outside the model's folder"):
        read_onnx(path)


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    path = external_model(tmp_path, "w.bin", written=0)
    (tmp_path / "secret.bin").write_bytes(bytes(4096))
    (path.parent / "w.bin").symlink_to(tmp_path / "secret.bin")
    with pytest.raises(UnsafeFileError):
        read_onnx(path)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ({"location": "w.bin", "written": 0}, "is missing"),
        ({"location": "w.bin", "written": 4095}, "0 to 4096 of a file of 4095"),
        ({"location": "w.bin", "offset": 8}, "8 to 4104 of a file of 4096"),
        ({"location": "w.bin", "length": 12}, "12 bytes"),
        ({"location": "w.bin", "offset": 1 << 70}, "of a file of 4096"),
        ({"location": "w.bin", "offset": -4}, "not a number"),
        ({"location": "w.bin", "offset": "zero"}, "not a number"),
        ({"location": "w\0.bin", "written": 0}, "is missing"),
    ],
)
def test_external_data_that_does_not_fit_is_reported_at_load(tmp_path, case, message):
    with pytest.raises(TargetError, match=message):
        read_onnx(external_model(tmp_path, **case))


def test_external_data_of_a_model_in_memory_asks_for_the_path(tmp_path):
    model = onnx.load(external_model(tmp_path, "w.bin"), load_external_data=False)
    with pytest.raises(TargetError, match="no folder"):
        read_onnx(model)


def test_references_to_the_file_itself_are_external_data_as_the_standard_has_it(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(linear_model(np.ones((40, 40), np.float32)), path)
    slim = load_skeleton(path).proto
    (location,) = (entry for entry in slim.graph.initializer[0].external_data if entry.key == "location")
    assert location.value == ITSELF
    location.value = path.name
    onnx.load_external_data_for_model(slim, str(tmp_path))
    assert np.array_equal(numpy_helper.to_array(slim.graph.initializer[0]), np.ones((40, 40)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"this is a text file\n" * 200, "not an ONNX file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "Git LFS"),
        (b"\x08\x08", "no ONNX graph"),
        (b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "not an ONNX file"),
        (b"\xff" * 64, "not an ONNX file"),
        (b"\x3a\x05\x0a\x03\x22\x01\xff", "not UTF-8"),
    ],
)
def test_a_file_of_another_kind_is_a_target_error_that_names_it(tmp_path, content, message):
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(TargetError, match=message) as caught:
        read_onnx(path)
    assert str(path) in str(caught.value)


def test_missing_files_and_folders_are_target_errors(tmp_path):
    for path in (tmp_path / "none.onnx", tmp_path):
        with pytest.raises(TargetError, match="cannot be read"):
            read_onnx(path)


def test_every_truncation_is_a_target_error_or_a_shorter_valid_graph():
    whole = linear_model(np.ones((20, 20), np.float32)).SerializeToString()
    read = 0
    for length in range(len(whole)):
        try:
            read_onnx(whole[:length])
            read += 1
        except TargetError:
            pass
    assert read < 50  # the cut fell into the version fields behind the graph


def test_deep_nesting_of_messages_ends_in_a_target_error():
    message = b""
    for _ in range(3000):
        body = b"\x32" + _varint(len(message)) + message  # attribute.g
        body = b"\x2a" + _varint(len(body)) + body  # node.attribute
        message = b"\x0a" + _varint(len(body)) + body  # graph.node
    with pytest.raises(TargetError, match="not an ONNX file"):
        read_onnx(b"\x3a" + _varint(len(message)) + message)


def _varint(value):
    parts = bytearray()
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


MODEL_BYTES = linear_model(np.ones((20, 20), np.float32), producer_name="fuzz").SerializeToString()


@settings(max_examples=150, deadline=None)
@given(edits=st.lists(st.tuples(st.integers(0, len(MODEL_BYTES) - 1), st.integers(0, 255)), min_size=1, max_size=8))
def test_damaged_bytes_never_end_in_another_error(edits):
    data = bytearray(MODEL_BYTES)
    for position, value in edits:
        data[position] = value
    try:
        file = read_onnx(bytes(data))
        _ = file.inputs, [weight.statistics for weight in file.graph.weights.values()]
    except (TargetError, InputError):
        return
    assert len(file.graph) >= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.dims.append(9), "needs 14400"),
        (lambda t: setattr(t, "data_type", 0), "no valid type"),
        (lambda t: t.dims.__setitem__(0, -20), "no valid type"),
    ],
)
def test_a_weight_whose_bytes_do_not_fit_its_shape_is_reported_at_load(change, message):
    model = linear_model(np.ones((20, 20), np.float32))
    change(model.graph.initializer[0])
    with pytest.raises(TargetError, match=message):
        read_onnx(model)


def test_a_node_that_reads_a_tensor_nobody_makes_is_named():
    model = linear_model(np.ones((4, 4), np.float32))
    model.graph.node[0].input[1] = "ghost"
    with pytest.raises(TargetError, match=r"MatMul:y reads 'ghost'"):
        read_onnx(model)


def test_functions_that_call_one_another_in_a_circle_are_refused():
    opset = [helper.make_opsetid("", 18), helper.make_opsetid("local", 1)]
    functions = [
        helper.make_function("local", name, ["a"], ["b"], [helper.make_node(other, ["a"], ["b"], domain="local")], opset)
        for name, other in (("F", "G"), ("G", "F"))
    ]
    model = linear_model(np.ones((4, 4), np.float32))
    model.functions.extend(functions)
    with pytest.raises(TargetError, match="circle"):
        read_onnx(model)


def absurd_nodes(maker):
    """Nodes that make a vector of 2**40 elements out of small initializers, and add it to x."""
    nodes = {
        "ConstantOfShape": [helper.make_node("ConstantOfShape", ["size"], ["c"])],
        "Expand": [helper.make_node("Expand", ["one", "size"], ["c"])],
        "Tile": [helper.make_node("Tile", ["one", "size"], ["c"])],
        "Range": [helper.make_node("Range", ["zero", "scalar", "unit"], ["c"])],
        "computed": [
            helper.make_node("Unsqueeze", ["scalar", "zeros"], ["s"]),
            helper.make_node("Expand", ["one", "s"], ["c"]),
        ],
        "Concat": [helper.make_node("Concat", [f"c{i}"] * 2, [f"c{i + 1}"], axis=0) for i in range(40)],
    }[maker]
    nodes[-1].output[0] = "c"
    return [*nodes, helper.make_node("Add", ["x", "c"], ["y"])]


@pytest.mark.parametrize("maker", ["ConstantOfShape", "Expand", "Tile", "Range", "computed", "Concat"])
def test_a_constant_of_absurd_size_is_not_computed(maker):
    values = {"size": [1 << 40], "scalar": 1 << 40, "zero": 0, "unit": 1, "one": [1], "zeros": [0], "c0": [1]}
    initializers = [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in values.items()]
    x = helper.make_tensor_value_info("x", TensorProto.INT64, [1])
    y = helper.make_tensor_value_info("y", TensorProto.INT64, None)
    graph = read_onnx(
        helper.make_model(
            helper.make_graph(absurd_nodes(maker), "g", [x], [y], initializers), opset_imports=[helper.make_opsetid("", 18)]
        )
    ).graph
    assert next(iter(graph)).op == "input"
    assert graph.outputs[0].node == "Add:y"
    assert all(weight.size < 1 << 30 for weight in graph.weights.values())


def test_reading_does_not_change_a_model_in_memory():
    model = linear_model(np.ones((40, 40), np.float32))
    before = model.SerializeToString(deterministic=True)
    read_onnx(model)
    assert model.SerializeToString(deterministic=True) == before


def test_reading_an_onnx_file_does_not_import_torch(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(linear_model(np.ones((40, 40), np.float32)), path)
    code = (
        "import sys, json; from gradlint.frontends.onnx.file import read_onnx; file = read_onnx(sys.argv[1]);"
        "file.inputs; [w.spectral_norm for w in file.graph.weights.values()];"
        "print(json.dumps([m for m in ('torch', 'rich', 'click', 'onnxruntime') if m in sys.modules]))"
    )
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=root, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_given_inputs_replace_those_that_cannot_be_inferred():
    model = linear_model(np.ones((4, 4), np.float32))
    model.graph.input[0].type.tensor_type.ClearField("shape")
    model.graph.node[0].op_type = "Add"  # whose operand may have any rank
    file = read_onnx(model)
    with pytest.raises(InputError, match=r"--input x=float32\["):
        _ = file.inputs
    (spec,) = file.inputs_with(parse_inputs(("float32[2,4]",)))
    assert (spec.name, spec.shape, spec.given) == ("x", (2, 4), True)
