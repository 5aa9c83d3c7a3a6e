"""Operators of ai.onnx.ml, which converters of classic models write, against onnxruntime."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import gradlint
from gradlint.frontends.onnx.file import read_onnx
from gradlint.onnx_torch import OnnxModule
from tests.models.onnxruntime_sessions import by_onnxruntime

F32, I64, TEXT = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING
ML = "ai.onnx.ml"
X = np.array([[1, 2, 0, -1], [0.5, -3, 2, 1], [0, 0, 0, 0]], np.float32)
WHOLE = np.array([[1, 2, 0, 4], [3, 4, 5, 6]])
ONE, TWO, THREE = ([float(v) for v in np.linspace(-1, 1, 4 * rows).round(2)] for rows in (1, 2, 3))
TRANSFORMS = ("NONE", "LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO")


def ml(op, inputs=("x",), outputs=("y",), **attributes):
    return helper.make_node(op, list(inputs), list(outputs), domain=ML, **attributes)


def model(nodes, outputs, x=X, held=(), *, batch=None, opset=15):
    """A model on x; `outputs` are element types by name, None for one that is no tensor."""
    kind = F32 if x.dtype.kind == "f" else I64
    shape = (batch or len(x), *x.shape[1:])
    made = [
        onnx.ValueInfoProto(name=name) if t is None else helper.make_tensor_value_info(name, t, None)
        for name, t in outputs.items()
    ]
    graph = helper.make_graph(list(nodes), "g", [helper.make_tensor_value_info("x", kind, shape)], made, list(held))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid(ML, 2)], ir_version=8)


def compare(proto, x=X, *, skipped=0):
    theirs = by_onnxruntime(proto, {"x": x})[skipped:]
    ours = OnnxModule(proto)(x)
    for expected, found in zip(theirs, ours, strict=True):
        array = np.array([list(row.values()) for row in expected]) if isinstance(expected, list) else expected
        assert found.shape == array.shape
        np.testing.assert_allclose(found.detach().numpy(), array, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize(("rows", "classes"), [(ONE, 2), (TWO, 2), (THREE, 3)], ids=["one score", "two", "three"])
def test_linear_classifiers(rows, classes, transform):
    count = len(rows) // 4
    settings = {"coefficients": rows, "intercepts": [0.1, 0.2, 0.3][:count], "post_transform": transform}
    labels = {"classlabels_ints": [3, 7, 9][:classes]}
    compare(model([ml("LinearClassifier", outputs=("l", "s"), **settings, **labels)], {"l": I64, "s": F32}))


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize(("rows", "targets"), [(ONE, 1), (TWO, 2)], ids=["one target", "two"])
def test_linear_regressors(rows, targets, transform):
    settings = {"coefficients": rows, "targets": targets, "post_transform": transform}
    compare(model([ml("LinearRegressor", **settings, intercepts=[0.1, 0.2][:targets])], {"y": F32}))


@pytest.mark.parametrize("opset", [11, 15, 18])
@pytest.mark.parametrize("x", [X, WHOLE], ids=["floats", "integers"])
@pytest.mark.parametrize("norm", ["MAX", "L1", "L2"])
def test_normalizers_also_of_rows_of_zeros(norm, x, opset):
    compare(model([ml("Normalizer", norm=norm)], {"y": F32}, x, opset=opset), x)


@pytest.mark.parametrize(
    ("node", "x"),
    [
        (ml("Scaler", offset=[1.0, 2.0, 3.0, 4.0], scale=[2.0, 1.0, 0.5, 2.0]), X),
        (ml("Scaler", offset=[1.0], scale=[2.0]), WHOLE),
        (ml("Imputer", imputed_value_floats=[5.0, 6.0, 7.0, 8.0], replaced_value_float=0.0), X),
        (ml("Imputer", imputed_value_floats=[5.0], replaced_value_float=float("nan")), np.where(X == 0, np.nan, X)),
        (ml("Imputer", imputed_value_int64s=[5], replaced_value_int64=0), WHOLE),
        (ml("Binarizer", threshold=0.4), X),
        (ml("FeatureVectorizer", ("x", "x"), inputdimensions=[4, 4]), X),
        (ml("ArrayFeatureExtractor", ("x", "picked")), X),
    ],
    ids=lambda value: value.op_type if isinstance(value, onnx.NodeProto) else "",
)
def test_what_prepares_data(node, x):
    output = I64 if x is WHOLE and node.op_type == "Imputer" else F32
    compare(model([node], {"y": output}, x, [numpy_helper.from_array(np.array([[2, 0]]), "picked")]), x)


def test_images_are_scaled():
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 4)).astype(np.float32)
    node = helper.make_node("ImageScaler", ["x"], ["y"], scale=0.5, bias=[1.0, 2.0, 3.0])
    compare(model([node], {"y": F32}, x, opset=9), x)


def network(labels):
    """A scaler, a ReLU network, the label of the largest score, and a map of the scores, as converters write them."""
    rng = np.random.default_rng(0)
    sizes = (4, 64, 64, 3)
    held = [
        numpy_helper.from_array((rng.standard_normal(pair) * (2 / pair[0]) ** 0.5).astype(np.float32), f"w{k}")
        for k, pair in enumerate(pairwise(sizes))
    ]
    text = labels == "text"
    held.append(helper.make_tensor("names", TEXT if text else I64, [3], [b"a", b"b", b"c"] if text else [3, 5, 9]))
    nodes = [ml("Scaler", outputs=("h",), offset=[1.0], scale=[0.5])]
    for k in range(3):
        nodes.append(helper.make_node("Gemm", ["h" if k == 0 else f"r{k - 1}", f"w{k}"], [f"s{k}"]))
        nodes.append(helper.make_node("Relu" if k < 2 else "Softmax", [f"s{k}"], [f"r{k}"], **({"axis": 1} if k == 2 else {})))
    keys = {"classlabels_strings": ["a", "b", "c"]} if text else {"classlabels_int64s": [3, 5, 9]}
    nodes += [
        helper.make_node("ArgMax", ["r2"], ["best"], axis=1, keepdims=1),
        ml("ArrayFeatureExtractor", ("names", "best"), ("label",)),
        ml("ZipMap", ("r2",), ("scores",), **keys),
    ]
    return model(nodes, {"label": TEXT if text else I64, "scores": None}, held=held)


@pytest.mark.parametrize("labels", ["text", "numbers"])
@pytest.mark.parametrize("probe", [False, True], ids=["static", "probe"])
def test_labels_and_maps_behind_a_network_do_not_matter(labels, probe):
    report = gradlint.check(network(labels), probe=probe)
    assert (report.verdict, report.findings) == ("healthy", ())
    assert set(report.result.weights.levels) >= {"w0", "w1", "w2"}


def test_scores_are_what_onnxruntime_maps():
    compare(network("text"), skipped=1)


def test_a_scaler_is_no_weight_and_a_linear_model_is_one():
    scaler, linear = ml("Scaler", outputs=("h",), offset=[1.0], scale=[0.5]), ml("LinearRegressor", ("h",), coefficients=ONE)
    weights = read_onnx(model([scaler, linear], {"y": F32})).graph.weights
    assert sorted(name for name, weight in weights.items() if weight.trainable) == ["y.coefficients"]
    report = gradlint.check(model([scaler, linear], {"y": F32}))
    assert report.verdict == "healthy"
    assert report.score > 50


TREE = {
    "nodes_treeids": [0, 0, 0],
    "nodes_nodeids": [0, 1, 2],
    "nodes_featureids": [0, 0, 0],
    "nodes_values": [0.5, 0.0, 0.0],
    "nodes_modes": ["BRANCH_LEQ", "LEAF", "LEAF"],
    "nodes_truenodeids": [1, 0, 0],
    "nodes_falsenodeids": [2, 0, 0],
    "target_treeids": [0, 0],
    "target_nodeids": [1, 2],
    "target_ids": [0, 0],
    "target_weights": [1.0, 2.0],
    "n_targets": 1,
}


@pytest.mark.parametrize("probe", [False, True], ids=["static", "probe"])
def test_trees_get_one_sentence_and_no_score(probe):
    report = gradlint.check(model([ml("TreeEnsembleRegressor", **TREE)], {"y": F32}), probe=probe)
    assert (report.verdict, report.score, report.findings) == ("nothing-to-train", None, ())
    assert report.result.notes == ("TreeEnsembleRegressor: trees have no gradient, so that gradlint has nothing to say of them",)
    assert "no score" in report.to("concise")
