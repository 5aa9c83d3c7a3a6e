"""Files that once ended in a traceback, a crash or a hang: each must end in a report or in a sentence."""

from __future__ import annotations

import traceback
from contextlib import suppress
from pathlib import Path

import pytest

import gradlint
from gradlint.errors import ForwardError, GradlintError, TargetError

FOLDER = Path(__file__).resolve().parents[2] / "corpus"
CORPUS = sorted(FOLDER.glob("*.onnx"))


@pytest.mark.parametrize("probe", [False, True], ids=["static", "probe"])
@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_a_file_that_once_broke_gradlint_ends_in_a_report_or_in_a_sentence(path, probe):
    report = None
    with suppress(GradlintError):
        report = gradlint.check(str(path), probe=probe, seeds=1, lenient=True)
    assert report is None or (report.coverage.nodes > 0 and report.verdict in set(gradlint.Verdict))


def test_the_corpus_is_there():
    assert len(CORPUS) >= 20
    assert sum(path.stat().st_size for path in CORPUS) < 300_000


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("constant-of-an-unknown-attribute", TargetError, "Constant at Constant:c cannot be read: .*'axis'"),
        ("if-without-else", ForwardError, "If at If:y lacks the attribute 'else_branch'"),
        ("loop-without-body", ForwardError, "Loop at Loop:y lacks the attribute 'body'"),
        ("scan-without-body", ForwardError, "Scan at Scan:y lacks the attribute 'body'"),
        ("loop-body-is-a-number", ForwardError, "Loop at Loop:y fails"),
        ("loop-body-of-too-few-outputs", ForwardError, "reads 's', which nothing before it makes"),
        ("loop-of-too-many-outputs", ForwardError, "Loop at Loop:a has 1 outputs, and output 3 is read"),
        ("output-that-is-not-made", ForwardError, "Relu at Relu:a has 1 outputs, and output 2 is read"),
        ("unsqueeze-without-input", ForwardError, "Unsqueeze at Unsqueeze:u fails"),
    ],
)
def test_an_operator_that_cannot_work_is_named_with_the_reason(name, kind, message):
    with pytest.raises(kind, match=message) as caught:
        gradlint.check(str(FOLDER / f"{name}.onnx"), seeds=1, lenient=True)
    assert caught.value.hint


def test_where_an_operator_failed_in_the_child_process_is_kept_for_debug():
    with pytest.raises(ForwardError) as caught:
        gradlint.check(str(FOLDER / "unsqueeze-without-input.onnx"), seeds=1, lenient=True)
    assert "in _unsqueeze" in "".join(traceback.format_exception(caught.value))


def test_a_node_that_the_standard_rejects_is_no_clean_file_and_a_note_only_on_demand():
    path = str(FOLDER / "unsqueeze-without-input.onnx")
    with pytest.raises(TargetError, match=r"not valid ONNX: Unsqueeze .* leaves out its input") as caught:
        gradlint.check(path, probe=False)
    assert "--lenient" in (caught.value.hint or "")
    assert any("leaves out its input" in note for note in gradlint.check(path, probe=False, lenient=True).result.notes)
