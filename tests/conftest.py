"""Options and fixtures that all tests share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # for the modules of samples that lie beside the tests


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-snapshots", action="store_true", help="write tests/snapshots anew instead of comparing")


@pytest.fixture
def snapshot(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compare a text with tests/snapshots/NAME, or write it there under --update-snapshots."""

    def compare(text: str, name: str) -> None:
        path = HERE / "snapshots" / name
        if request.config.getoption("--update-snapshots"):
            path.write_text(text, encoding="utf-8")
        assert path.is_file(), f"{path} is missing; run pytest --update-snapshots and look at what it wrote"
        assert text == path.read_text(encoding="utf-8"), f"{name} changed; if that is meant, run pytest --update-snapshots"

    return compare
