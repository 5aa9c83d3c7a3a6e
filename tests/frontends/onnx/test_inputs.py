"""What is fed to an input of an ONNX file that says little of it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import gradlint
from gradlint.errors import ForwardError, InputError
from gradlint.frontends.inputs import parse_inputs
from gradlint.frontends.onnx.file import read_onnx
from gradlint.onnx_torch import OnnxModule

F32, I64, BOOL, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL, TensorProto.STRING


def model_of(nodes, inputs, values=(), outputs=("y",)):
    given = [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in dict(values).items()]
    graph = helper.make_graph(nodes, "g", given, [onnx.ValueInfoProto(name=name) for name in outputs], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def inputs_of(*described):
    return read_onnx(model_of(*described)).inputs


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
        (TensorProto.FLOAT8E4M3FN, "x", "input 'x' holds float8e4m3fn"),
        (TensorProto.INT4, "x", "input 'x' holds int4"),
    ],
)
def test_an_input_that_cannot_be_drawn_is_named_with_the_way_out(kind, name, message):
    with pytest.raises(InputError, match=message) as caught:
        inputs_of([helper.make_node("Identity", [name], ["y"])], [(name, kind, [2])])
    assert "--no-probe" in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "option"),
    [(F32, "--input x=float32[1,3,64,64]"), (I64, "--input x=int64[1,16]<1000"), (STRING, "--input x=string[1]")],
)
def test_an_input_of_unknown_rank_is_named_with_the_option_to_give(kind, option):
    with pytest.raises(InputError) as caught:
        inputs_of([helper.make_node("Add", ["x", "x"], ["y"])], [("x", kind, None)])
    assert option in str(caught.value)
    assert parse_inputs((option.removeprefix("--input "),))[0].name == "x"


# text -------------------------------------------------------------------------------------------------------------------

NUMBERS = [helper.make_node("Cast", ["words"], ["f"], to=F32), helper.make_node("MatMul", ["f", "w"], ["y"])]


def test_text_that_is_cast_to_numbers_is_fed_numbers():
    model = model_of(NUMBERS, [("words", STRING, ["n", 4])], {"w": ones(4, 4)})
    report = gradlint.check(model)
    assert [item.spec for item in report.result.inputs] == ["string[8,4]"]
    assert report.verdict == "healthy"
    (y,) = OnnxModule(model)(words=np.array([["1", "2", "3", "4.5"]]))
    assert torch.equal(y, torch.full((1, 4), 10.5))


def test_given_text_reaches_a_model_file(tmp_path):
    onnx.save(model_of(NUMBERS, [("words", STRING, ["n", 4])], {"w": ones(4, 4)}), tmp_path / "model.onnx")
    report = gradlint.check(tmp_path / "model.onnx", {"words": np.array([["1", "2", "3", "4"]] * 2)})
    assert [item.spec for item in report.result.inputs] == ["string[2,4]"]
    with pytest.raises(ForwardError, match=r"Cast at Cast:f .*'one'"):
        gradlint.check(tmp_path / "model.onnx", {"words": np.array([["one"] * 4])})


def test_the_probe_stops_at_an_operator_on_text_and_names_it():
    nodes = [helper.make_node("StringNormalizer", ["words"], ["t"]), *NUMBERS]
    nodes[1] = helper.make_node("Cast", ["t"], ["f"], to=F32)
    report = gradlint.check(model_of(nodes, [("words", STRING, [4])], {"w": ones(4, 4)}))
    assert report.verdict == "unknown"
    assert (report.coverage.nodes, report.coverage.probed) == (4, 1)


# batches ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("state", "batch"), [([1, 1, 4], 1), ([1, 3, 4], 3), ([1, "b", 4], 8)])
def test_the_batch_is_that_of_the_recurrent_states(state, batch):
    node = helper.make_node("LSTM", ["x", "w", "r", "", "", "h", "c"], ["y"], hidden_size=4)
    inputs = [("x", F32, ["t", "n", 8]), ("h", F32, state), ("c", F32, state)]
    model = model_of([node], inputs, {"w": ones(1, 16, 8), "r": ones(1, 16, 4)})
    assert [spec.shape for spec in read_onnx(model).inputs] == [(16, batch, 8), (1, batch, 4), (1, batch, 4)]
    notes = [note for note in gradlint.check(model).result.notes if "'h'" in note]
    assert notes == ([] if batch == 8 else [f"fed a batch of {batch}, for which the recurrent state 'h' is made"])


def joined(size):
    """x beside a memory of `size` samples, which no operator for recurrence marks as a state."""
    nodes = [helper.make_node("Concat", ["x", "m"], ["xm"], axis=1), helper.make_node("MatMul", ["xm", "w"], ["y"])]
    return model_of(nodes, [("x", F32, ["n", 3]), ("m", F32, [size, 5])], {"w": ones(8, 8)})


@pytest.mark.parametrize("size", [1, 2, 8])
def test_a_batch_that_does_not_run_gives_way_to_the_one_that_does(size):
    report = gradlint.check(joined(size))
    assert [item.spec for item in report.result.inputs] == [f"float32[{size},3]", f"float32[{size},5]"]
    assert any(f"fed a batch of {size}, since otherwise Concat" in note for note in report.result.notes) == (size != 8)


def test_a_given_batch_is_that_of_all_inputs():
    nodes = [helper.make_node("Concat", ["x", "m"], ["y"], axis=1)]
    model = model_of(nodes, [("x", F32, [None, 3]), ("m", F32, [None, 5])])
    assert [item.spec for item in gradlint.check(model, {"m": ones(5, 5)}).result.inputs] == ["float32[5,3]", "float32[5,5]"]


def test_a_model_that_runs_on_no_batch_says_why_the_first_one_failed():
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    with pytest.raises(ForwardError, match=r"MatMul at MatMul:y .*\[8, 3\], \[4, 4\]"):
        gradlint.check(model_of(nodes, [("x", F32, ["n", 3])], {"w": ones(4, 4)}))


@pytest.mark.parametrize(
    ("sample", "batch"), [([3, 64, 64], 8), ([3, 128, 128], 5), ([3, 224, 224], 1), ([480_000], 1), ([1, 30_000], 8)]
)
def test_the_batch_is_smaller_where_samples_are_large(sample, batch):
    (spec,) = inputs_of([helper.make_node("Relu", ["x"], ["y"])], [("x", F32, ["n", *sample])])
    assert spec.shape == (batch, *sample)


def test_a_batch_that_statistics_are_taken_of_stays():
    values = {name: ones(3) for name in "sbmv"}
    node = helper.make_node("BatchNormalization", ["x", *"sbmv"], ["y"], training_mode=1)
    assert inputs_of([node], [("x", F32, ["n", 3, 224, 224])], values)[0].shape == (8, 3, 224, 224)


@pytest.mark.parametrize("name", ["None", "?", "unk", "N"])
def test_open_axes_of_one_name_are_not_equal_where_a_layer_requires_another_size(name):
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    assert inputs_of([node], [("x", F32, [name, name])], {"w": ones(7, 32)})[0].shape == (8, 7)


def test_a_width_is_that_of_the_other_operand():
    total = [helper.make_node("Add", ["x", "z"], ["h"]), helper.make_node("MatMul", ["h", "w"], ["y"])]
    assert inputs_of(total, [("x", F32, ["a", "?"]), ("z", F32, [None, 48])], {"w": ones(48, 4)})[0].shape == (8, 48)
    product = [helper.make_node("MatMul", ["x", "z"], ["y"])]
    assert inputs_of(product, [("x", F32, ["a", "?"]), ("z", F32, [48, 16])], {})[0].shape == (8, 48)


def test_a_mask_that_leads_to_an_embedding_masks_nothing():
    nodes = [
        helper.make_node("CumSum", ["attention_mask", "one"], ["places"]),
        helper.make_node("Gather", ["table", "places"], ["y"]),
    ]
    held = {"table": ones(40, 8), "one": np.array(1)}
    (spec,) = inputs_of(nodes, [("attention_mask", TensorProto.INT64, ["b", "t"])], held)
    assert spec.value is not None
    assert (spec.value == 1).all()


def test_the_ratio_of_a_dropout_is_not_one():
    node = helper.make_node("Dropout", ["x", "ratio"], ["y"])
    assert inputs_of([node], [("x", F32, ["b", 8]), ("ratio", F32, [])], {})[1].value == 0.5
