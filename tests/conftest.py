"""Options and fixtures that all tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest

from gradlint import cli

HERE = Path(__file__).parent
hypothesis.settings.register_profile("gradlint", deadline=None)  # no test depends on the speed of the machine
hypothesis.settings.load_profile("gradlint")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-snapshots", action="store_true", help="write tests/snapshots anew instead of comparing")


@pytest.fixture
def check_snapshot(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compare a text with tests/snapshots/NAME, or write it there under --update-snapshots."""

    def compare(text: str, name: str) -> None:
        path = HERE / "snapshots" / name
        if request.config.getoption("--update-snapshots"):
            path.write_text(text, encoding="utf-8")
        assert path.is_file(), f"{path} is missing; run pytest --update-snapshots and look at what it wrote"
        assert text == path.read_text(encoding="utf-8"), f"{name} changed; if that is meant, run pytest --update-snapshots"

    return compare


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """Run the command line in an empty folder; returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NO_COLOR", raising=False)

    def call(*args: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as raised:
            cli.main(list(args))
        captured = capsys.readouterr()
        return raised.value.code, captured.out, captured.err

    return call
