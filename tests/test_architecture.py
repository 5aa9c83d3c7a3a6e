"""docs/architecture.md names files, classes and functions that are there, and every room of the package."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`((?:gradlint|rules)/[\w./]*)(?::(\w+))?`", PAGE)


def _defined(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}


def test_every_file_that_the_page_names_exists_and_defines_what_it_says():
    assert len(NAMED) > 30
    for path, name in NAMED:
        assert (ROOT / path).exists(), path
        assert not name or name in _defined(ROOT / path), f"{path}:{name}"


def test_every_room_of_the_package_has_a_place_on_the_page():
    rooms = {path for path in (ROOT / "gradlint").iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    missing = {path.name for path in rooms if path.name.strip("/") not in PAGE and not path.name.startswith("__")}
    assert not missing


def test_the_trip_of_one_weight_has_ten_steps_each_with_a_place():
    trip = PAGE.partition("## The trip of one weight")[2]
    steps = re.split(r"^\d+\. ", trip, flags=re.MULTILINE)[1:]
    assert len(steps) == 10
    assert all(re.search(r"`[\w/]+\.py:\w+`", step) for step in steps)


def test_every_wing_has_a_readme_whose_files_exist():
    wings = [folder for folder in (ROOT / "gradlint").rglob("*") if (folder / "__init__.py").is_file()]
    for wing in wings:
        if len(list(wing.glob("*.py"))) < 6:
            continue
        readme = wing / "README.md"
        assert readme.is_file(), wing
        for name in re.findall(r"`([\w/]+\.py)`", readme.read_text(encoding="utf-8")):
            assert any((base / name).is_file() for base in (wing, wing.parent, ROOT, ROOT / "gradlint")), f"{wing.name}: {name}"
