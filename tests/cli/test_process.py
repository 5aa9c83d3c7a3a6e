"""The command as a process of its own: imports, streams, terminals, hooks."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from gradlint import cli
from gradlint.report import tool_version

ROOT = Path(__file__).resolve().parents[2]


def python(*args, **env):
    return subprocess.run(
        [sys.executable, *args], cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ | env, timeout=120
    )


@pytest.mark.parametrize("args", [["--version"], ["--help"], ["check", "--help"], ["rule", "--help"], ["check"]])
def test_version_and_help_import_nothing_heavy(args):
    code = f"""
import sys
from gradlint import cli
try:
    cli.main({args!r})
finally:
    heavy = {{"torch", "onnx", "numpy", "networkx", "rich"}} & set(sys.modules)
    print("heavy:", sorted(heavy), file=sys.stderr)
"""
    done = python("-c", code)
    assert done.returncode == 0
    assert done.stderr.endswith("heavy: []\n")


def test_python_m_gradlint_is_the_same_command():
    assert python("-m", "gradlint", "--version").stdout == f"gradlint {tool_version()}\n"


def test_a_missing_file_is_exit_2_with_one_sentence():
    done = python("-m", "gradlint", "no_such_model.onnx")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("gradlint: no_such_model.onnx: no such file or folder\n")


@pytest.mark.parametrize("output_format", ["full", "json", "concise", "github"])
def test_a_stream_that_knows_only_ascii_is_no_obstacle(output_format, tmp_path):
    code = f"""
import dataclasses, sys
sys.path.insert(0, "tests")
from tests.models.report_samples import exploding
from gradlint import cli
from gradlint.process import parent
parent.check = lambda target, options, progress: dataclasses.replace(exploding(), target="modèle.onnx", notes=("naïve",))
cli.main([sys.argv[1], "--output-format", {output_format!r}])
"""
    model = tmp_path / "a.onnx"
    model.touch()
    done = python("-c", code, str(model), PYTHONIOENCODING="ascii")
    assert done.returncode == 1, done.stderr
    assert done.stdout.isascii()


def test_a_reader_that_goes_away_is_no_error(tmp_path):
    code = """
import sys
sys.path.insert(0, "tests")
from tests.models.report_samples import exploding
from gradlint import cli
from gradlint.process import parent
parent.check = lambda target, options, progress: exploding()
cli.main([sys.argv[1], "--output-format", "json"])
"""
    model = tmp_path / "a.onnx"
    model.touch()
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", code, str(model)], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_the_hooks_call_a_command_that_exists_and_match_onnx_files_only():
    hooks = {hook["id"]: hook for hook in yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))}
    assert set(hooks) == {"gradlint", "gradlint-target"}
    assert all(hook["entry"].split()[1] in cli.cli.commands and hook["language"] == "python" for hook in hooks.values())
    assert re.search(hooks["gradlint"]["files"], "models/net.onnx")
    assert not re.search(hooks["gradlint"]["files"], "models/net.onnx.md")
    assert hooks["gradlint-target"]["pass_filenames"] is False


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize(("option", "shown"), [("--no-timings", True), ("--quiet", False)])
def test_progress_is_shown_where_somebody_is_watching(option, shown, tmp_path):
    import pty

    code = """
import sys, time
sys.path.insert(0, "tests")
from tests.models.report_samples import healthy
from gradlint import cli
from gradlint.process import parent
def check(target, options, *, progress):
    progress("probing [seed 2 of 3]")
    time.sleep(0.3)
    return healthy()
parent.check = check
cli.main(sys.argv[1:])
"""
    model = tmp_path / "a.onnx"
    model.touch()
    ours, theirs = pty.openpty()
    env = os.environ | {"TERM": "xterm", "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(model), option], cwd=ROOT, stdout=subprocess.PIPE, stderr=theirs, env=env, check=False
    )
    os.set_blocking(ours, False)
    try:
        said = os.read(ours, 100_000).decode()
    except BlockingIOError:
        said = ""
    finally:
        os.close(theirs)
        os.close(ours)
    assert done.returncode == 0
    assert ("a.onnx: probing [seed 2 of 3]" in said) is shown
    assert b"probing" not in done.stdout
