"""The grammar of --input."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import gradlint
from gradlint.engine import check
from gradlint.errors import InputError
from gradlint.frontends.inputs import InputSpec, merge_given, parse_inputs
from gradlint.options import Options


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("x=float32[2,3]", InputSpec("x", "float32", (2, 3), given=True)),
        ("float32[2, 3]", InputSpec(None, "float32", (2, 3), given=True)),
        ("ids=int64[2,128]<1000", InputSpec("ids", "int64", (2, 128), 1000, given=True)),
        ("flag=bool[]", InputSpec("flag", "bool", (), given=True)),
    ],
)
def test_a_specification_is_read(text, spec):
    assert parse_inputs((text,)) == (spec,)


@pytest.mark.parametrize(("text", "number"), [("rate=16000", 16000), ("low=46.875", 46.875), ("low=-1e-3", -0.001), ("7", 7)])
def test_a_number_is_a_value(text, number):
    (spec,) = parse_inputs((text,))
    assert spec.draw(np.random.default_rng(0)) == number
    assert spec.given


def test_arrays_are_read_from_files_and_pickles_are_not(tmp_path):
    np.savez(tmp_path / "batch.npz", x=np.ones((2, 3), np.float32), ids=np.arange(4))
    specs = parse_inputs((f"@{tmp_path / 'batch.npz'}",))
    assert {spec.name: spec.text for spec in specs} == {"x": "float32[2,3]", "ids": "int64[4]"}
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="cannot read"):
        parse_inputs((f"x=@{tmp_path / 'objects.npy'}",))


def test_text_is_read_from_files_as_it_is(tmp_path):
    np.savez(tmp_path / "text.npz", words=np.array(["a", "caf\u00e9"]), codes=np.array([b"x", b"yz"]))
    words, codes = parse_inputs((f"@{tmp_path / 'text.npz'}",))
    assert (words.text, codes.text) == ("string[2]", "string[2]")
    assert (words.value.tolist(), codes.value.tolist()) == (["a", "caf\u00e9"], ["x", "yz"])


def test_text_is_drawn_as_words():
    (spec,) = parse_inputs(("words=string[2,3]",))
    drawn = spec.draw(np.random.default_rng(0))
    assert drawn.shape == (2, 3)
    assert drawn.dtype.kind == "U"


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array(["2020-01-01"], "datetime64[D]"), "'x' holds datetime64"),
        (np.zeros(2, [("a", "f4")]), "'x' holds void32"),
        (np.array([b"\xff"]), "'x' holds bytes that are not ASCII"),
    ],
)
def test_an_array_of_what_no_model_takes_is_refused_by_name(array, message, tmp_path):
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(InputError, match=message):
        parse_inputs((f"x=@{tmp_path / 'x.npy'}",))


@pytest.mark.parametrize("content", [b"PK\x03\x04 cut short", b"\x93NUMPY", b"", b"text"])
def test_a_damaged_file_is_refused(content, tmp_path):
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(InputError, match="cannot read"):
        parse_inputs((f"x=@{tmp_path / 'x.npz'}",))


def test_an_archive_without_arrays_is_refused(tmp_path):
    np.savez(tmp_path / "empty.npz")
    with pytest.raises(InputError, match="holds no array"):
        parse_inputs((f"x=@{tmp_path / 'empty.npz'}",))


def test_the_byte_order_of_an_array_does_not_matter(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(3, dtype=">f4"))
    (spec,) = parse_inputs((f"x=@{tmp_path / 'x.npy'}",))
    assert spec.text == "float32[3]"
    assert spec.value.dtype == np.dtype("=f4")


@pytest.mark.parametrize(
    ("declared", "given", "option"), [("float32", "string[2]", "x=float32[2]"), ("string", "float32[2]", "x=string[2]")]
)
def test_text_and_numbers_do_not_stand_for_each_other(declared, given, option):
    with pytest.raises(InputError, match="input 'x' holds") as caught:
        merge_given((InputSpec("x", declared, (2,)),), parse_inputs((f"x={given}",)))
    assert f"--input {option}" in str(caught.value)


def test_text_for_a_torch_module_is_refused_by_name(tmp_path):
    (tmp_path / "net.py").write_text("from torch import nn\n\nnet = nn.Linear(2, 2)\n", encoding="utf-8")
    with pytest.raises(InputError, match="'words' is text"):
        check(f"{tmp_path / 'net.py'}:net", Options(inputs=parse_inputs(("words=string[2]",))))


def test_drawn_integers_stay_below_the_bound_and_avoid_the_padding():
    drawn = InputSpec("ids", "int64", (1000,), 5, avoid=2).draw(np.random.default_rng(0))
    assert set(drawn.tolist()) == {0, 1, 3, 4}


def test_a_number_takes_the_dtype_and_the_shape_of_its_input():
    wanted = (InputSpec("low", "float32", (1,)), InputSpec("rate", "int64", ()))
    low, rate = merge_given(wanted, parse_inputs(("low=3", "rate=16000")))
    assert (low.dtype, low.shape, low.value.tolist()) == ("float32", (1,), [3.0])
    assert (rate.dtype, rate.shape, int(rate.value)) == ("int64", (), 16000)


def test_a_bound_that_was_guessed_is_asked_for_when_the_pass_breaks(tmp_path):
    """log(x^2 - floor) is finite for a small floor, and not for the 1 that is inferred."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("x", [8, 4]), ("floor", []))]
    nodes = [
        helper.make_node("Mul", ["x", "x"], ["square"]),
        helper.make_node("Sub", ["square", "floor"], ["above"]),
        helper.make_node("Log", ["above"], ["y"]),
    ]
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [8, 4])
    model = helper.make_model(helper.make_graph(nodes, "g", values, [y]), opset_imports=[helper.make_opsetid("", 18)])
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(InputError, match="--input floor="):
        gradlint.check(tmp_path / "model.onnx")
    given = {"x": np.full((8, 4), 2.0, np.float32), "floor": np.float32(-1.0)}
    assert gradlint.check(tmp_path / "model.onnx", given).verdict == "nothing-to-train"
