"""Names of Python objects are found and called, and what goes wrong on the way is told in one sentence."""

from __future__ import annotations

import subprocess
import sys

import pytest
from torch import nn

import gradlint
from gradlint.errors import TargetError
from gradlint.frontends.targets import Target, is_python_target, load_target
from gradlint.frontends.torch.resolve import resolve

NET = """
from torch import nn
import helper_beside

class Net(nn.Linear):
    def __init__(self, width=3):
        super().__init__(width, width)

class Holder:
    best = Net(5)

model = Net(4)

def build():
    import helper_beside as again
    return Net(again.WIDTH)

def pair():
    return Net(), (1,)

def triple():
    return Net(), (1,), {"x": 2}

def needs(width, depth, *, kind, slow=False):
    return Net(width)

def breaks():
    return {}["lost"]

number = 7
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets" / "my_net.py").write_text(NET, encoding="utf-8")
    (tmp_path / "nets" / "helper_beside.py").write_text("WIDTH = 6\n", encoding="utf-8")
    (tmp_path / "pkg_here").mkdir()
    (tmp_path / "pkg_here" / "__init__.py").write_text("", encoding="utf-8")
    (tmp_path / "pkg_here" / "mod.py").write_text("from torch import nn\nmodel = nn.Linear(2, 2)\n", encoding="utf-8")
    (tmp_path / "bad_import.py").write_text("x = 1\nimport not_installed_anywhere\n", encoding="utf-8")
    (tmp_path / "bad_syntax.py").write_text("x = 1\ndef (:\n", encoding="utf-8")
    (tmp_path / "exits.py").write_text("raise SystemExit(3)\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    before = dict(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - set(before):
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


def width(text: str) -> int:
    return resolve(load_target(text)[0]).module.in_features


def test_files_and_modules_give_modules_classes_and_factories(folder):
    path = list(sys.path)
    assert width("nets/my_net.py:model") == 4
    assert width("nets/my_net.py:Net") == 3
    assert width("nets/my_net.py:build") == 6
    assert width("nets/my_net.py:Holder.best") == 5
    assert width("pkg_here.mod:model") == 2
    assert load_target("nets/my_net.py:model")[1] == str(folder / "nets" / "my_net.py")
    assert load_target("my_net.py:model", folder / "nets")[0] is load_target("nets/my_net.py:model")[0]
    assert sys.path == path


def test_a_file_named_as_an_installed_module_does_not_hide_it(folder):
    (folder / "json.py").write_text("answer = 42\n", encoding="utf-8")
    import json

    assert load_target("json.py:answer")[0] == 42
    assert json is sys.modules["json"]
    assert json.loads("1") == 1


def test_what_a_factory_may_return(folder):
    pair, triple = (resolve(load_target(f"nets/my_net.py:{name}")[0]) for name in ("pair", "triple"))
    assert (pair.args, pair.kwargs, triple.args, triple.kwargs) == ((1,), {}, (1,), {"x": 2})
    module = nn.Linear(1, 1)
    assert resolve(Target(module, (1,), {"y": 3})) == Target(module, (1,), {"y": 3})
    assert resolve((module, 5)).args == (5,)
    assert resolve(module) == Target(module)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nets/none.py:model", "nets/none.py: no such file"),
        ("nets/my_net.py:modle", "no attribute 'modle'\n.*did you mean model"),
        ("nets/my_net.py:Holder.worst", "no attribute 'worst'"),
        ("nets/my_net.py:zzz", "no attribute 'zzz'\n.*it has .*build"),
        ("no_such_pkg.mod:model", "cannot import no_such_pkg.mod: ModuleNotFoundError: No module named 'no_such_pkg'\n.*folder"),
        ("bad_import.py:x", r"No module named 'not_installed_anywhere' \(bad_import.py:2\)\n.*installed"),
        ("bad_syntax.py:x", r"SyntaxError.*\(bad_syntax.py:2\)"),
        ("exits:x", "cannot import exits: SystemExit: 3"),
        ("my_net", "does not name a model"),
        (":model", "does not name a model"),
    ],
)
def test_what_cannot_be_found_is_said(folder, text, message):
    with pytest.raises(TargetError, match=message):
        load_target(text)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("needs", "needs needs width, depth, kind"),
        ("breaks", r"breaks\(\) raised: KeyError: 'lost' \(nets/my_net.py:\d+\)"),
        ("number", "is of type int, not a torch.nn.Module"),
    ],
)
def test_what_is_no_model_is_said(folder, name, message):
    with pytest.raises(TargetError, match=message):
        resolve(load_target(f"nets/my_net.py:{name}")[0])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("net.py:build", True),
        ("a/b/net.py:Net.x", True),
        ("pkg.mod:attr", True),
        ("model.onnx", False),
        ("C:\\m.onnx", False),
        ("C:/nets/net.py:build", True),
        ("net.py:Net('a:b')", True),
        ("a:", False),
    ],
)
def test_python_targets_are_told_from_files(text, expected):
    assert is_python_target(text) is expected


def test_looking_for_targets_does_not_import_torch():
    code = "import sys, gradlint.frontends.targets as t; t.load_target('json:loads'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


SCRIPT = """
import argparse, os, sys
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--width", type=int, default=5)
args = parser.parse_args()
SEEN = list(sys.argv)

def build():
    import helper_beside
    assert parser.parse_args().width == 5
    return nn.Linear(args.width, helper_beside.WIDTH)

class Late(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Linear(3, 3)

    def forward(self, x):
        import helper_beside
        return self.w(x) * helper_beside.WIDTH

class Net(nn.Module):
    def __init__(self, width, depth=1, *, name="a:b", sizes=()):
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(width, width) for _ in range(depth)))

    def forward(self, x):
        return self.layers(x)

    def encode(self, x):
        return self(x)

    @staticmethod
    def small():
        return Net(2)
"""


@pytest.fixture
def script(folder, monkeypatch):
    (folder / "nets" / "script.py").write_text(SCRIPT, encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["gradlint", "nets/script.py:build", "--seeds", "3"])
    return folder


def test_a_script_sees_its_own_arguments_and_its_folder(script):
    argv, path = list(sys.argv), list(sys.path)
    report = gradlint.check("nets/script.py:build")
    assert [info.spec for info in report.result.inputs] == ["float32[8,5]"]
    assert load_target("nets/script.py:SEEN")[0] == ["nets/script.py"]
    assert gradlint.check("nets/script.py:Late").verdict == "healthy"
    assert (sys.argv, sys.path) == (argv, path)


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("Net(3)", 1),
        ("Net(width=3, depth=2)", 2),
        ("Net(3, depth=4, name='x:y', sizes=[1, (2, 3)])", 4),
        ("Net.small()", 1),
        ("Net.small", 1),
        ("Net(3).layers", None),
        ("Net(3, 2).encode", 2),
    ],
)
def test_what_is_named_may_be_called_with_literals(script, text, layers):
    assert is_python_target(f"nets/script.py:{text}")
    module = resolve(load_target(f"nets/script.py:{text}")[0]).module
    assert len(module.layers if layers else module) == (layers or 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Net(widht=3)", "Net: got an unexpected keyword argument 'widht'\n.*did you mean width"),
        ("Net(depth=3)", r"Net needs width\n.*FILE.py:Net\(width=...\)"),
        ("Net(os.getpid())", "arguments of Net are not all literals"),
        ("Net(**{'width': 3})", "arguments of Net are not all literals"),
        ("Net(__import__('os').getpid())", "arguments of Net are not all literals"),
        ("SEEN(3)", "SEEN cannot be called"),
        ("Net('a')", r"Net\(\) raised: "),
        ("Net(1)(2)", r"Net\(1\)\(\) raised|Net\(1\): |cannot|takes"),
    ],
)
def test_calls_that_cannot_be_made_are_told_and_nothing_is_evaluated(script, text, message):
    with pytest.raises(TargetError, match=message):
        load_target(f"nets/script.py:{text}")


@pytest.mark.parametrize("text", ["net.py:a+b", "net.py:(a)()if 1 else 0", "net.py:[a]", "net.py:" + "a(" * 9000, "net.py:a;b"])
def test_other_expressions_are_no_targets(text):
    assert not is_python_target(text)


def test_a_file_with_relative_imports_is_imported_in_its_package(folder):
    inner = folder / "outer" / "inner"
    inner.mkdir(parents=True)
    (folder / "outer" / "__init__.py").write_text("", encoding="utf-8")
    (inner / "__init__.py").write_text("from .parts import WIDTH\n", encoding="utf-8")
    (inner / "parts.py").write_text("from ..sizes import WIDTH\n", encoding="utf-8")
    (folder / "outer" / "sizes.py").write_text("WIDTH = 9\n", encoding="utf-8")
    code = "from torch import nn\nfrom .parts import WIDTH\nfrom . import parts\nmodel = nn.Linear(WIDTH, 2)\n"
    (inner / "whole.py").write_text(code, encoding="utf-8")
    assert width("outer/inner/whole.py:model") == 9
    assert sys.modules["outer.inner.whole"].__package__ == "outer.inner"
    assert load_target("outer.inner.whole:model")[0] is load_target("outer/inner/whole.py:model")[0]


def test_a_package_whose_name_is_taken_is_told(folder):
    (folder / "json").mkdir()
    (folder / "json" / "__init__.py").write_text("", encoding="utf-8")
    (folder / "json" / "decoder.py").write_text("from . import x\n", encoding="utf-8")
    with pytest.raises(TargetError, match=r"json.decoder is another module"):
        load_target("json/decoder.py:model")
