"""Options and fixtures that all tests share."""

from __future__ import annotations

import random
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest

from gradlint import cli

HERE = Path(__file__).parent
SEED = 0
_DRAWN = pytest.StashKey[dict[np.random.Generator, Any]]()  # generators of test modules, with their states after the import
# No test depends on the speed of the machine, and a run of the suite says the same as the last one. `make sweep` explores.
hypothesis.settings.register_profile("gradlint", deadline=None, derandomize=True)
hypothesis.settings.register_profile("explore", deadline=None)
hypothesis.settings.load_profile("gradlint")


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - what a test without a generator of its own draws from
    if torch := sys.modules.get("torch"):  # not imported for the sake of tests that do without
        torch.manual_seed(seed)


@pytest.hookimpl(tryfirst=True)
def pytest_make_collect_report(collector: pytest.Collector) -> None:
    """What is drawn while a module is imported does not depend on which were imported before it."""
    _seed(SEED)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[object]) -> None:
    """A fixture draws its own numbers, whichever test asks for it first."""
    _seed(zlib.crc32(fixturedef.argname.encode()))


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> None:
    """A test draws the same numbers in any order of tests. pytest-randomly would seed with another number in every run."""
    _seed(SEED)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    config.stash[_DRAWN] = {
        generator: generator.bit_generator.state
        for module in {item.module for item in items if isinstance(item, pytest.Function)}
        for generator in vars(module).values()
        if isinstance(generator, np.random.Generator)
    }


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test draws the same numbers from a generator that its module's tests share."""
    for generator, state in item.config.stash[_DRAWN].items():
        generator.bit_generator.state = state


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
