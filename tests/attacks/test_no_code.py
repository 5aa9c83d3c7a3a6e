"""No code from data: what exists is a file, and configuration that nobody named runs nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper

import gradlint
from gradlint import cli
from gradlint.errors import TargetError
from gradlint.frontends.discover import expand

ROOT = Path(__file__).resolve().parents[2]
BROKEN = ROOT / "sample_models" / "tanh_gain_broken.onnx"
PLANT = """
import pathlib
pathlib.Path(__file__).with_name("PLANTED_CODE_RAN").touch()
import torch
x = onnx = y = torch.nn.Linear(2, 2)
class a: onnx = x
"""


@pytest.fixture
def planted(tmp_path):
    """A folder with code that leaves a mark when it runs; the function tells whether it did, and removes the mark."""
    places = [tmp_path, tmp_path / "pkg", tmp_path / "r"]
    for place in places:
        place.mkdir(exist_ok=True)
        (place / "evil.py").write_text(PLANT)
    (tmp_path / "pkg" / "__init__.py").write_text(PLANT)

    def ran():
        marks = [*tmp_path.rglob("PLANTED_CODE_RAN")]
        for mark in marks:
            mark.unlink()
        return bool(marks)

    return ran


def _small():
    """A model of one node: what is tested here is whether code runs, not what is found."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [8, 8]) for name in "xy")
    w = numpy_helper.from_array(np.full((8, 8), 0.3, np.float32), "w")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [w])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8).SerializeToString()


SMALL = _small()


def put(path, model=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(SMALL if model is None else model.read_bytes())
    return path


def test_what_is_typed_runs(run, planted):
    """Else the other tests of this file would prove nothing."""
    for target in ("evil.py:x", "evil:x", "pkg.evil:x", "pkg/evil.py:x"):
        sys.modules.pop("evil", None)
        sys.modules.pop("pkg.evil", None)
        code, _, err = run(target, "--input", "float32[3,2]", "--no-probe", "--isolated")
        assert code == 0, err
        assert planted(), target


NAMES = [
    "evil.py:x.onnx",
    "evil.py:a.onnx",
    "evil:x.onnx",
    "evil:a.onnx",
    "pkg.evil:x.onnx",
    "pkg:x.onnx",
    "a:b.onnx",
    "os:name.onnx",
    "evil.py:onnx.onnx",
    "pkg/evil.py:x.onnx",
    "pkg/evil:x.onnx",
    "r/-:x.onnx",
    "evil.py:[x].onnx",
    "evil.py:*.onnx",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", ["typed", "glob", "folder", "python"])
def test_a_file_is_data_whatever_its_name(run, planted, tmp_path, name, how):
    put(tmp_path / name)
    target = {
        "typed": name,
        "glob": str(Path(name).parent / "*.onnx"),
        "folder": ".",
        "python": name,
    }[how]
    if how == "python":
        os.chdir(tmp_path)
        assert gradlint.check(name, probe=False).result.frontend == "onnx"
    else:
        code, out, err = run(target, "--no-probe", "--output-format", "json")
        assert code == 0, err
        assert [report["frontend"] for report in json.loads(out)["targets"]] == ["onnx"]
    assert not planted()


@pytest.mark.parametrize("name", ["evil.py:x", "evil:x", "pkg.evil:x", "pkg/evil.py:x"])
@pytest.mark.parametrize("kind", ["file", "link to nothing", "pipe", "folder", "file in a folder"])
def test_what_exists_under_the_name_of_code_is_not_imported(run, planted, tmp_path, name, kind):
    path = tmp_path / name
    if kind == "file":
        put(path)
    elif kind == "link to nothing":
        path.symlink_to("nowhere")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    if kind == "file in a folder":
        put(path / "evil.py:x.onnx")
    code, _, err = run(name, "--no-probe")
    assert code == (0 if kind == "file in a folder" else 2), err
    assert "internal error" not in err
    assert not planted()


def test_a_file_that_goes_away_while_it_is_read_is_not_imported(planted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "evil.py:x")
    (target,) = expand(["evil.py:x"], tmp_path)
    (tmp_path / "evil.py:x").unlink()
    with pytest.raises(TargetError, match="no such file"):
        gradlint.check(target, probe=False)
    assert not planted()


@pytest.mark.parametrize("name", ["--rules=r", "--config=evil.toml", "--exit-zero", "-q", "--select=GL9", "--isolated"])
def test_a_file_that_is_named_like_an_option_is_no_option(run, planted, tmp_path, name):
    put(tmp_path / name)
    put(tmp_path / "model.onnx", BROKEN)
    (tmp_path / "evil.toml").write_text('rules = ["r"]')
    code, out, err = run(name, "model.onnx", "--no-probe")
    assert (code, out) == (2, "")
    assert f"write ./{name}" in err
    assert not planted()
    assert run("--no-probe", "--", "model.onnx")[0] == 1


def test_hooks_pass_files_as_files():
    hooks = {hook["id"]: hook for hook in yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))}
    assert hooks["gradlint"]["args"][-1] == "--"
    assert hooks["gradlint-target"]["pass_filenames"] is False


# configuration ----------------------------------------------------------------------------------------------------------

CONFIGURED = {
    "rules": 'rules = ["r"]',
    "rules as a text": 'rules = "r"',
    "all rules here": 'rules = ["."]',
    "alias of a file": 'targets = { "model.onnx" = "evil.py:x" }',
    "alias of a path": 'targets = { "./model.onnx" = "evil.py:x" }',
    "alias of stdin": 'targets = { "-" = "evil.py:x" }',
    "alias of a glob": 'targets = { "*.onnx" = "evil.py:x" }',
    "alias of this folder": 'targets = { "." = "evil.py:x" }',
    "alias of other code": 'targets = { "json:loads" = "evil.py:x" }',
    "alias of a module": 'targets = { "model.onnx" = "evil:x", "-" = "pkg.evil:x" }',
    "input": 'input = "x=@evil.py"',
    "recipe": 'recipe = "evil.py:x"',
    "recipe of code": "recipe = { optimizer = \"__import__('evil')\" }",
}


@pytest.mark.parametrize("text", CONFIGURED.values(), ids=CONFIGURED.keys())
@pytest.mark.parametrize("name", ["gradlint.toml", "../pyproject.toml"])
def test_configuration_that_was_found_runs_nothing(planted, tmp_path, monkeypatch, text, name):
    """Neither that of a repository nor that of a folder."""
    monkeypatch.chdir(put(tmp_path / "model.onnx").parent)
    config = tmp_path / name
    if name.startswith(".."):
        monkeypatch.chdir(put(tmp_path / "sub" / "model.onnx").parent)
        (tmp_path / ".git").mkdir()
        config = tmp_path / "pyproject.toml"
    config.write_text(f"[tool.gradlint]\n{text}" if config.name == "pyproject.toml" else text)
    with (tmp_path / "model.onnx").open(encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        for target in ("model.onnx", "./model.onnx", "*.onnx", ".", "-", "json:loads", None):
            with pytest.raises(SystemExit) as raised:
                cli.main(["check", *([target] if target else []), "--no-probe"])
            assert raised.value.code in {0, 2}
            assert not planted(), target


def test_stdin_is_stdin_whatever_the_configuration_calls_so(planted, tmp_path):
    put(tmp_path / "model.onnx")
    (tmp_path / "gradlint.toml").write_text('targets = { "-" = "evil.py:x" }')
    with (tmp_path / "model.onnx").open("rb") as model:
        done = subprocess.run(
            [sys.executable, "-m", "gradlint", "-", "--no-probe"],
            cwd=tmp_path,
            stdin=model,
            capture_output=True,
            text=True,
            check=False,
            env=_env(),
        )
    assert done.returncode == 0, done.stderr
    assert not planted()


def _env(**more):
    return {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


@pytest.mark.parametrize("library", ["torch", "onnx", "click", "json"])
def test_a_file_named_like_a_library_beside_the_model_is_not_imported(tmp_path, library):
    put(tmp_path / "model.onnx")
    (tmp_path / f"{library}.py").write_text("import pathlib\npathlib.Path(__file__).with_name('PLANTED_CODE_RAN').touch()\n")
    probed = library == "torch"  # it takes seconds, and the other process is started in the same way for all
    done = subprocess.run(
        [sys.executable, "-m", "gradlint", "model.onnx", "--seeds", "1", *([] if probed else ["--no-probe"])],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env=_env(),
    )
    assert done.returncode == 0, done.stderr
    assert not [*tmp_path.rglob("PLANTED_CODE_RAN")]


def test_code_of_the_configuration_runs_where_it_is_asked_for_by_name_and_is_said(run, planted, tmp_path):
    (tmp_path / "gradlint.toml").write_text('targets = { net = "evil.py:x" }\ninput = "float32[3,2]"\nprobe = false')
    code, out, err = run("check")
    assert (code, out) == (2, "")
    assert "only where it is asked for by name\n  as in: gradlint net" in err
    assert not planted()
    code, _, err = run("net")
    assert code == 0, err
    assert f"net is imported from evil.py:x, as {tmp_path / 'gradlint.toml'} says" in err
    assert planted()


@pytest.mark.parametrize(
    "target", ["../elsewhere/evil.py:x", "link.py:x", "linked/evil.py:x", "antigravity:x", "json.decoder:x", "nowhere:x"]
)
def test_code_outside_of_the_project_is_refused(run, tmp_path, target):
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    for folder in (project, elsewhere):
        folder.mkdir()
    (elsewhere / "evil.py").write_text(PLANT)
    (project / "link.py").symlink_to(elsewhere / "evil.py")
    (project / "linked").symlink_to(elsewhere)
    (project / "gradlint.toml").write_text(f'targets = {{ net = "{target}" }}')
    os.chdir(project)
    code, out, err = run("net", "--no-probe")
    assert (code, out) == (2, "")
    assert "is no code in" in err
    assert not [*tmp_path.rglob("PLANTED_CODE_RAN")]


@pytest.mark.parametrize("folder", ["../elsewhere", "/etc", "linked", "r/../../elsewhere"])
def test_rules_outside_of_the_project_are_refused(run, tmp_path, folder):
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    for made in (project, elsewhere, project / "r"):
        made.mkdir()
    (elsewhere / "evil.py").write_text(PLANT)
    (project / "linked").symlink_to(elsewhere)
    (project / "gradlint.toml").write_text(f'rules = ["{folder}"]')
    put(project / "model.onnx")
    os.chdir(project)
    for more in ([], ["--config", "gradlint.toml"]):
        code, out, err = run("model.onnx", "--no-probe", *more)
        assert (code, out) == (2, "")
        assert "lie outside of" in err
    assert not [*tmp_path.rglob("PLANTED_CODE_RAN")]


def test_rules_are_loaded_with_a_configuration_that_was_named_or_a_target_of_its_own(run, tmp_path, planted):
    shutil.copytree(ROOT / "tests" / "models" / "example_pack", tmp_path / "mine")
    (tmp_path / "gradlint.toml").write_text('rules = ["mine"]\ntargets = { net = "evil.py:x" }\ninput = "float32[3,2]"')
    put(tmp_path / "model.onnx")

    def rules(*args):
        code, out, err = run(*args, "--no-probe", "--output-format", "json")
        assert code == 0, err
        report = json.loads(out)["targets"][0]
        return report["rules_checked"] + len(report["skipped"]), err

    builtin, err = rules("model.onnx", "--input", "x=float32[8,8]")
    assert "are not loaded, because" in err
    assert not planted()
    named, err = rules("model.onnx", "--input", "x=float32[8,8]", "--config", "gradlint.toml")
    assert named > builtin
    assert "are loaded, as" in err
    found, err = rules("net")
    assert found == named
    assert "are loaded, as" in err
