"""The pages of docs/rules and the output in the README are what their generators write."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from gradlint.catalog import load_rules

ROOT = Path(__file__).resolve().parent.parent


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def build() -> ModuleType:
    return load("build")


@pytest.fixture
def readme() -> ModuleType:
    return load("readme")


def test_pages_are_up_to_date(build: ModuleType):
    assert build.stale(build.build()) == []


def test_every_rule_has_a_page_and_a_row_in_the_index(build: ModuleType):
    index = (ROOT / "docs" / "rules" / "README.md").read_text(encoding="utf-8")
    for rule in load_rules():
        name = f"{rule.code}-{rule.name}.md"
        assert f"[{rule.code}]({name})" in index
        text = (ROOT / "docs" / "rules" / name).read_text(encoding="utf-8")
        assert text.startswith(f"# {rule.code} {rule.name}\n")
        assert text.count("\n## ") == 4
        assert text.partition("## References")[2].count("\n- ") >= 1


def test_check_says_what_is_stale_and_writing_mends_it(
    build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(build, "OUT", tmp_path / "rules")
    assert build.main(["--check"]) == 1
    assert "stale: docs/rules/README.md" in capsys.readouterr().err
    assert build.main([]) == 0
    (tmp_path / "rules" / "GL000-gone.md").write_text("of a rule that is gone", encoding="utf-8")
    assert build.main(["--check"]) == 1
    assert build.main([]) == 0
    assert build.main(["--check"]) == 0
    assert not (tmp_path / "rules" / "GL000-gone.md").exists()


PAGE = """# name

Made of 3 parts, 1.0 each.

<!-- output -->
```console
$ gradlint models.py:broken
  EXPLODES   score 40/100
  gradient grows 10^5.7 (+-0.3) over 64 layers, x1.23 a layer

  layer                       gradient, decades                predicted
  x                              5.6 │███████████████████████        5.8
  layers.0      models.py:60     5.4 │██████████████████████         5.7
  ... 62 more, +0.09 on average ...  │░░░░░░░░░░░
  layers.63     models.py:60    -0.2 │                              -0.2

  All 130 operators understood and probed.
```

<!-- output -->
```console
$ gradlint healthy.onnx
  HEALTHY   score 100/100   gradient stays within 10^0.9 over 65 layers

  layer                    gradient, decades                   predicted
  x                          -1.2                   ▐███████│       -2.0
  layers.63   models.py:69   -0.2                         ▐█│       -0.2
```
"""

ROUNDED = {
    "the last place": ("10^0.9", "10^1.0"),
    "its sign": ("-0.2 │", " 0.1 │"),
    "of a factor": ("x1.23", "x1.26"),
    "a figure within twice its spread": ("10^5.7", "10^6.3"),
    "a number beside one with a spread": ("5.4 │██████████████████████  ", "6.0 │████████████████████████"),
    "a bar": ("▐███████│", " ███████│"),
    "the score": ("score 40/100", "score 42/100"),
    "where rows are folded": (
        "  ... 62 more, +0.09 on average ...  │░░░░░░░░░░░\n",
        """  ... 30 more, +0.08 each ...        │░░░░░░░░░░░
  layers.31     models.py:60     2.1 │█████████                      2.2
  ... 31 more, +0.07 each ...        │░░░░░
""",
    ),
}
STALE = {
    "a number": ("10^0.9", "10^1.1"),
    "a factor": ("x1.23", "x1.27"),
    "a figure beyond its spread": ("10^5.7", "10^6.5"),
    "the number of a row": ("-1.2 ", "-1.4 "),
    "the prediction of a row": ("-2.0\n", "-2.2\n"),
    "the length of a bar": ("▐███████│", "     ▐██│"),
    "the score": ("score 40/100", "score 43/100"),
    "a count": ("All 130", "All 131"),
    "a line of the source": ("models.py:69", "models.py:70"),
    "a word": ("understood and probed", "understood"),
    "a blank": ("  All 130", "   All 130"),
    "a column": ("decades                predicted\n", "decades\n"),
    "the first row": ("  x                              ", "  y                              "),
    "the number of rows": ("... 62 more", "... 63 more"),
    "a row": ("  layers.63   models.py:69   -0.2                         ▐█│       -0.2\n", ""),
    "a further line": ("probed.\n", "probed.\n  1 model.\n"),
    "the decimals": ("10^0.9", "10^0.90"),
}


def _changed(readme: ModuleType, monkeypatch: pytest.MonkeyPatch, path: Path, change: tuple[str, str]) -> int:
    """What --check returns for PAGE where gradlint now prints `change`."""
    old, new = change
    assert PAGE.count(old) == 1
    path.write_text(PAGE, encoding="utf-8")
    printed = [match["output"].replace(old, new) for match in readme._BLOCK.finditer(PAGE)]
    monkeypatch.setattr(readme, "README", path)
    monkeypatch.setattr(readme, "_run", lambda arguments: printed["healthy" in arguments])
    return readme.main(["--check"])


@pytest.mark.parametrize("what", ROUNDED)
def test_output_in_the_readme_may_differ_by_what_rounding_does(readme, monkeypatch, tmp_path, what):
    assert _changed(readme, monkeypatch, tmp_path / "README.md", ROUNDED[what]) == 0


@pytest.mark.parametrize("what", STALE)
def test_output_in_the_readme_is_stale_when_anything_else_differs(readme, monkeypatch, tmp_path, what, capsys):
    assert _changed(readme, monkeypatch, tmp_path / "README.md", STALE[what]) == 1
    assert "run make docs" in capsys.readouterr().err
    assert readme.main([]) == 0
    assert readme.main(["--check"]) == 0
    assert STALE[what][1] in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_the_output_that_the_readme_shows_is_understood_by_its_check(readme):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    outputs = [match["output"] for match in readme._BLOCK.finditer(text)]
    assert len(outputs) == text.count("<!-- output -->") > 2
    assert readme.agree(text, text)
    assert [bool(readme._table(output)[1]) for output in outputs] == ["gradient, decades" in output for output in outputs]
    assert not readme.agree(text, text.replace("# gradlint", "# Gradlint", 1))
