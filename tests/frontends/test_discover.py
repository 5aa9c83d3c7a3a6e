"""From what was typed to single targets."""

from __future__ import annotations

import pytest

from gradlint.errors import TargetError
from gradlint.frontends.discover import expand


@pytest.fixture
def tree(tmp_path):
    for name in [
        "a.onnx",
        "zoo/c.onnx",
        "zoo/b.onnx",
        "zoo/deep/d.onnx",
        "zoo/.cache/e.onnx",
        "zoo/readme.md",
        "weights.pt",
        "net.py",
    ]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    "target", ["a.onnx", "weights.pt", "zoo/readme.md", "-", "net.py:build", "torch.nn:Linear", "zoo.nets:Net.small"]
)
def test_files_and_names_are_passed_on_as_typed(tree, target):
    assert expand([target], tree) == [target]


def test_a_folder_stands_for_the_models_below_it_sorted_and_without_hidden_ones(tree):
    assert expand(["zoo"], tree) == ["zoo/b.onnx", "zoo/c.onnx", "zoo/deep/d.onnx"]
    assert expand(["."], tree) == ["a.onnx", "zoo/b.onnx", "zoo/c.onnx", "zoo/deep/d.onnx"]


def test_a_hidden_folder_that_was_named_is_looked_into(tree):
    assert expand(["zoo/.cache"], tree) == ["zoo/.cache/e.onnx"]


def test_an_absolute_folder_gives_absolute_paths(tree, tmp_path_factory):
    assert expand([str(tree / "zoo")], tmp_path_factory.mktemp("elsewhere"))[0] == (tree / "zoo/b.onnx").as_posix()


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.onnx", ["a.onnx"]),
        ("zoo/?.onnx", ["zoo/b.onnx", "zoo/c.onnx"]),
        ("**/*.onnx", ["a.onnx", "zoo/b.onnx", "zoo/c.onnx", "zoo/deep/d.onnx"]),
        ("zoo/*", ["zoo/b.onnx", "zoo/c.onnx"]),
        ("*.pt", ["weights.pt"]),
    ],
)
def test_a_glob_that_the_shell_left_is_expanded(tree, pattern, found):
    assert expand([pattern], tree) == found


def test_a_file_whose_name_looks_like_a_glob_or_an_attribute_is_that_file(tree):
    (tree / "net[1].onnx").touch()
    (tree / "net:v2").touch()
    assert expand(["net[1].onnx", "net:v2"], tree) == ["net[1].onnx", "net:v2"]


def test_a_target_that_is_named_twice_is_linted_once(tree):
    assert expand(["a.onnx", "*.onnx", "a.onnx"], tree) == ["a.onnx"]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("b.onnx", "b.onnx: no such file or folder\n  did you mean a.onnx?"),
        ("zoo/cc.onnx", "did you mean zoo/c.onnx"),
        ("nets.py:build", "nets.py: no such file\n  did you mean net.py?"),
        ("empty", "empty: no model in this folder\n  gradlint looks for .onnx"),
        ("nowhere/at/all", "nowhere/at/all: no such file or folder\n  a target is a model file"),
        ("x*.onnx", "x*.onnx: no model file matches"),
        ("*.py", "*.py: no model file matches"),
        ("net.py", "net.py: which model in it?\n  name a module, class or factory: net.py:build"),
        ("my-pkg:Net", "'my-pkg' is neither a module nor a Python file"),
        ("pkg:not-a-name", "pkg:not-a-name: no such file or folder"),
        ("x" * 5000, "name too long"),
    ],
)
def test_what_names_nothing_is_an_error_that_says_what_to_do(tree, target, message):
    with pytest.raises(TargetError) as raised:
        expand([target], tree)
    assert message.lower() in str(raised.value).lower()
