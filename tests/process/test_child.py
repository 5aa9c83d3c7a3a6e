"""Model files are probed in a child process: the same numbers, bounded time and memory, nothing inherited."""

from __future__ import annotations

import io
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from gradlint import engine
from gradlint.api import Report
from gradlint.cli import main
from gradlint.cli.process import NOT_ANALYZED
from gradlint.errors import ForwardError, GradlintError, TargetError
from gradlint.frontends.inputs import InputSpec
from gradlint.measurements.faults import NonFinite
from gradlint.measurements.units import Cut
from gradlint.options import Limits, Options
from gradlint.process import parent
from gradlint.process.messages import pack, unpack
from gradlint.process.parent import InternalError, Worker, check
from gradlint.report import format_names, render
from gradlint.result import Gains, Growth, Jump, Measurement, Place, TargetReport, TimeGrowth

FOLDER = Path(__file__).resolve().parents[2] / "sample_models"
INF = float("inf")


@pytest.fixture
def worker():
    own = Worker()
    yield own
    own.stop()


def ask(worker, path, *, limits=None, inputs=(), **options):
    how = Options(inputs=inputs, seeds=1, limits=limits or Limits(), **options)
    return unpack(TargetReport, worker.run("check", str(path), how)["report"])


def _model(folder, nodes, initializers=(), outputs=("y",)):
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [8, 24])
    ys = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    graph = helper.make_graph(nodes, "g", [x], ys, list(initializers))
    path = folder / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)
    return path


@pytest.mark.parametrize("probe", [True, False])
@pytest.mark.parametrize("name", ["tanh_gain_broken", "relu_rnn_broken", "zero_init_broken", "nan_weight_broken"])
def test_the_child_reports_what_this_process_would(name, probe):
    path = FOLDER / f"{name}.onnx"
    there, here = (replace(one(path, Options(probe=probe)), timings={}) for one in (check, engine.check))
    for form in format_names():
        assert render(form, [there], timings=False) == render(form, [here], timings=False)


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
    first, second = (unpack(InputSpec, one) for one in json.loads(json.dumps(pack(specs))))
    assert np.array_equal(first.value, specs[0].value)
    assert replace(first, value=None) == replace(specs[0], value=None)
    assert second == specs[1]


def _endless(folder):
    """A loop of 90,000 trips through twenty operators, each for some microseconds; more trips are refused."""
    value = helper.make_tensor_value_info
    steps = [helper.make_node("Tanh", [f"h{i}" if i else "h"], [f"h{i + 1}" if i < 19 else "g"]) for i in range(20)]
    step = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["d"]), *steps],
        "step",
        [value("i", TensorProto.INT64, []), value("c", TensorProto.BOOL, []), value("h", TensorProto.FLOAT, None)],
        [value("d", TensorProto.BOOL, []), value("g", TensorProto.FLOAT, None)],
    )
    trips, true = helper.make_tensor("n", TensorProto.INT64, [], [90_000]), helper.make_tensor("t", TensorProto.BOOL, [], [1])
    return _model(folder, [helper.make_node("Loop", ["n", "t", "x"], ["y"], body=step)], [trips, true])


def test_a_probe_that_takes_too_long_leaves_the_static_analysis_and_the_next_one_works(worker, tmp_path):
    ask(worker, FOLDER / "tanh_gain_healthy.onnx")  # the child has started
    report = ask(worker, _endless(tmp_path), limits=Limits(seconds=1.0))
    assert (report.seeds, report.coverage.probed) == (0, 0)
    assert "took longer than 1 s" in report.given_up
    assert report.given_up in report.notes
    assert ask(worker, FOLDER / "tanh_gain_healthy.onnx").seeds == 1


def test_a_file_that_was_not_read_in_time_has_no_report(worker):
    with pytest.raises(TargetError, match=r"took longer than 1e-06 s"):
        ask(worker, FOLDER / "tanh_gain_healthy.onnx", limits=Limits(seconds=1e-6))


def test_of_a_broken_model_that_cannot_be_probed_in_time_the_findings_remain(worker, tmp_path, monkeypatch):
    monkeypatch.setattr(parent, "worker", worker)
    model = onnx.load(_endless(tmp_path))
    model.graph.initializer.append(helper.make_tensor("w", TensorProto.FLOAT, [24, 24], [math.nan] * 576))
    model.graph.node.append(helper.make_node("MatMul", ["y", "w"], ["z"]))
    model.graph.output[0].name = "z"
    path = tmp_path / "broken.onnx"
    onnx.save(model, path)
    ask(worker, FOLDER / "tanh_gain_healthy.onnx")
    report = check(path, Options(limits=Limits(seconds=1.0)))
    assert report.verdict == "non-finite"
    with pytest.raises(SystemExit) as end:
        main([str(path), "--time-limit", "1", "--exit-zero"])
    assert end.value.code == NOT_ANALYZED
    with pytest.raises(GradlintError):
        Report(report).raise_if_failed(None)


def test_a_probe_that_dies_leaves_the_static_analysis(worker, monkeypatch):
    def kill(stage):
        if stage.startswith("probing"):
            worker._process.kill()

    options = Options(seeds=100_000)
    answer = worker.run("check", str(FOLDER / "tanh_gain_broken.onnx"), options, kill)
    report = unpack(TargetReport, answer["report"])
    assert report.verdict == "unknown"
    assert "SIGKILL" in report.given_up
    assert any(finding.rule == "GL101" for finding in report.findings)


def test_passes_that_fit_into_the_time_are_reported(worker):
    ask(worker, FOLDER / "tanh_gain_healthy.onnx")
    options = Options(seeds=100_000, limits=Limits(seconds=4.0))  # a second is left for a slow pass
    report = unpack(TargetReport, worker.run("check", str(FOLDER / "tanh_gain_broken.onnx"), options)["report"])
    assert report.verdict == "explodes"
    assert 0 < report.seeds < 100_000
    assert not report.given_up
    assert any("more seeds" in note and "--time-limit" in note for note in report.notes)


def test_what_was_measured_before_the_time_was_over_is_reported(worker):
    options = Options(seeds=3, limits=Limits(seconds=1e-3))
    report = engine.check(FOLDER / "tanh_gain_broken.onnx", options)
    assert (report.verdict, report.seeds) == ("explodes", 1)
    assert any("2 more seeds" in note and "--time-limit" in note for note in report.notes)


@pytest.mark.skipif(os.name != "posix", reason="memory is bounded by the operating system")
def test_a_probe_that_needs_too_much_memory_leaves_the_static_analysis_with_the_way_out(worker, tmp_path):
    size = helper.make_tensor("size", TensorProto.INT64, [2], [16000, 16000])  # 1 GB in float32, within the element budget
    wide = [helper.make_node("ReduceMean", ["x"], ["m"], keepdims=1), helper.make_node("Expand", ["m", "size"], ["y"])]
    path = _model(tmp_path, wide, [size])
    report = ask(worker, path, limits=Limits(memory=0.8))
    assert "more than 0.8 GB" in report.given_up
    assert "--memory-limit" in report.given_up


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
        ask(worker, path, inputs=(InputSpec("x", "no-such-dtype", (8, 24), given=True),))


def test_secrets_in_the_environment_are_not_passed_on(worker, monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "secret")
    seen = {}

    def refuse(*_, **options):
        seen.update(options)
        raise PermissionError

    monkeypatch.setattr(parent.subprocess, "Popen", refuse)
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


def _alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="the operating system ends a child with its parent")
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL, signal.SIGINT])
def test_nothing_is_left_when_the_parent_ends(sent, tmp_path):
    code = (
        "import signal, sys, threading; from gradlint.process.parent import worker, check\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background of a shell\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored under nohup\n"
        "threading.Thread(target=check, args=(sys.argv[1],), daemon=True).start()\n"
        "while worker._process is None: pass\n"
        "print(worker._process.pid, flush=True); threading.Event().wait()"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(_endless(tmp_path))], stdout=subprocess.PIPE, text=True) as own:
        child = int(own.stdout.readline())
        time.sleep(1.0)
        assert _alive(child)
        own.send_signal(sent)
    until = time.monotonic() + 20.0
    while _alive(child) and time.monotonic() < until:
        time.sleep(0.05)
    assert not _alive(child)


def test_weights_that_lose_their_end_while_they_are_read_cost_one_report(worker, monkeypatch):
    monkeypatch.setattr(parent, "worker", worker)
    worker.prepare()

    ask(worker, FOLDER / "tanh_gain_healthy.onnx")
    os.kill(worker._process.pid, signal.SIGSTOP)
    timer = threading.Timer(
        0.2, lambda: (os.kill(worker._process.pid, signal.SIGBUS), os.kill(worker._process.pid, signal.SIGCONT))
    )
    timer.start()
    with pytest.raises(TargetError, match="SIGBUS") as failure:
        ask(worker, FOLDER / "tanh_gain_healthy.onnx")
    assert "changed" in str(failure.value)
    assert ask(worker, FOLDER / "tanh_gain_healthy.onnx").seeds == 1


@pytest.mark.parametrize("content", [b"\0" * 4096, b"hello, this is no model", b"\xff" * 100, b""])
def test_what_is_no_model_on_stdin_is_told(content, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    with pytest.raises(TargetError):
        check("-", Options(probe=False))


def test_a_stream_that_never_ends_is_not_kept(monkeypatch):
    class Endless(io.RawIOBase):
        def readable(self):
            return True

        def readinto(self, buffer):
            buffer[:] = b"\x08" * len(buffer)
            return len(buffer)

    monkeypatch.setattr(parent, "_MOST", 1 << 22)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(Endless())))
    with pytest.raises(TargetError, match="2 GB"):
        check("-", Options(probe=False))
