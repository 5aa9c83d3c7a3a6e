"""Every format that tools read, as it stands: a change of it is a change for them."""

from __future__ import annotations

import pytest

from gradlint import report
from tests.models.report_samples import SAMPLES

ENDINGS = {"json": "json", "github": "txt", "concise": "txt"}


@pytest.mark.parametrize("output_format", sorted(ENDINGS))
@pytest.mark.parametrize("name", ["exploding", "non_finite"])
def test_a_format_for_tools_reads_as_before(name, output_format, check_snapshot):
    text = report.render(output_format, [SAMPLES[name]()], version="0.0.0", timings=False)
    check_snapshot(text, f"{output_format}_{name}.{ENDINGS[output_format]}")


def test_every_format_has_a_snapshot():
    assert set(report.format_names()) == {*ENDINGS, "full"}
