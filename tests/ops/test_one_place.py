"""An activation is one row, an operator one row and one function: both are tried with invented ones."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.overrides import wrap_torch_function

from gradlint.frontends.onnx.file import read_onnx
from gradlint.frontends.torch.module import TorchRunnable
from gradlint.onnx_torch import OnnxRunnable
from gradlint.onnx_torch.registry import KERNELS, op
from gradlint.ops import OPERATORS, Dispatch, Kind, Operator, table
from gradlint.probe.measure import measure
from gradlint.structure import Structure
from gradlint.theory.prediction import predict
from gradlint.theory.transfer.rule import TRANSFER, TransferResult, as_gaussian, half_log, scaled, single_operand

ROOT = Path(__file__).parents[2]

# an activation: one row -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trials():
    """What every reader makes of two invented activations, with their rows and without."""
    script = str(Path(__file__).with_name("added_activations.py"))
    runs = {
        mode: subprocess.Popen([sys.executable, script, mode], stdout=subprocess.PIPE, cwd=ROOT) for mode in ("with", "without")
    }
    outputs = {mode: run.communicate()[0] for mode, run in runs.items()}
    assert [run.returncode for run in runs.values()] == [0, 0]
    return {mode: json.loads(output) for mode, output in outputs.items()}


@pytest.fixture(params=["hardsigmoid2", "hardswish2"])
def name(request):
    return request.param


def test_without_its_row_nobody_knows_an_activation(trials, name):
    found = trials["without"][name]
    assert found["op"] == "unknown"
    assert found["no rule"] == ["no rule for unknown"]
    assert found["integrals"]["theory"] is None
    assert found["range"] == [-np.inf, np.inf]
    assert found["dead"] == []
    assert found["onnx"] == ["input", "linear", "unknown", "linear"]
    assert found["evaluated"].startswith("PartialRun")
    assert "unknown activation" in found["recurrent"]
    assert "GL901" in found["deep"]


def test_both_front_ends_know_an_activation_by_its_row(trials, name):
    found = trials["with"][name]
    assert found["op"] == name
    assert found["onnx"] == ["input", "linear", name, "linear"]


def test_theory_integrates_an_activation_by_its_row(trials, name):
    found = trials["with"][name]
    assert found["no rule"] == []
    assert found["integrals"]["theory"] == pytest.approx(found["integrals"]["torch"], rel=1e-5)
    assert found["critical"] == pytest.approx({"hardsigmoid2": 6.886, "hardswish2": 1.5814}[name], rel=1e-3)


def test_ranges_know_where_an_activation_bends_and_ends(trials):
    assert trials["with"]["hardsigmoid2"]["range"] == [0.0, 1.0]
    low, high = trials["with"]["hardswish2"]["range"]
    assert low == pytest.approx(-0.25, abs=1e-4)
    assert high == np.inf


def test_the_probe_counts_dead_units_of_an_activation_by_its_row(trials, name):
    assert trials["with"][name]["dead"] == [1.0]


def test_gradients_start_before_an_activation_that_is_final_by_its_row(trials):
    assert trials["with"]["hardsigmoid2"]["final"] == ["linear"]
    assert trials["with"]["hardswish2"]["final"] == ["hardswish2"]


def test_an_onnx_file_is_evaluated_by_the_kernel_of_the_row(trials, name):
    assert trials["with"][name]["evaluated"] == 0.0
    found = trials["with"][name]["recurrent"]
    assert found["distance"] < 1e-6
    assert found["cell"] == name
    assert found["range"] == {"hardsigmoid2": [-1.0, 1.0], "hardswish2": [-np.inf, np.inf]}[name]


def test_an_exporter_may_spell_an_activation_as_its_row_says(trials):
    assert trials["without"]["spelled"] == ["input", "linear", "mul", "add", "clamp", "mul", "linear"]
    assert trials["with"]["spelled"] == ["input", "linear", "hardswish2", "linear"]


def test_rules_ask_the_row_what_an_activation_is_like(trials):
    saturating, rectifier = trials["with"]["hardsigmoid2"], trials["with"]["hardswish2"]
    assert "GL402" in saturating["deep"]  # 40 layers that saturate
    assert "GL103" in rectifier["deep"]  # 40 rectified layers under torch's default weights
    assert "GL501" in rectifier["loop"]  # nothing bounds the recurrence
    assert "GL501" not in saturating["loop"]
    assert all("GL403" in found["killed"] for found in (saturating, rectifier))
    assert all("GL901" not in codes for found in (saturating, rectifier) for codes in (found["deep"], found["killed"]))


NAMED = {  # strings that are names of activations, by file, and why they stand there
    "cli/skeleton.py": ("threshold", "the threshold of a rule"),
    "frontends/onnx/contrib.py": ("BiasGelu FastGelu QuickGelu silu", "weights of fused operators; QuickGelu is SiLU at alpha 1"),
    "frontends/onnx/rewrites/classic.py": ("Sigmoid threshold", "what ai.onnx.ml calls LOGISTIC; an attribute of Binarizer"),
    "frontends/onnx/rewrites/training.py": ("LeakyRelu PRelu Relu", "the rectifiers before which weights are drawn at He gain"),
    "frontends/onnx/roles.py": ("PRelu Sigmoid Tanh", "the slope is a weight; what recurrent operators use by default"),
    "frontends/torch/ops.py": ("relu tanh", "torch has two plain recurrences"),
    "graph_builder.py": ("relu tanh", "defaults of examples"),
    "onnx_torch/activation.py": ("PRelu Selu", "they need the opset"),
    "onnx_torch/rnn.py": ("Sigmoid Tanh", "what recurrent operators use by default"),
    "probe/experiments/constant.py": ("sigmoid", "what a loss takes of a constant output"),
    "probe/experiments/loss_observer.py": ("sigmoid", "a softmax or sigmoid whose log is taken has a stable form"),
    "probe/time/stacks.py": ("tanh", "what a recurrence uses by default"),
    "ranges/layers.py": ("tanh", "what a recurrence uses by default"),
    "subject/guards.py": ("logsigmoid sigmoid", "what a log of a sigmoid is replaced by"),
    "theory/gaussian/integrals.py": ("erf", "its second moment has a closed form"),
    "theory/recurrence/loops.py": ("sigmoid tanh", "gates of LSTM and GRU"),
    "theory/recurrence/read.py": ("sigmoid tanh", "gates of LSTM and GRU"),
    "theory/recurrence/run.py": ("relu tanh", "in the type of the weights, where speed counts"),
    "theory/transfer/pointwise.py": ("sigmoid", "the gate of a GLU"),
}


def words_of(path):
    """The words of the strings in a file that are no docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield from (word.rpartition("::")[2] for word in node.value.split())


def test_no_other_file_lists_activations():
    rows = [row for row in OPERATORS.values() if row.kind is Kind.ACTIVATION and row.function is not None]
    names = {name for row in rows for name in (row.name, *row.torch, *row.onnx)}
    assert {"relu", "expit", "LeakyRelu", "QuickGelu"} < names
    package = ROOT / "gradlint"
    found = {path.relative_to(package).as_posix(): names & set(words_of(path)) for path in package.rglob("*.py")}
    assert found.pop("ops/activations.py") == names
    assert {path: words for path, words in found.items() if words} == {
        path: set(words.split()) for path, (words, _) in NAMED.items()
    }


@pytest.mark.parametrize("path", sorted((ROOT / "rules").glob("*.py")), ids=lambda path: path.stem)
def test_no_rule_keeps_a_set_of_activations(path):
    names = {row.name for row in OPERATORS.values() if row.kind is Kind.ACTIVATION}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Set | ast.Dict | ast.Tuple | ast.List):
            parts = node.keys if isinstance(node, ast.Dict) else node.elts
            assert len(names & {part.value for part in parts if isinstance(part, ast.Constant)}) < 2


# an operator: one row and one function ----------------------------------------------------------------------------------


@wrap_torch_function(lambda x: (x,))
def echo(x):
    return torch.cat([x, 2.0 * x.flip(-1)], -1)


def echo_rule(call):
    """Half of the elements are x, half are 2 x; each element of x gets two gradients, one of them doubled."""
    slot, signal = call.signals[0]
    output = as_gaussian(signal, level=signal.level + half_log(2.5), sizes=call.sizes)
    return TransferResult(output, single_operand(slot, output, lambda cotangent: scaled(cotangent, 2.5)))


class Echo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 64), nn.Linear(128, 64)

    def forward(self, x):
        return self.last(echo(self.first(x)))


@pytest.fixture
def added(monkeypatch):
    """The row and the function of an invented operator, where rows and functions are."""
    monkeypatch.setitem(OPERATORS, "echo", Operator("echo", Kind.SHAPE, torch=("echo",), onnx=("Echo",)))
    table._names.cache_clear()
    yield lambda: monkeypatch.setitem(TRANSFER._by_name, "echo", echo_rule)
    monkeypatch.undo()
    table._names.cache_clear()


def runnable():
    torch.manual_seed(0)
    return TorchRunnable(Echo(), (), args=(torch.randn(256, 64),))


def test_an_operator_is_known_by_its_row_and_followed_by_its_function(added):
    model = runnable()
    measured = measure(model, seeds=3)
    (node,) = [node for node in model.graph if node.op == "echo"]
    before = model.graph.parents(node.id)[0].id
    assert predict(Structure(model.graph))[node.id].because == ("no rule for echo",)
    added()
    predicted = predict(Structure(model.graph))
    assert predicted[node.id].because == ()
    backward, forward = (getattr(predicted[before], way) - getattr(predicted[node.id], way) for way in ("backward", "forward"))
    assert backward == pytest.approx(half_log(2.5))
    assert forward == pytest.approx(-half_log(2.5))
    gains = measured.gains
    assert gains[before].backward - gains[node.id].backward == pytest.approx(backward, abs=0.03)
    assert gains[before].forward - gains[node.id].forward == pytest.approx(forward, abs=0.03)


def test_an_operator_that_onnx_files_have_is_evaluated_by_one_more_function(added):
    constant = numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, size]) for name, size in (("x", 4), ("y", 8))]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Echo", ["h"], ["y"])]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [constant])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert [node.op for node in read_onnx(model).graph] == ["input", "linear", "echo"]
    try:
        op("Echo")(echo)
        x = torch.randn(2, 4)
        assert torch.equal(OnnxRunnable(read_onnx(model)).module(x)[0], echo(x))
    finally:
        KERNELS.pop("Echo")


def test_an_operator_has_one_rule():
    rules = Dispatch()

    @rules.rule(Kind.SHAPE, "roll")
    def moved():
        return None

    assert rules.find("reshape") is rules.find("roll") is moved
    assert rules.own("reshape") is None
    assert rules.own("roll") is moved
    assert rules.find("linear") is None
    for key in (Kind.SHAPE, "roll"):
        with pytest.raises(ValueError, match="has a rule already"):
            rules.rule(key)(moved)
    rules.rule("shape")(moved)  # a name that a kind has as well
