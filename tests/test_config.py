"""The configuration file: which one is read, what it may say, and that the command line has the last word."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from gradlint.config import find, read
from gradlint.errors import ConfigError

Run = Callable[..., tuple[int, str, str]]
MODELS = Path(__file__).parents[1] / "sample_models"
BROKEN = MODELS / "tanh_gain_broken.onnx"


def write(text: str, name: str = "gradlint.toml") -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def codes(out: str) -> set[str]:
    return {finding["rule"] for report in json.loads(out)["targets"] for finding in report["findings"]}


def test_the_nearest_file_wins_and_a_pyproject_counts_with_a_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outer = write("[tool.gradlint]\nseeds = 1", "pyproject.toml")
    write("[tool.other]\nseeds = 1", "a/pyproject.toml")
    inner = write("seeds = 1", "a/b/.gradlint.toml")
    Path("a/b/c").mkdir()
    assert find(tmp_path / "a") == tmp_path / outer
    assert find(tmp_path / "a/b/c") == tmp_path / inner


def test_options_come_from_the_file_and_the_command_line_overrides_them(run: Run):
    write('select = ["GL8"]\noutput-format = "json"\nfail-on = "never"\nseeds = 1')
    code, out, _ = run("check", str(BROKEN))
    assert code == 0
    assert codes(out) == {"GL801", "GL803"}
    assert json.loads(out)["targets"][0]["seeds"] == 1
    code, out, _ = run("check", str(BROKEN), "--select", "GL1", "--fail-on", "error")
    assert code == 1
    assert codes(out) == {"GL101"}


def test_the_probe_can_be_turned_off(run: Run):
    write('probe = false\noutput-format = "json"')
    assert json.loads(run("check", str(BROKEN))[1])["targets"][0]["coverage"]["probed"] == 0


def test_isolated_reads_none_and_config_reads_the_one_given(run: Run):
    write('output-format = "json"')
    write('output-format = "concise"', "other.toml")
    assert not run("check", str(BROKEN), "--isolated", "--no-probe")[1].startswith("{")
    assert not run("check", str(BROKEN), "--config", "other.toml", "--no-probe")[1].startswith("{")
    assert run("check", str(BROKEN), "--no-probe")[1].startswith("{")


def test_without_a_target_the_configured_ones_are_checked_from_any_folder_below(run: Run, monkeypatch):
    write("models here", "sub/keep.txt")
    (Path("model.onnx")).write_bytes(BROKEN.read_bytes())
    write('output-format = "json"\nprobe = false\ntargets = { net = "model.onnx" }')
    monkeypatch.chdir("sub")
    assert [report["target"] for report in json.loads(run("check")[1])["targets"]] == ["../model.onnx"]
    assert [report["target"] for report in json.loads(run("check", "net")[1])["targets"]] == ["../model.onnx"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("selct = []", "did you mean select"),
        ("seeds = ", "gradlint.toml"),
        ('recipe = { optimiser = "adam" }', "gradlint.toml: recipe: no setting is called 'optimiser'"),
        ("recipe = { schedule = 5 }", "unknown schedule '5'"),
        ("recipe = { betas = 0.9 }", "betas are"),
        ('recipe = { optimizer = "adm" }', "did you mean adam"),
        ("targets = 3", "targets are names"),
    ],
)
def test_what_is_wrong_is_said_with_the_file(run: Run, text: str, said: str):
    write(text)
    code, out, err = run("check", str(BROKEN))
    assert code == 2
    assert not out
    assert said in err


def test_a_value_of_the_wrong_type_is_refused(run: Run):
    write('seeds = "many"')
    code, _, err = run("check", str(BROKEN))
    assert code == 2
    assert "seeds" in err


def test_a_recipe_is_read_from_a_table_or_its_text(tmp_path):
    path = tmp_path / "gradlint.toml"
    path.write_text('recipe = { optimizer = "adamw", lr = 3e-4, clip_norm = 1.0 }', encoding="utf-8")
    assert read(path, {"recipe"}).options == {"recipe": "adamw lr=0.0003 clip_norm=1"}
    path.write_text('recipe = { optimizer = "adam", betas = [0.9, 0.95] }', encoding="utf-8")
    assert read(path, {"recipe"}).options == {"recipe": "adam lr=0.1 betas=0.9/0.95"}
    path.write_text('recipe = "sgd lr=0.5"', encoding="utf-8")
    assert read(path, {"recipe"}).options == {"recipe": "sgd lr=0.5"}


def test_folders_of_rules_are_meant_from_the_file(tmp_path):
    path = tmp_path / "gradlint.toml"
    path.write_text('rules = ["mine"]', encoding="utf-8")
    assert read(path, {"rules"}).options == {"rules": [str(tmp_path / "mine")]}


def test_an_unreadable_file_is_an_error(tmp_path):
    path = tmp_path / "gradlint.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"gradlint\.toml"):
        read(path, set())
