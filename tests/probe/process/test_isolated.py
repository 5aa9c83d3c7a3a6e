"""Model files are probed in a child process: the same numbers, bounded time and memory, nothing inherited."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from gradlint.engine import check
from gradlint.errors import ForwardError, TargetError
from gradlint.frontends.inputs import InputSpec
from gradlint.measurements.faults import NonFinite
from gradlint.measurements.units import Cut
from gradlint.options import Options
from gradlint.probe.process import isolated
from gradlint.probe.process.isolated import InternalError, Limits, Worker
from gradlint.probe.process.messages import pack, unpack, unpack_inputs
from gradlint.result import Gains, Growth, Jump, Measurement, Place, TimeGrowth

FOLDER = Path(__file__).resolve().parents[3] / "sample_models"
INF = float("inf")


@pytest.fixture
def worker():
    own = Worker()
    yield own
    own.stop()


def ask(worker, path, *, limits=None, inputs=None):
    specs = inputs if inputs is not None else (InputSpec("x", "float32", (8, 24)),)
    return worker.measure(path, specs, seeds=1, seed=0, limits=limits or Limits())


def _model(folder, nodes, initializers=(), outputs=("y",)):
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [8, 24])
    ys = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    graph = helper.make_graph(nodes, "g", [x], ys, list(initializers))
    path = folder / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)
    return path


@pytest.mark.parametrize("name", ["tanh_gain_broken", "relu_rnn_broken", "zero_init_broken", "nan_weight_broken"])
def test_the_child_measures_what_this_process_would(name):
    path = FOLDER / f"{name}.onnx"
    there, here = (replace(check(path, Options(limits=limits)), timings={}) for limits in (Limits(), None))
    assert pack(there) == pack(here) or str(pack(there)) == str(pack(here))  # NaN differs from itself


def test_a_measurement_survives_the_way_as_json():
    growth = Growth(1.5, start=Place("a"), jumps=(Jump(Place("b", "m"), 2.0),))
    full = Measurement(
        gains={"a": Gains(-INF, 0.25, None)},
        spine=("a", "b"),
        trunk=("b",),
        growth=growth,
        seeds=3,
        time=(TimeGrowth("r", (0.1, 0.2), growth),),
        nonfinite_forward=NonFinite("n", "NaN", ((0.0, INF),)),
        cuts=(Cut("c", "round", ("w",), on_spine=True),),
        ran=frozenset({"a", "b"}),
        live=frozenset({"a"}),
        notes=("said",),
    )
    assert unpack(Measurement, json.loads(json.dumps(pack(full)))) == full
    assert unpack(Measurement, json.loads(json.dumps(pack(replace(full, live=None))))).live is None


def test_given_arrays_survive_the_way_as_json():
    specs = (InputSpec("x", "float32", (2, 3), value=np.arange(6.0).reshape(2, 3), given=True), InputSpec(None, "int64", (4,), 7))
    first, second = unpack_inputs(json.loads(json.dumps(pack(specs))))
    assert np.array_equal(first.value, specs[0].value)
    assert replace(first, value=None) == replace(specs[0], value=None)
    assert second == specs[1]


def test_a_run_that_takes_too_long_is_ended_and_the_next_one_works(worker):
    path = FOLDER / "tanh_gain_healthy.onnx"
    with pytest.raises(TargetError, match=r"longer than 0\.01 s"):
        ask(worker, path, limits=Limits(seconds=0.01))
    assert ask(worker, path).seeds == 1


@pytest.mark.skipif(os.name != "posix", reason="memory is bounded by the operating system")
def test_a_run_that_needs_too_much_memory_is_an_error_with_the_way_out(worker, tmp_path):
    size = helper.make_tensor("size", TensorProto.INT64, [2], [16000, 16000])  # 1 GB in float32, within the element budget
    wide = [helper.make_node("ReduceMean", ["x"], ["m"], keepdims=1), helper.make_node("Expand", ["m", "size"], ["y"])]
    path = _model(tmp_path, wide, [size])
    with pytest.raises(TargetError, match=r"more than 0\.8 GB") as failure:
        ask(worker, path, limits=Limits(memory=0.8))
    assert "--memory-limit" in str(failure.value)


def test_errors_of_the_model_come_back_as_they_were(worker, tmp_path):
    weight = helper.make_tensor("w", TensorProto.FLOAT, [5, 5], np.eye(5).ravel())
    path = _model(tmp_path, [helper.make_node("MatMul", ["x", "w"], ["y"])], [weight])
    with pytest.raises(ForwardError):
        ask(worker, path)


def test_a_child_that_dies_is_told_and_replaced(worker):
    path = FOLDER / "tanh_gain_healthy.onnx"
    ask(worker, path)
    worker._process.kill()
    worker._process.wait()
    assert ask(worker, path).seeds == 1


def test_a_fault_of_our_own_is_not_taken_for_one_of_the_model(worker):
    path = FOLDER / "tanh_gain_healthy.onnx"
    with pytest.raises(InternalError, match="Traceback"):
        ask(worker, path, inputs=(InputSpec("x", "no-such-dtype", (8, 24)),))


def test_secrets_in_the_environment_are_not_passed_on(worker, monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "secret")
    seen = {}

    def refuse(*_, **options):
        seen.update(options)
        raise PermissionError

    monkeypatch.setattr(isolated.subprocess, "Popen", refuse)
    with pytest.raises(PermissionError):
        ask(worker, FOLDER / "tanh_gain_healthy.onnx")
    assert "SOME_TOKEN" not in seen["env"]
    assert "PATH" in seen["env"]


def test_a_child_that_was_prepared_is_the_one_that_measures(worker):
    worker.prepare()
    started = worker._process.pid
    ask(worker, FOLDER / "tanh_gain_healthy.onnx")
    worker.prepare()
    assert worker._process.pid == started
