"""The command line: exit codes, streams, options. The engine is replaced, so that each test decides what it finds."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path

import jsonschema
import pytest

from gradlint import cli
from gradlint.errors import ForwardError, GradlintError, TargetError
from gradlint.process import parent
from gradlint.report import tool_version
from gradlint.report.formats.json import schema
from gradlint.result import Severity
from tests.models.report_samples import deep, exploding, healthy, unprobed

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def lint(monkeypatch, run, tmp_path):
    """Run with an engine that answers by target: a report, or an exception to raise. Files of these names exist."""

    def call(answers, *args):
        seen = []
        for name in answers:
            (tmp_path / name).touch()

        def check(target, options, *, progress=None):
            seen.append(options)
            answer = answers[target]
            if isinstance(answer, BaseException):
                raise answer
            return dataclasses.replace(answer, target=target)

        monkeypatch.setattr(parent, "check", check)
        call.seen = seen
        return run(*args)

    return call


def of_severity(severity):
    finding = dataclasses.replace(exploding().findings[0], severity=severity)
    return dataclasses.replace(healthy(), findings=(finding,), score=40)


# exit codes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("report", "options", "code"),
    [
        (healthy(), [], 0),
        (exploding(), [], 1),
        (deep(), [], 0),
        (deep(), ["--fail-on", "warning"], 1),
        (of_severity(Severity.NOTE), ["--fail-on", "warning"], 0),
        (of_severity(Severity.NOTE), ["--fail-on", "note"], 1),
        (exploding(), ["--fail-on", "never"], 0),
        (exploding(), ["--exit-zero"], 0),
        (healthy(), ["--min-score", "97"], 0),
        (healthy(), ["--min-score", "98"], 1),
        (exploding(), ["--fail-on", "never", "--min-score", "50"], 1),
    ],
)
def test_the_exit_code_tells_whether_there_are_findings(lint, report, options, code):
    assert lint({"a.onnx": report}, "a.onnx", *options)[0] == code


def test_a_target_that_cannot_be_read_is_exit_2_with_one_message_and_nothing_on_stdout(lint):
    error = TargetError("not an ONNX file", hint="give an .onnx file")
    assert lint({"a.onnx": error}, "a.onnx") == (2, "", "gradlint: a.onnx: not an ONNX file\n  give an .onnx file\n")


def test_a_message_that_begins_with_the_target_does_not_name_it_twice(lint):
    assert lint({"a.onnx": TargetError("a.onnx: empty")}, "a.onnx")[2] == "gradlint: a.onnx: empty\n"


def test_the_other_targets_are_still_reported_and_exit_2_wins(lint):
    answers = {"a.onnx": TargetError("unreadable"), "b.onnx": exploding()}
    code, out, err = lint(answers, "a.onnx", "missing.onnx", "b.onnx", "--output-format", "concise", "--exit-zero")
    assert code == 2
    assert "b.onnx: explodes" in out
    assert [line for line in err.splitlines() if line.startswith("gradlint")] == [
        "gradlint: missing.onnx: no such file or folder",
        "gradlint: a.onnx: unreadable",
    ]


def test_a_forward_that_raises_is_told_with_the_users_line(lint):
    error = ForwardError("RuntimeError: shapes differ", where="net.py:14", hint="check the input")
    assert lint({"a.onnx": error}, "a.onnx")[2] == (
        "gradlint: a.onnx: RuntimeError: shapes differ\n  at net.py:14\n  check the input\n"
    )


def test_a_probe_that_was_wanted_and_saw_nothing_is_exit_2(lint):
    code, out, err = lint({"a.onnx": unprobed()}, "a.onnx")
    assert code == 2
    assert "UNKNOWN" in out
    assert "nothing could be probed" in err
    assert lint({"a.onnx": unprobed()}, "a.onnx", "--no-probe")[0] == 0


def test_an_internal_error_is_one_sentence_that_names_debug(lint):
    code, out, err = lint({"a.onnx": ZeroDivisionError("division\nby zero")}, "a.onnx")
    assert (code, out) == (2, "")
    assert err == "gradlint: a.onnx: internal error: ZeroDivisionError: division; --debug shows where, please report it\n"


def test_debug_shows_the_traceback_of_an_internal_error(lint):
    code, out, err = lint({"a.onnx": ZeroDivisionError("x")}, "a.onnx", "--debug")
    assert (code, out) == (2, "")
    assert "Traceback" in err
    assert "test_check.py" in err


def test_code_of_the_user_that_ends_the_program_does_not_make_it_a_success(lint):
    code, out, err = lint({"a.onnx": SystemExit(0)}, "a.onnx")
    assert (code, out) == (2, "")
    assert "ended the program" in err


def test_an_interruption_is_exit_130(lint):
    assert lint({"a.onnx": KeyboardInterrupt()}, "a.onnx")[:2] == (130, "")


@pytest.mark.parametrize(
    "args",
    [
        ["--no-such-option", "a.onnx"],
        ["a.onnx", "--seeds", "0"],
        ["a.onnx", "--fail-on", "disaster"],
        ["a.onnx", "--output-format", "pdf"],
        ["a.onnx", "--input", "nonsense"],
        ["a.onnx", "--select", "GL999"],
        ["a.onnx", "--rules", "no/such/folder"],
        ["rule", "GL999"],
        ["rule", "--nope"],
    ],
)
def test_bad_usage_is_exit_2_with_a_message_on_stderr(lint, args):
    code, out, err = lint({"a.onnx": healthy()}, *args)
    assert (code, out) == (2, "")
    assert err
    assert "Traceback" not in err
    assert "internal error" not in err


# commands and options ---------------------------------------------------------------------------------------------------


def test_check_may_be_left_out_and_options_stand_before_or_after(lint):
    answers = {"a.onnx": exploding()}
    expected = lint(answers, "check", "a.onnx", "--no-timings", "--no-probe")
    assert expected[1]
    assert lint(answers, "a.onnx", "--no-timings", "--no-probe") == expected
    assert lint(answers, "--no-timings", "a.onnx", "--no-probe") == expected
    assert lint(answers, "--no-probe", "--no-timings", "a.onnx") == expected


def test_gradlint_alone_shows_help_and_is_no_success(run):
    code, out, err = run()
    assert (code, out) == (2, "")
    assert "Usage: gradlint" in err


def test_an_empty_list_of_files_from_a_hook_is_a_success(run):
    assert run("check") == (0, "", "gradlint: nothing to lint\n")
    assert run("check", "--quiet") == (0, "", "")


@pytest.mark.parametrize("args", [["--help"], ["-h"], ["check", "--help"], ["rule", "--help"]])
def test_help_is_on_stdout(run, args):
    code, out, err = run(*args)
    assert (code, err) == (0, "")
    assert out.startswith("Usage: gradlint")


def test_version_is_that_of_the_project(run):
    assert run("--version") == (0, f"gradlint {tool_version()}\n", "")
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", tool_version())


def test_options_reach_the_engine(lint):
    lint(
        {"a.onnx": healthy()},
        *("a.onnx", "--input", "x=float32[2,3]", "--input", "ids=int64[4]<9", "--no-probe", "--seed", "7", "--seeds", "5"),
        *("--mode", "eval"),
    )
    (options,) = lint.seen
    assert [(spec.name, spec.text) for spec in options.inputs] == [("x", "float32[2,3]"), ("ids", "int64[4]<9")]
    assert (options.probe, options.seed, options.seeds, options.mode) == (False, 7, 5, "eval")


def test_selections_are_comma_lists_that_may_be_repeated(lint, monkeypatch):
    monkeypatch.setattr("gradlint.catalog.select", lambda rules, chosen, ignored: rules)
    lint({"a.onnx": healthy()}, "a.onnx", "--select", "GL1, GL2", "--select", "GL801", "--ignore", "GL101,")
    assert lint.seen[0].select == ("GL1", "GL2", "GL801")
    assert lint.seen[0].ignore == ("GL101",)


def test_a_folder_is_all_models_in_it(lint, tmp_path):
    (tmp_path / "zoo").mkdir()
    code, out, _ = lint({"zoo/a.onnx": healthy(), "zoo/b.onnx": exploding()}, "zoo", "--output-format", "concise")
    assert code == 1
    assert "zoo/a.onnx: healthy" in out
    assert "zoo/b.onnx: explodes" in out


# streams and formats ----------------------------------------------------------------------------------------------------


def test_json_on_stdout_satisfies_the_schema_also_when_another_target_fails(lint):
    code, out, _ = lint(
        {"a.onnx": exploding(), "b.onnx": TargetError("unreadable")}, "a.onnx", "b.onnx", "--output-format", "json"
    )
    assert code == 2
    document = json.loads(out)
    jsonschema.Draft202012Validator(schema()).validate(document)
    assert [target["target"] for target in document["targets"]] == ["a.onnx"]


def test_what_the_users_code_prints_goes_to_stderr(monkeypatch, run, tmp_path):
    (tmp_path / "a.onnx").touch()

    def check(target, options, *, progress=None):
        sys.stdout.write("building the model\n")
        return healthy()

    monkeypatch.setattr(parent, "check", check)
    _, out, err = run("a.onnx", "--output-format", "json")
    assert json.loads(out)
    assert err == "building the model\n"


def test_a_report_can_go_to_a_file_and_stdout_stays_empty(lint, tmp_path):
    assert lint({"a.onnx": exploding()}, "a.onnx", "-o", "report.txt", "--color", "always") == (1, "", "")
    text = (tmp_path / "report.txt").read_text(encoding="utf-8")
    assert "EXPLODES" in text
    assert "\x1b" not in text


def test_a_file_that_cannot_be_written_is_exit_2(lint):
    code, out, err = lint({"a.onnx": exploding()}, "a.onnx", "-o", "no/such/folder/report.txt")
    assert (code, out) == (2, "")
    assert err.startswith("gradlint: no/such/folder/report.txt: cannot write the report")


def test_color_is_for_terminals_unless_it_is_asked_for(lint):
    assert "\x1b" not in lint({"a.onnx": exploding()}, "a.onnx")[1]
    assert "\x1b" not in lint({"a.onnx": exploding()}, "a.onnx", "--color", "never")[1]
    assert "\x1b[1;31mEXPLODES" in lint({"a.onnx": exploding()}, "a.onnx", "--color", "always")[1]


@pytest.mark.parametrize(("no_color", "colored"), [(None, True), ("1", False), ("", True)])
def test_no_color_is_heeded_on_a_terminal(monkeypatch, no_color, colored):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color is not None:
        monkeypatch.setenv("NO_COLOR", no_color)
    assert cli.is_colored("auto") is colored
    assert cli.is_colored("always")
    assert not cli.is_colored("never")


def test_refuted_suspicions_and_times_follow_their_options(lint):
    _, out, _ = lint({"a.onnx": exploding()}, "a.onnx", "--show-refuted", "--no-timings")
    assert "GL302" in out
    assert " s\n" not in out


def test_a_message_cannot_steer_the_terminal(lint):
    assert "\x1b" not in lint({"a.onnx": TargetError("bad \x1b[2J name")}, "a.onnx")[2]


def test_progress_is_not_shown_in_a_log(lint):
    assert lint({"a.onnx": healthy()}, "a.onnx")[2] == ""


def test_every_error_of_gradlint_is_caught_by_the_command_line(lint):
    for kind in GradlintError.__subclasses__():
        assert lint({"a.onnx": kind("what and where")}, "a.onnx")[0] == 2
