"""Sizes of files, functions and folders: over them, a room is missing."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("gradlint", "rules", "tests", "benchmarks", "docs", "sample_models")
FILES = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
LINES, FUNCTION, FOLDER = 400, 60, 25


def test_no_file_has_more_than_400_lines():
    assert len(FILES) > 300
    lines = {path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {name: count for name, count in lines.items() if count > LINES} == {}


def test_no_function_has_more_than_60_lines():
    long = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno - node.lineno >= FUNCTION:
                long[f"{path.relative_to(ROOT)}:{node.name}"] = node.end_lineno - node.lineno + 1
    assert long == {}


def test_no_folder_of_the_package_has_more_than_25_files():
    package = ROOT / "gradlint"
    counts = {folder: len(list(folder.glob("*.py"))) for folder in [package, *package.rglob("*")] if folder.is_dir()}
    assert {folder.name: count for folder, count in counts.items() if count > FOLDER} == {}
