"""Files that once ended in a traceback, a crash or a hang: each must end in a report or in a sentence."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

import gradlint
from gradlint.errors import GradlintError

CORPUS = sorted((Path(__file__).resolve().parent / "corpus").glob("*.onnx"))


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_a_file_that_once_broke_gradlint_ends_in_a_report_or_in_a_sentence(path):
    report = None
    with suppress(GradlintError):
        report = gradlint.check(str(path), probe=False)
    assert report is None or (report.coverage.nodes > 0 and report.verdict in set(gradlint.Verdict))


def test_the_corpus_is_there():
    assert len(CORPUS) >= 10
    assert sum(path.stat().st_size for path in CORPUS) < 300_000
