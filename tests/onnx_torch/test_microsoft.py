"""Attention, with the keys of earlier calls, and quantized recurrences as onnxruntime writes them, against onnxruntime."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import gradlint
from gradlint.onnx_torch import OnnxModule
from tests.models.onnxruntime_sessions import by_onnxruntime

BATCH, TIME, HEADS, SIZE, PAST = 2, 5, 2, 4, 3
RNG = np.random.default_rng(0)
TYPES = {"f": TensorProto.FLOAT, "i": TensorProto.INT32}


def floats(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def whole(*rows):
    return np.array(rows, np.int32)


def one(op, inputs, outputs, attributes, weights=()):
    """A model of one operator; `inputs` are arrays by name, "" for one that is left out, `weights` the names of initializers."""
    names = [name if array is not None else "" for name, array in inputs.items()]
    given = [
        helper.make_tensor_value_info(name, TYPES[array.dtype.kind], array.shape)
        for name, array in inputs.items()
        if array is not None and name not in weights
    ]
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    held = [numpy_helper.from_array(inputs[name], name) for name in weights if inputs[name] is not None]
    node = helper.make_node(op, names, outputs, domain="com.microsoft", **attributes)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(helper.make_graph([node], "g", given, made, held), opset_imports=opsets, ir_version=8)


def compare(op, inputs, outputs, attributes, weights=()):
    model = one(op, inputs, outputs, attributes, weights)
    feeds = {name: array for name, array in inputs.items() if array is not None and name not in weights}
    for theirs, ours in zip(by_onnxruntime(model, feeds), OnnxModule(model)(**feeds), strict=True):
        np.testing.assert_allclose(ours.detach().numpy(), theirs, rtol=1e-4, atol=1e-5)


X, W, B = floats(BATCH, TIME, 8), floats(8, 24), floats(24)
KEYS = floats(2, BATCH, HEADS, PAST, SIZE)
SEEN = whole([1] * 8, [0, 0, 1, 1, 1, 1, 1, 1])
LATER = whole([0, 1, 1, 0, 0], [1, 1, 1, 1, 1])
ATTENTION = {
    "plain": ({}, {}, 1),
    "causal": ({}, {"unidirectional": 1}, 1),
    "present": ({}, {"unidirectional": 1}, 2),
    "past": ({"past": KEYS}, {}, 2),
    "past, causal": ({"past": KEYS}, {"unidirectional": 1}, 2),
    "past, mask": ({"mask": SEEN, "past": KEYS}, {"unidirectional": 1}, 2),
    "mask": ({"mask": LATER}, {}, 1),
    "mask, causal": ({"mask": LATER}, {"unidirectional": 1}, 1),
    "lengths": ({"mask": np.int32([3, 5])}, {}, 1),
    "ends and starts": ({"mask": np.int32([4, 5, 1, 2])}, {}, 1),
    "mask of pairs": ({"mask": RNG.integers(0, 2, (BATCH, TIME, TIME)).astype(np.int32)}, {}, 1),
    "bias of scores": ({"added": floats(BATCH, HEADS, TIME, TIME)}, {}, 1),
    "scale": ({}, {"scale": 0.3, "mask_filter_value": -5.0}, 1),
}


@pytest.mark.parametrize(("inputs", "attributes", "outputs"), ATTENTION.values(), ids=list(ATTENTION))
def test_attention_with_its_projection(inputs, attributes, outputs):
    given = {"x": X, "w": W, "b": B, "mask": None, "past": None, "added": None, **inputs}
    compare("Attention", given, ["y", "present"][:outputs], {"num_heads": HEADS, **attributes}, ("w", "b"))


def test_attention_whose_values_are_wider():
    given = {"x": X, "w": floats(8, 32), "b": floats(32)}
    compare("Attention", given, ["y"], {"num_heads": HEADS, "qkv_hidden_sizes": [8, 8, 16]}, ("w", "b"))


Q, K, V = X, floats(BATCH, 6, 8), floats(BATCH, 6, 8)
OWN = {"key": floats(BATCH, TIME, 8), "value": floats(BATCH, TIME, 8)}
EARLIER = {"past_key": KEYS[0], "past_value": KEYS[1]}
MULTI_HEAD = {
    "plain": ({}, {}, 1),
    "bias": ({"bias": B}, {}, 1),
    "causal": (OWN, {"unidirectional": 1}, 1),
    "present": ({}, {}, 3),
    "past": ({**OWN, **EARLIER}, {}, 3),
    "past, bias, causal": ({**OWN, **EARLIER, "bias": B}, {"unidirectional": 1}, 3),
    "keys that were projected": (
        {"key": floats(BATCH, HEADS, 6, SIZE), "value": floats(BATCH, HEADS, 6, SIZE), "bias": B},
        {},
        1,
    ),
    "mask": ({"mask": RNG.integers(0, 2, (BATCH, 6)).astype(np.int32)}, {}, 1),
    "lengths": ({"mask": np.int32([3, 6])}, {}, 1),
    "bias of scores": ({"added": floats(1, HEADS, TIME, 6)}, {}, 1),
    "wide values": ({"value": floats(BATCH, 6, 16)}, {}, 1),
}


@pytest.mark.parametrize(("inputs", "attributes", "outputs"), MULTI_HEAD.values(), ids=list(MULTI_HEAD))
def test_attention_over_given_heads(inputs, attributes, outputs):
    base = {"query": Q, "key": K, "value": V, "bias": None, "mask": None, "added": None, "past_key": None, "past_value": None}
    compare("MultiHeadAttention", base | inputs, ["y", "pk", "pv"][:outputs], {"num_heads": HEADS, **attributes}, ("bias",))


def test_packed_heads_are_the_same_as_separate_ones():
    """onnxruntime runs them on other devices only."""
    joint = floats(BATCH, TIME, HEADS, 3, SIZE)
    apart = {name: np.ascontiguousarray(joint[:, :, :, k]).reshape(BATCH, TIME, -1) for k, name in enumerate("qkv")}
    (expected,) = OnnxModule(one("MultiHeadAttention", apart, ["y"], {"num_heads": HEADS}))(**apart)
    for packed in ({"q": joint}, {"q": apart["q"], "k": np.ascontiguousarray(joint[:, :, :, 1:])}):
        (found,) = OnnxModule(one("MultiHeadAttention", packed, ["y"], {"num_heads": HEADS}))(**packed)
        np.testing.assert_allclose(found, expected, atol=1e-6)


def lstm(direction, per_gate):
    ways = 2 if direction == "bidirectional" else 1
    each = (ways, 32) if per_gate else (ways,)
    codes = {name: RNG.integers(-127, 127, (ways, size, 32)).astype(np.int8) for name, size in (("w", 6), ("r", 8))}
    scales = {name: (RNG.random(each) * 0.005 + 0.002).astype(np.float32) for name in ("ws", "rs")}
    zeros = np.zeros(each, np.int8)
    absent = dict.fromkeys(("lengths", "h", "c", "p"))
    inputs = {"x": floats(7, 3, 6), **codes, "b": 0.1 * floats(ways, 64), **absent}
    return inputs | {"ws": scales["ws"], "wz": zeros, "rs": scales["rs"], "rz": zeros}


QUANTIZED = ("w", "r", "b", "ws", "wz", "rs", "rz")


@pytest.mark.parametrize("per_gate", [False, True], ids=["one scale", "a scale for each gate"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_a_dynamically_quantized_lstm(direction, per_gate):
    attributes = {"hidden_size": 8, "direction": direction}
    compare("DynamicQuantizeLSTM", lstm(direction, per_gate), ["y", "h", "c"], attributes, QUANTIZED)


def test_a_quantized_lstm_alone_is_nothing_to_train():
    model = one("DynamicQuantizeLSTM", lstm("forward", False), ["y"], {"hidden_size": 8}, QUANTIZED)
    assert gradlint.check(model).verdict == "nothing-to-train"
