"""The columns of the chart: which ones fit the width, and the text to the left and right of the bars."""

from __future__ import annotations

from collections.abc import Sequence

from gradlint.report import printable
from gradlint.report.chart import Gap, Row
from gradlint.report.wording import decimal, short_path

_FEWEST_CELLS, _MOST_CELLS = 12, 40
_LONGEST_LABEL, _LONGEST_LINE = 30, 18
_NUMBER, _PREDICTED, _SIGNAL = 7, 11, 8  # widths of the number columns including the blanks before them


class Table:
    """The columns of a folded chart: label, source line, gradient, bar, predicted gradient, signal.

    A column without values is left out, and so are predictions for less than half of the rows. If `width` is too small for the
    bars, the signal, the predicted gradient and the source line are left out, in this order. `cells` is the width of a bar,
    `before` the width of all columns to the left of it, `head` the line of headings.
    """

    def __init__(self, lines: Sequence[Row | Gap], heading: str, width: int) -> None:
        rows = [line for line in lines if isinstance(line, Row)]
        measured = any(row.backward is not None for row in rows)
        where = min(max(len(_line_of(row)) for row in rows), _LONGEST_LINE)
        optional = {
            "where": where + 2 if where else 0,
            "predicted": _PREDICTED if measured and 2 * sum(row.predicted is not None for row in rows) > len(rows) else 0,
            "signal": _SIGNAL if any(row.forward is not None for row in rows) else 0,
        }
        gaps = [len(str(line)) - optional["where"] - _NUMBER for line in lines if isinstance(line, Gap)]
        longest = min(_LONGEST_LABEL, max(width - _NUMBER - _FEWEST_CELLS - 2, len(heading)))
        self._label = min(max(len(heading), *(len(row.label) for row in rows), *gaps), longest) + 2
        while optional and width - self._label - _NUMBER - sum(optional.values()) < _FEWEST_CELLS:
            optional.popitem()
        self._optional = optional
        self.before = self._label + optional.get("where", 0) + _NUMBER
        self.cells = min(max(width - self._label - _NUMBER - sum(optional.values()), _FEWEST_CELLS), _MOST_CELLS)
        title = "gradient, decades" if measured else "predicted gradient, decades"
        extra = "".join(f"{name:>{optional[name]}}" for name in ("predicted", "signal") if optional.get(name))
        self.head = f"{heading:<{self.before - _NUMBER}}{title:<{_NUMBER + self.cells}}{extra}".rstrip()

    def left(self, line: Row | Gap) -> str:
        """Return the text to the left of the bar. It is longer than `before` if a gap's text leaves no room for a bar."""
        if isinstance(line, Gap):
            return f"{line} ".ljust(self.before)
        width = self._optional.get("where", 0)
        where = f"{_shortened(_line_of(line), width - 2):<{width}}" if width else ""
        return f"{_shortened(line.label, self._label - 2):<{self._label}}{where}{decimal(line.value):>{_NUMBER - 1}} "

    def right(self, line: Row | Gap) -> str:
        """Return the text to the right of the bar."""
        if isinstance(line, Gap):
            return ""
        values = {"predicted": line.predicted, "signal": line.forward}
        return "".join(f"{decimal(value):>{self._optional[name]}}" for name, value in values.items() if self._optional.get(name))


def _line_of(row: Row) -> str:
    return printable(f"{short_path(row.source.file).rpartition('/')[2]}:{row.source.line}") if row.source else ""


def _shortened(name: str, width: int) -> str:
    """Shorten a dotted name to `width` characters. Its end is kept, cut at a dot if that leaves enough of it."""
    if len(name) <= width:
        return name
    tail = name[2 - width :]
    dot = tail.find(".")
    return f"..{tail[dot + 1 :] if 0 <= dot < width // 3 else tail}"
