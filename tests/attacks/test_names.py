"""No name in a file or in a user's model begins a line, steers a terminal or gives a CI system a command, in any format."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import warnings

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from gradlint import cli
from gradlint.cli import process
from gradlint.errors import ForwardError, GradlintError
from gradlint.graph import Source
from gradlint.process import parent
from gradlint.report import format_names, printable, render
from tests.attacks.names import COMMANDS, HALVES, NAMES, forged
from tests.models.report_samples import exploding, non_finite, recurrent, unprobed

_NAMED = {  # what a model, a file or a user names; the rest of a report are words of gradlint
    "TargetReport": "target growth predicted spine findings coverage skipped inputs notes time stack",
    "Finding": "message nodes module source remedy span",
    "Remedy": "summary",
    "Growth": "start end jumps",
    "Jump": "place",
    "Place": "node module",
    "SpinePoint": "place source",
    "Coverage": "unknown_ops",
    "Skipped": "because",
    "InputInfo": "name spec",
    "TimeGrowth": "node growth",
    "Stack": "start end",
}


def named(value, name):
    """A report in which everything that a model, a file or a user names begins with `name`."""
    if isinstance(value, str):
        return name + value
    if isinstance(value, dict):
        return {name + key: item for key, item in value.items()}
    if isinstance(value, Source):
        return value._replace(file=name + value.file)
    if isinstance(value, tuple):
        return tuple(named(item, name) for item in value)
    if (fields := _NAMED.get(type(value).__name__)) is not None:
        return dataclasses.replace(value, **{field: named(getattr(value, field), name) for field in fields.split()})
    assert value is None, value
    return None


SAMPLES = [exploding(), recurrent(), unprobed(), non_finite()]


def test_there_are_enough_of_them():
    assert len(set(NAMES)) >= 60


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_name_is_printable_once_and_stays_so(name):
    text = printable(name)
    assert text.isprintable()
    assert forged(text) == []
    assert printable(text) == text


@pytest.mark.parametrize(
    "text", ["blocks.0/fc:1", "std::move", "aten::add", "50%", "a # b", "net[0]", "Größe", "模型", "a:b", "##"]
)
def test_what_is_harmless_stays_as_it_is(text):
    assert printable(text) == text


def test_two_names_stay_two_names():
    assert len({printable(name) for name in NAMES}) == len({*NAMES})


@pytest.mark.parametrize("name", NAMES, ids=ascii)
@pytest.mark.parametrize("output_format", format_names())
def test_no_format_is_forged(output_format, name):
    for sample in SAMPLES:
        report = named(sample, name)
        assert report.findings[0].message.startswith(name)
        text = render(output_format, [report, report], show_refuted=True, width=79)
        assert forged(text, commands=output_format == "github") == []
        if output_format in {"concise", "github"}:  # a line for each finding and target, whatever its name
            assert len(text.splitlines()) == len(render(output_format, [sample, sample], show_refuted=True).splitlines())


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_colors_are_ours_and_markup_is_text(name):
    text = render("full", [named(exploding(), name)], color=True, unicode=True)
    assert forged(text, colored=True) == []
    plain = re.sub(r"\x1b\[[\d;]*m", "", text)
    assert plain.splitlines() == [line.rstrip() for line in render("full", [named(exploding(), name)], unicode=True).splitlines()]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_json_is_ascii_and_keeps_the_name(name):
    text = render("json", [named(exploding(), name)])
    assert text.isascii()
    assert all(line.isprintable() for line in text.split("\n"))
    found = json.loads(text)["targets"][0]
    wanted = named(exploding(), name).findings[0].message
    if name in HALVES:
        assert found["findings"][0]["message"].encode()  # valid Unicode, as strict readers of JSON want
    else:
        assert found["findings"][0]["message"] == wanted
        assert found["target"].startswith(name)


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_an_error_message_has_the_lines_that_it_should_have(monkeypatch, run, tmp_path, name):
    (tmp_path / "a.onnx").touch()

    def check(target, options, *, progress=None):
        raise ForwardError(f"a.onnx: {name} failed", where=f"{name}:1", hint=f"look at {name}")

    monkeypatch.setattr(parent, "check", check)
    code, out, err = run("a.onnx")
    assert (code, out) == (2, "")
    assert forged(err) == []
    lines = [line for line in err.splitlines() if not line.startswith("  | ")]
    assert [line[:10] for line in lines] == ["gradlint: ", "  at " + printable(f"{name}:1")[:5], "  look at "]


@pytest.mark.parametrize("name", [*COMMANDS, "a\n::error::x", "\x1b[2J", "\u2028::error::x"], ids=ascii)
def test_neither_a_misused_option_nor_an_internal_error_is_forged(monkeypatch, run, tmp_path, name):
    (tmp_path / "a.onnx").touch()
    for args in (["--no-such-" + name], ["a.onnx", "--select", name], [name + ".onnx"], ["a.onnx", "--input", name]):
        code, out, err = run(*args)
        assert (code, out) == (2, ""), err
        assert forged(err) == []

    def check(target, options, *, progress=None):
        raise RuntimeError(name)

    monkeypatch.setattr(parent, "check", check)
    assert forged(run("a.onnx", "--debug")[2]) == []


def test_the_progress_line_and_warnings_are_printable(monkeypatch, run, tmp_path, capsys):
    (tmp_path / "a.onnx").touch()
    shown = []

    def check(target, options, *, progress):
        for name in NAMES:
            progress(name)
        raise GradlintError("that is all")

    monkeypatch.setattr(parent, "check", check)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("rich.status.Status.update", lambda self, text: shown.append(text.plain))
    run("a.onnx")
    assert len(shown) == len(NAMES)
    assert [line for text in shown for line in forged(text)] == []
    with warnings.catch_warnings():
        for name in NAMES:
            process._show_warning(f"{name} is odd", UserWarning, f"{name}.py", 3)
    assert forged(capsys.readouterr().err) == []


def _model(path, name):
    """A file in which every name is `name`."""
    weight = numpy_helper.from_array(np.eye(4, dtype=np.float32), f"{name} w")
    nodes = [
        helper.make_node("MatMul", [f"{name} x", f"{name} w"], [f"{name} h"], name=name, doc_string=name),
        helper.make_node(name, [f"{name} h"], [f"{name} y"], name=f"{name} 2", domain=name),
    ]
    nodes[0].metadata_props.add(key="pkg.torch.onnx.name_scopes", value=repr([name, name, ""]))
    x, y = (helper.make_tensor_value_info(f"{name} {end}", TensorProto.FLOAT, [name, 4]) for end in "xy")
    graph = helper.make_graph(nodes, name, [x], [y], [weight], doc_string=name)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(name, 1)]
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, producer_name=name).SerializeToString())


@pytest.mark.parametrize("name", [name for name in NAMES if name not in HALVES], ids=ascii)
def test_a_whole_file_of_such_names_forges_nothing(run, tmp_path, name):
    _model(tmp_path / "m.onnx", name)
    for output_format in format_names():
        code, out, err = run("m.onnx", "--no-probe", "--output-format", output_format, "--show-refuted")
        assert code in {0, 1, 2}
        assert "internal error" not in err
        assert forged(out, commands=output_format == "github") == []
        assert forged(err) == []
    for node in (name, "MatMul"):
        _, out, err = run("explain", "m.onnx", node, "--no-probe")
        assert forged(out) == []
        assert forged(err) == []


def test_the_check_of_these_tests_finds_forgeries():
    for text in ("::error::x", "  ::notice::", "##[error]", "\x1b[2J", "a\u202eb", "FORGED", "x ::group::"):
        assert forged(f"fine\n{text}\n") == [text]
    assert forged("::error file=a,title=GL101 some-name::fine", commands=True) == []
    assert onnx.__name__
    assert cli.is_colored("always")
