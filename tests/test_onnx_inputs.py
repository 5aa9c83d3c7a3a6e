"""What is fed to an input of an ONNX file that says little of it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from gradlint.errors import InputError
from gradlint.frontends.onnx_file import read_onnx

F32, I64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def inputs_of(nodes, inputs, values=(), outputs=("y",)):
    given = [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in dict(values).items()]
    graph = helper.make_graph(nodes, "g", given, [onnx.ValueInfoProto(name=name) for name in outputs], tensors)
    return read_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])).inputs


def ones(*shape):
    return np.ones(shape, np.float32)


def test_token_and_position_ids_stay_below_the_table_that_they_index():
    nodes = [
        helper.make_node("Gather", ["words", "ids"], ["a"]),
        helper.make_node("Gather", ["places", "position_ids"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    shape = ["batch", "sequence"]
    specs = inputs_of(nodes, [("ids", I64, shape), ("position_ids", I64, shape)], {"words": ones(30, 8), "places": ones(10, 8)})
    assert [spec.text for spec in specs] == ["int64[8,16]<30", "int64[8,16]<10"]


@pytest.mark.parametrize(
    ("name", "kind", "hides_nothing"), [("attention_mask", I64, 1), ("mask", BOOL, True), ("key_padding_mask", BOOL, False)]
)
def test_a_mask_hides_nothing(name, kind, hides_nothing):
    nodes = [helper.make_node("Cast", [name], ["m"], to=F32), helper.make_node("Mul", ["x", "m"], ["y"])]
    spec = inputs_of(nodes, [(name, kind, ["b", 8]), ("x", F32, ["b", 8])])[0]
    assert np.array_equal(spec.value, np.full((8, 8), hides_nothing))


@pytest.mark.parametrize(("steps", "length"), [("t", 16), (40, 40)])
def test_lengths_are_those_of_whole_sequences(steps, length):
    node = helper.make_node("GRU", ["x", "w", "r", "", "n"], ["y"], hidden_size=4)
    specs = inputs_of(
        [node], [("x", F32, [steps, "b", 8]), ("n", TensorProto.INT32, ["b"])], {"w": ones(1, 12, 8), "r": ones(1, 12, 4)}
    )
    assert specs[0].shape == (length, 8, 8)
    assert specs[1].value.tolist() == [length] * 8


def test_states_of_a_recurrent_layer_are_zero():
    node = helper.make_node("LSTM", ["x", "w", "r", "", "", "h", "c"], ["y"], hidden_size=4)
    state = [1, "b", 4]
    specs = inputs_of(
        [node], [("x", F32, ["t", "b", 8]), ("h", F32, state), ("c", F32, state)], {"w": ones(1, 16, 8), "r": ones(1, 16, 4)}
    )
    assert [spec.value is None or not spec.value.any() for spec in specs] == [True, True, True]
    assert specs[1].value.shape == (1, 8, 4)


@pytest.mark.parametrize(
    ("kind", "shape", "text"),
    [
        (F32, ["b", 3, "h", "w"], "float32[8,3,64,64]"),
        (F32, [None, None, None, None], "float32[8,3,64,64]"),
        (TensorProto.UINT8, ["b", 3, "h", "w"], "uint8[8,3,64,64]<256"),
        (F32, None, "float32[8,3,64,64]"),
    ],
)
def test_an_image_has_the_channels_of_the_first_convolution(kind, shape, text):
    nodes = [helper.make_node("Cast", ["x"], ["f"], to=F32), helper.make_node("Conv", ["f", "w"], ["y"])]
    assert inputs_of(nodes, [("x", kind, shape)], {"w": ones(4, 3, 3, 3)})[0].text == text


def test_an_image_whose_channels_come_last_keeps_them_there():
    nodes = [helper.make_node("Transpose", ["x"], ["c"], perm=[0, 3, 1, 2]), helper.make_node("Conv", ["c", "w"], ["y"])]
    assert inputs_of(nodes, [("x", F32, [None, None, None, 3])], {"w": ones(4, 3, 3, 3)})[0].shape == (8, 64, 64, 3)


def test_audio_is_as_long_as_two_windows():
    node = helper.make_node("Conv", ["x", "w"], ["y"], strides=[160])
    assert inputs_of([node], [("x", F32, ["b", 1, "samples"])], {"w": ones(4, 1, 400)})[0].shape == (8, 1, 800)


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        (TensorProto.STRING, "words", "input 'words' holds string"),
        (TensorProto.FLOAT8E4M3FN, "x", "input 'x' holds float8e4m3fn"),
        (TensorProto.INT4, "x", "input 'x' holds int4"),
    ],
)
def test_an_input_that_cannot_be_drawn_is_named_with_the_way_out(kind, name, message):
    with pytest.raises(InputError, match=message) as caught:
        inputs_of([helper.make_node("Identity", [name], ["y"])], [(name, kind, [2])])
    assert "--no-probe" in str(caught.value)


@pytest.mark.parametrize(("kind", "option"), [(F32, "--input x=float32[1,3,64,64]"), (I64, "--input x=int64[1,16]<1000")])
def test_an_input_of_unknown_rank_is_named_with_the_option_to_give(kind, option):
    from gradlint.frontends.inputs import parse_inputs

    with pytest.raises(InputError) as caught:
        inputs_of([helper.make_node("Add", ["x", "x"], ["y"])], [("x", kind, None)])
    assert option in str(caught.value)
    assert parse_inputs((option.removeprefix("--input "),))[0].name == "x"
