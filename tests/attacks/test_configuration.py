"""Configuration that nobody named: only the project's own, only of the user, and what it hides is said."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest

from gradlint.config import find

ROOT = Path(__file__).resolve().parents[2]
BROKEN = ROOT / "sample_models" / "tanh_gain_broken.onnx"
NAMES = ["gradlint.toml", ".gradlint.toml", "pyproject.toml"]


def write(folder, text="seeds = 1", name="gradlint.toml"):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"[tool.gradlint]\n{text}" if name == "pyproject.toml" else text)
    return path


@pytest.fixture
def model(tmp_path):
    """The name of a model that fails."""
    shutil.copy(BROKEN, tmp_path / "broken.onnx")
    return "broken.onnx"


@pytest.fixture
def remarks():
    return []


# where it is looked for -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mark", ["folder", "file", "link to nothing"])
def test_the_search_ends_at_the_root_of_a_repository(tmp_path, remarks, name, mark):
    """A worktree and a submodule have a file."""
    outer = write(tmp_path, name=name)
    repository = tmp_path / "a" / "b"
    repository.mkdir(parents=True)
    assert find(repository, remarks.append) == outer
    git = repository / ".git"
    if mark == "folder":
        git.mkdir()
    elif mark == "file":
        git.write_text("gitdir: elsewhere")
    else:
        git.symlink_to("nowhere")
    (repository / "c").mkdir()
    assert find(repository / "c", remarks.append) is None
    assert find(tmp_path / "a", remarks.append) == outer
    assert find(repository / "c", remarks.append) != write(repository, name=name).parent
    assert find(repository / "c", remarks.append) == repository / name
    assert not remarks


@pytest.mark.parametrize("spelled", ["{}", "{}/", "{}/../home", "link"])
def test_the_search_ends_at_the_home_folder(tmp_path, monkeypatch, remarks, spelled):
    write(tmp_path)
    home = tmp_path / "home"
    (home / "a").mkdir(parents=True)
    (tmp_path / "link").symlink_to("home")
    monkeypatch.setenv("HOME", str(tmp_path / "link") if spelled == "link" else spelled.format(home))
    assert find(home / "a", remarks.append) is None
    own = write(home)
    assert find(home / "a", remarks.append) == own
    assert not remarks


def test_a_model_brings_no_configuration(run, tmp_path, model):
    """The one beside a model that is linted from elsewhere is not looked at."""
    write(tmp_path / "theirs", "exit-zero = true\nfail-on = 'never'")
    shutil.move(model, "theirs")
    code, _, err = run(f"theirs/{model}", "--no-probe")
    assert (code, err) == (1, "")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["pipe", "folder", "link to nothing", "link to itself", "device"])
def test_what_is_no_file_is_no_configuration(tmp_path, remarks, name, kind):
    path = tmp_path / "a" / name
    path.parent.mkdir()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to({"link to nothing": "nowhere", "link to itself": name, "device": "/dev/zero"}[kind])
    outer = write(tmp_path)
    assert find(tmp_path / "a", remarks.append) == outer


# whose it is ------------------------------------------------------------------------------------------------------------


def give_away(monkeypatch, *paths, owner=4711):
    """Let paths look as if another user owned them."""
    kept, given = Path.lstat, set(map(str, paths))

    def lstat(path):
        found = list(kept(path))
        if str(path) in given:
            found[stat.ST_UID] = owner
        return os.stat_result(found)

    monkeypatch.setattr(Path, "lstat", lstat)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("what", ["the file", "its folder"])
def test_what_another_user_owns_is_left_out_and_said(tmp_path, monkeypatch, remarks, name, what):
    outer = write(tmp_path, name=".gradlint.toml")
    path = write(tmp_path / "a", name=name)
    give_away(monkeypatch, path if what == "the file" else path.parent)
    assert find(tmp_path / "a", remarks.append) == outer
    (said,) = remarks
    assert said.startswith(f"{path} is left out: {path if what == 'the file' else path.parent} belongs to another user")
    assert said.endswith(f"--config {path} takes it")


@pytest.mark.parametrize("place", ["file", "folder"])
def test_a_link_to_what_another_user_owns_is_left_out(tmp_path, monkeypatch, remarks, place):
    theirs = write(tmp_path / "theirs", "exit-zero = true", "any.toml")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "gradlint.toml").symlink_to(theirs)
    give_away(monkeypatch, theirs if place == "file" else theirs.parent)
    assert find(tmp_path / "a", remarks.append) is None
    assert "belongs to another user" in remarks[0]


@pytest.mark.parametrize(
    "case",
    [
        (1000, None, 0, True),
        (1000, None, 1000, True),
        (1000, None, 1001, False),
        (1000, "1001", 1001, False),  # anybody can set this variable
        (0, "1001", 1001, True),
        (0, "1001", 1002, False),
        (0, None, 1001, False),
        (0, "", 1001, False),
        (0, "x", 1001, False),
        (0, "-1", 1001, False),
    ],
)
def test_root_and_the_user_behind_sudo_are_trusted(tmp_path, monkeypatch, case):
    user, sudo, owner, taken = case
    remarks = []
    path = write(tmp_path)
    give_away(monkeypatch, path, tmp_path, owner=owner)
    monkeypatch.setattr(os, "getuid", lambda: user)
    monkeypatch.delenv("SUDO_UID", raising=False)
    if sudo is not None:
        monkeypatch.setenv("SUDO_UID", sudo)
    assert find(tmp_path, remarks.append) == (path if taken else None)
    assert len(remarks) == (not taken)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("what", ["the file", "its folder", "its folder, sticky"])
def test_what_everybody_can_write_is_left_out_and_said(run, tmp_path, model, name, what):
    path = write(tmp_path, "exit-zero = true", name)
    place = path if what == "the file" else tmp_path
    place.chmod(stat.S_IMODE(place.stat().st_mode) | stat.S_IWOTH | (stat.S_ISVTX if "sticky" in what else 0))
    code, _, err = run(model, "--no-probe")
    assert code == 1
    assert f"{path} is left out: everybody can write {place}; --config {path} takes it" in err
    assert run(model, "--no-probe", "--config", str(path))[0] == 0
    assert run(model, "--no-probe", "--isolated")[2] == ""


def test_a_pyproject_of_others_without_a_table_is_no_matter(tmp_path, remarks):
    for text in ("[tool.other]\na = 1", "]broken["):
        path = tmp_path / "a" / "pyproject.toml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o666)
        assert find(path.parent, remarks.append) is None
    assert not remarks


# what it hides ----------------------------------------------------------------------------------------------------------

HIDING = {
    "exit-zero": ("exit-zero = true", 0),
    "fail-on": ('fail-on = "never"', 0),
    "probe": ("probe = false", 1),
    "select": ('select = ["GL9"]', None),
    "ignore": ('ignore = ["GL"]', None),
    "memory-limit": ("memory-limit = 1000", 1),
    "time-limit": ("time-limit = 1e6", 1),
    "lenient": ("lenient = true", 1),
}


@pytest.mark.parametrize("option", HIDING)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("more", [[], ["-q"], ["--output-format", "json"]])
def test_what_a_found_file_can_hide_is_said_and_isolated_checks_without(run, model, option, name, more):
    text, expected = HIDING[option]
    path = write(Path.cwd(), text, name)
    code, _, err = run(model, "--no-probe", *more)
    if option == "probe":  # what is typed is not said again
        assert err == ""
        return
    assert f"{path} sets {option}; --isolated checks without it" in err
    assert expected is None or code == expected
    assert ("1 of 1 models fail" in err) == (expected == 0)
    assert run(model, "--no-probe", *more, "--isolated")[::2] == (1, "")


def test_no_probe_of_a_found_file_is_said(run, tmp_path, model):
    path = write(tmp_path, "probe = false")
    assert f"{path} sets probe; --isolated" in run(model)[2]


@pytest.mark.parametrize("name", ["gradlint.toml", "named.toml"])
def test_a_file_that_was_named_is_not_said(run, tmp_path, model, name):
    write(tmp_path, "exit-zero = true\nignore = ['GL1']", name)
    assert run(model, "--no-probe", "--config", name)[::2] == (0, "")


def test_the_command_line_has_the_last_word(run, tmp_path, model):
    write(tmp_path, 'fail-on = "never"\nignore = ["GL"]')
    code, _, err = run(model, "--no-probe", "--fail-on", "error", "--ignore", "GL9")
    assert (code, err) == (1, "")


def test_harmless_settings_are_not_said(run, tmp_path, model):
    write(tmp_path, 'seeds = 2\nexit-zero = false\nfail-on = "note"\ntime-limit = 60\nignore = []\noutput-format = "concise"')
    assert run(model, "--no-probe")[::2] == (1, "")


@pytest.mark.parametrize("key", ["in-process", "config", "isolated", "debug", "output-file", "train-mode", "rule", "help", ""])
def test_what_no_file_may_set(run, tmp_path, model, key):
    """The limits of reading are not for a file to lift, nor where the report goes."""
    write(tmp_path, f'"{key}" = true')
    code, out, err = run(model, "--no-probe")
    assert (code, out) == (2, "")
    assert f"unknown key {key!r}" in err


# -o ---------------------------------------------------------------------------------------------------------------------


def kept(run, tmp_path, *args, output):
    before = (tmp_path / output).read_bytes()
    code, out, err = run(*args, "-o", output, "--no-probe")
    assert (code, out) == (2, "")
    assert (tmp_path / output).read_bytes() == before
    assert f"-o {Path(output)}: this" in err


@pytest.mark.parametrize("output", ["broken.onnx", "./broken.onnx", "sub/../broken.onnx", "soft", "hard", "BINARY"])
@pytest.mark.parametrize("target", ["broken.onnx", ".", "*.onnx", "soft.onnx"])
def test_a_report_overwrites_no_model(run, tmp_path, model, target, output):
    (tmp_path / "sub").mkdir()
    (tmp_path / "soft").symlink_to(model)
    (tmp_path / "soft.onnx").symlink_to(model)
    (tmp_path / "hard").hardlink_to(model)
    (tmp_path / "BINARY").write_bytes(b"\0" * 8)
    kept(run, tmp_path, target, output=output)


def test_a_report_overwrites_no_configuration_no_inputs_and_no_code(run, tmp_path, model):
    write(tmp_path, name="named.toml")
    write(tmp_path)
    (tmp_path / "x.npz").write_text("text, to get past the test for binary files")
    (tmp_path / "net.py").write_text("import torch\nnet = torch.nn.Linear(2, 2)")
    kept(run, tmp_path, model, output="gradlint.toml")
    kept(run, tmp_path, model, "--config", "named.toml", output="named.toml")
    kept(run, tmp_path, model, "--input", "x=@x.npz", output="x.npz")
    kept(run, tmp_path, "net.py:net", output="net.py")
    shutil.copytree(ROOT / "tests" / "models" / "example_pack", tmp_path / "pack")
    rule = next((tmp_path / "pack").glob("*.py")).name
    kept(run, tmp_path, model, "--rules", "pack", output=f"pack/{rule}")


@pytest.mark.parametrize(
    "content", [b"\x80\x81", b"text\0", "latin \xe9".encode("latin-1"), b"\x93NUMPY\x01\x00", b"PK\x03\x04\x14\x00"]
)
def test_a_report_overwrites_nothing_that_is_no_text(run, tmp_path, model, content):
    (tmp_path / "w.bin").write_bytes(content)
    kept(run, tmp_path, model, output="w.bin")


@pytest.mark.parametrize("content", [None, b"", b"an old report \xe2\x9c\x93\n", "é".encode() * 40_000])
def test_a_report_replaces_an_old_one(run, tmp_path, model, content):
    """Also one in which a character lies across the end of what is looked at."""
    if content is not None:
        (tmp_path / "report.txt").write_bytes(b"x" + content if len(content) > 100 else content)
    assert run(model, "-o", "report.txt", "--no-probe") == (1, "", "")
    assert "EXPLODES" in (tmp_path / "report.txt").read_text(encoding="utf-8")
