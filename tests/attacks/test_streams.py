"""Odd streams, folders, file names and configuration: exit code 2 and a sentence, soon."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BROKEN = ROOT / "sample_models" / "tanh_gain_broken.onnx"
LINT = f"exec {sys.executable} -m gradlint"
SECONDS = 60  # many times what any of it takes


def shell(command, cwd, **env):
    """Run a command of a shell; returns its exit code, stdout and stderr."""
    done = subprocess.run(
        ["/bin/sh", "-c", command],
        cwd=cwd,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **env},
        capture_output=True,
        check=False,
        timeout=SECONDS,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def told(code, out, err):
    assert (code, out) == (2, ""), err
    assert err.startswith("gradlint: ") or "Error: " in err
    for unwanted in ("internal error", "Traceback", "Exception ignored", "please report"):
        assert unwanted not in err
    return err


@pytest.fixture
def here(tmp_path):
    (tmp_path / "m.onnx").write_bytes(BROKEN.read_bytes())
    return tmp_path


# streams ----------------------------------------------------------------------------------------------------------------

COMMANDS = ["m.onnx --no-probe", "m.onnx --no-probe --output-format json", "rule", "--version"]


@pytest.mark.parametrize("command", [*COMMANDS, "rule GL101", "--help", "explain m.onnx node_linear --no-probe"])
def test_a_report_that_nobody_gets_is_an_error(here, command):
    """Stdout is closed. `head` is something else: it has read what it wanted."""
    assert "stdout" in told(*shell(f"{LINT} {command} >&-", here))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is full")
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("buffered", ["", "1"])
def test_a_full_disk_is_an_error(here, command, buffered):
    err = told(*shell(f"{LINT} {command} >/dev/full", here, PYTHONUNBUFFERED=buffered))
    assert "No space left" in err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is full")
def test_a_full_disk_under_the_report_is_an_error(here):
    assert "cannot write the report" in told(*shell(f"{LINT} m.onnx --no-probe -o /dev/full", here))


@pytest.mark.parametrize("stderr", [">&-", ">/dev/full", ">/dev/null"])
def test_without_stderr_the_report_and_the_exit_code_are_the_same(here, stderr):
    code, out, _ = shell(f"{LINT} m.onnx nowhere.onnx --no-probe --output-format json 2{stderr}", here)
    assert code == 2
    assert json.loads(out)["targets"][0]["verdict"] == "explodes"
    assert shell(f"{LINT} m.onnx --no-probe --output-format json 2{stderr}", here)[0] == 1


def test_without_any_stream(here):
    assert shell(f"{LINT} m.onnx --no-probe <&- >&- 2>&-", here)[0] == 2
    assert shell(f"{LINT} m.onnx --no-probe -o report <&- >&- 2>&-", here)[0] == 1
    assert "EXPLODES" in (here / "report").read_text()


@pytest.mark.parametrize(
    ("stdin", "says"),
    [("<&-", "closed"), ("</dev/null", "empty"), ("</dev/zero", "no ONNX file"), ("0>m2", "cannot be read")],
)
def test_a_stdin_without_a_model(here, stdin, says):
    assert says in told(*shell(f"{LINT} - --no-probe {stdin}", here))


# folders ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["m.onnx", "check", ". --no-probe", "rule", "explain m.onnx n", "new-rule XX001 a-b"])
def test_a_working_directory_that_is_gone(here, command):
    told(*shell(f"mkdir gone; cd gone; rmdir ../gone; {LINT} {command}", here))


@pytest.mark.parametrize("target", [".", "**/*.onnx", "**", "**/**/**/*.onnx", "*/*/*/*/*/*.onnx", "a/**/b/**/*.onnx"])
def test_folders_that_link_to_their_parents(run, here, target):
    for name in ("a", "b", "a/b", "b/a", "a/b/a"):
        (here / name).mkdir()
        for link in range(6):
            (here / name / f"up{link}").symlink_to("..")
            (here / name / f"top{link}").symlink_to(here)
    code, out, err = run(target, "--no-probe", "--output-format", "json")
    if code == 2:
        assert "no model file matches" in err
    else:
        assert code == 1
        assert len(json.loads(out)["targets"]) < 1000


@pytest.mark.parametrize("depth", [400, 2200])
@pytest.mark.parametrize("target", [".", "**/*.onnx"])
def test_a_very_deep_folder(run, here, depth, target):
    """Deeper than the longest path that an operating system takes, and than Python's stack."""
    opened = os.open(here, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=opened)
        deeper = os.open("d", os.O_RDONLY, dir_fd=opened)
        os.close(opened)
        opened = deeper
    os.close(opened)
    try:
        code, out, err = run(target, "--no-probe", "--output-format", "json")
        assert code == 1, err
        assert len(json.loads(out)["targets"]) == 1
    finally:  # too deep for what pytest removes folders with
        subprocess.run(["rm", "-rf", "d"], cwd=here, check=True)


# names ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [b"\xff.onnx", b"a\xe9\x80.onnx", b"\xc3(.onnx", b"\xed\xa0\x80.onnx"])
@pytest.mark.parametrize("form", ["full", "concise", "github", "json"])
@pytest.mark.parametrize("locale", ["C.UTF-8", "C"])
def test_names_that_are_no_utf8(run, here, name, form, locale):
    """From a folder, and as the shell gives them."""
    path = os.fsencode(here) + b"/" + name
    Path(os.fsdecode(path)).write_bytes(BROKEN.read_bytes())
    (here / "m.onnx").unlink()
    if locale == "C.UTF-8":
        for target in (os.fsdecode(name), "."):
            code, out, err = run(target, "--no-probe", "--output-format", form)
            assert code == 1, err
            out.encode("utf-8")
            assert err == ""
    elif form == "full":
        code, out, err = shell(f"{LINT} *.onnx --no-probe", here, LC_ALL="C", PYTHONIOENCODING="ascii:strict")
        assert code == 1, err
        assert "EXPLODES" in out


@pytest.mark.parametrize(
    "name", ["\udcff.onnx", "\udcff.py:x", "\udcff", "a\0b.onnx", "a\0b", "x" * 5000, "a/" * 3000, "\udcff*", "\0*"]
)
def test_names_of_nothing(run, tmp_path, name):
    told(*run(name))


# configuration ----------------------------------------------------------------------------------------------------------

TOML = {
    "no value": b"seeds =",
    "a sentence": b"this is no configuration",
    "bytes": b"\xff\xfe\x00\x01",
    "latin": 'recipe = "\xe9"'.encode("latin-1"),
    "a zero byte": b"seeds = 1\0",
    "twice": b"seeds = 1\nseeds = 2",
    "no end": b'recipe = """',
    "deep arrays": b"ignore = " + b"[" * 50_000 + b"]" * 50_000,
    "deep arrays without an end": b"ignore = " + b"[" * 200_000,
    "deep tables": b"targets = " + b"{a=" * 20_000 + b"1" + b"}" * 20_000,
    "a long dotted key": b"targets." + b"a." * 200_000 + b"a = 1",
    "a long table name": b"[" + b"a." * 200_000 + b"a]",
    "a long spaced key": b"a . " * 50_000 + b"a = 1",
    "a long quoted key": b'"a"."b".' * 50_000 + b"c = 1",
    "many long keys": b"\n".join(b"a" + str(i).encode() + b".b" * 190 + b" = 1" for i in range(500)),
    "many tables": b"".join(b"[tool.gradlint.a" + str(i).encode() + b"]\n" for i in range(40_000)),
    "many arrays of tables": b"[[tool.gradlint.a]]\n" * 50_000,
    "many digits": b"seeds = " + b"9" * 100_000,
    "a large number": b"seeds = 99999999999999999999",
    "hexadecimal": b"seeds = 0x" + b"f" * 100_000,
    "hexadecimal in a list": b"ignore = [0x" + b"f" * 100_000 + b"]",
    "binary in a recipe": b"recipe = { lr = 0b" + b"1" * 100_000 + b" }",
    "no number": b"time-limit = nan",
    "infinite": b"time-limit = inf",
    "negative": b"time-limit = -1",
    "a date": b"seeds = 2020-01-01",
    "no such date": b"seeds = 2020-02-31",
    "too large": b"# " + b"x" * (2 << 20),
    "many quotes": b"a = " + b'"' * 100_001,
    "backslashes": b'recipe = "' + b"\\" * 100_001,
    "code points": b'recipe = "\\UFFFFFFFF"',
    "targets as a list": b'targets = ["m.onnx"]',
    "targets as numbers": b"targets = { a = 1 }",
    "a target with a zero byte": b'targets = { a = "\\u0000" }',
    "rules with a zero byte": b'rules = ["\\u0000"]',
    "rules as a number": b"rules = 1",
    "a table of rules": b"rules = [{a = 1}]",
    "rules that link to themselves": b'rules = ["loop"]',
    "a recipe of numbers": b"recipe = [1]",
    "an unknown format": b'output-format = "a\\nb"',
    "a key with a line break": b'"a\\n::error::b" = 1',
}


@pytest.mark.parametrize("name", ["gradlint.toml", "pyproject.toml"])
@pytest.mark.parametrize("text", TOML.values(), ids=TOML.keys())
def test_configuration_that_cannot_be_read(run, here, name, text):
    (here / "loop").symlink_to("loop")
    (here / name).write_bytes(text if name == "gradlint.toml" else b"[tool.gradlint]\n" + text)
    targets = [] if b"targets = { a" in text else ["m.onnx"]
    err = told(*run("check", *targets, "--no-probe"))
    assert len(err) < 2000
    assert not [line for line in err.split("\n") if line.startswith("::")]


@pytest.mark.parametrize("text", ["tool = 1", "tool.gradlint = 1", "[[tool]]", "[[tool.gradlint]]", "[tool]\ngradlint = []"])
def test_a_pyproject_whose_tables_are_none(run, here, text):
    (here / "pyproject.toml").write_text(text)
    told(*run("m.onnx", "--no-probe"))
