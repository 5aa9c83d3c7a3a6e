"""A notebook shows a report as text and as HTML, and nothing else."""

from __future__ import annotations

import pytest

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")

CELLS = (
    "import gradlint\nfrom torch import nn\nreport = gradlint.check(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))",
    "report",
    "print(report, end='')",
    "print(report.to('full', color=True), end='')",
    "print(gradlint.__version__, end='')",
)


@pytest.mark.filterwarnings("ignore")  # of the kernel's own packages
def test_a_report_in_a_notebook_is_one_output():
    cells = [nbformat.v4.new_code_cell(source) for source in CELLS]
    nbclient.NotebookClient(nbformat.v4.new_notebook(cells=cells), timeout=120, kernel_name="python3").execute()
    check, shown, printed, colored, version = (cell.outputs for cell in cells)
    assert check == []
    (result,) = shown
    assert result.output_type == "execute_result"
    assert result.data["text/html"].startswith("<pre>")
    assert "HEALTHY" in result.data["text/html"]
    assert [output.output_type for output in printed] == ["stream"]
    assert printed[0].text.count("HEALTHY") == 1
    assert [output.output_type for output in colored] == ["stream"]
    assert "\x1b[1;32mHEALTHY" in colored[0].text
    assert version[0].text.count(".") == 2
