"""Fills in the output that the README shows: `python docs/readme.py` writes, `--check` exits 1 when it is stale.

A block that follows `<!-- output -->` and starts with `$ gradlint ...` is run again. --check wants the same text line by line,
whole numbers as well, and allows the numbers with decimals, which are measured, what rounding does to them on another processor:
one in the last place, and where the report gives a spread (+-0.3), which is large for chaotic networks, twice that spread. Which
layers are folded away follows from those numbers: the layers that both show are compared, and how many there are.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
DECADES = 0.1  # a number with one decimal is in decades
FACTOR = 0.03  # one with more is the factor or the decades of one layer
SCORE = 2  # points of 100
BAR_CELLS, BAR_SHARE = 2, 0.25  # a bar may be longer by these cells and this share of its length
_BLOCK = re.compile(r"(<!-- output -->\n```console\n\$ gradlint (?P<arguments>[^\n]*)\n)(?P<output>.*?)(```\n)", re.DOTALL)
_MEASURED = re.compile(r"(?:(?P<score>(?<=score )\d+)|[+-]?\d+\.(?P<decimals>\d+))")
_SPREAD = re.compile(r"\(\+-(\d+\.\d+)\)")
_TABLE = re.compile(r"^ +layer +(?:predicted )?gradient, decades.*\n(?P<rows>(?: +\S.*\n)+)", re.MULTILINE)
_GAP = re.compile(r" +\.\.\. (\d+) more, ")
_BAR = "█▉▊▋▌▍▎▏▐░"
_BESIDE_AXIS = re.compile(rf"[{_BAR} ]*│[{_BAR} ]*")


def _run(arguments: str) -> str:
    command = [sys.executable, "-m", "gradlint", *arguments.split(), "--no-timings"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603 - our own README
    if done.returncode == 2:
        raise SystemExit(f"gradlint {arguments}: {done.stderr}")
    return done.stdout.rstrip() + "\n"


def _fresh(text: str) -> str:
    return _BLOCK.sub(lambda match: match[1] + _run(match["arguments"]) + match[4], text)


def agree(shown: str, printed: str) -> bool:
    """Whether the README shows what gradlint prints now, but for what rounding does to measured numbers."""
    if _BLOCK.sub(r"\1", shown) != _BLOCK.sub(r"\1", printed):
        return False
    outputs = ([match["output"] for match in _BLOCK.finditer(text)] for text in (shown, printed))
    return all(_same_output(old, new) for old, new in zip(*outputs, strict=True))


def _same_output(old: str, new: str) -> bool:
    (text, rows, layers), (text_now, rows_now, layers_now) = _table(old), _table(new)
    spread = max((float(figure) for figure in _SPREAD.findall(old)), default=0.0)
    ends, ends_now = ((*shown,)[:: max(len(shown) - 1, 1)] for shown in (rows, rows_now))  # the first and the last
    if (ends, layers) != (ends_now, layers_now):
        return False
    shared = [(line, rows_now[label]) for label, line in rows.items() if label in rows_now]
    return all(_same(a, b, spread) for a, b in [(text, text_now), *shared])


def _table(output: str) -> tuple[str, dict[str, str], int]:
    """The output without its table of layers, the lines of those that are shown, and how many there are with the folded ones."""
    match = _TABLE.search(output)
    if not match:
        return output, {}, 0
    lines = match["rows"].splitlines()
    gaps = [int(gap[1]) for line in lines if (gap := _GAP.match(line))]
    rows = {line.split()[0]: line for line in lines if not _GAP.match(line)}
    return output.replace(match["rows"], ""), rows, len(rows) + sum(gaps)


def _same(old: str, new: str, spread: float) -> bool:
    if _wording(old) != _wording(new):
        return False
    numbers = zip(_MEASURED.finditer(old), _MEASURED.finditer(new), strict=True)
    if any(abs(float(a[0]) - float(b[0])) > _allowed(a, spread) + 1e-9 for a, b in numbers):
        return False
    bars = ([sum(character in _BAR for character in line) for line in text.splitlines()] for text in (old, new))
    return all(abs(a - b) <= BAR_CELLS + BAR_SHARE * max(a, b) for a, b in zip(*bars, strict=True))


def _wording(text: str) -> str:
    """The text with a # for each measured number, and one for each of its decimals."""
    return re.sub(
        rf" *{_MEASURED.pattern} *", lambda number: "#" * (1 + len(number["decimals"] or "")), _BESIDE_AXIS.sub("│", text)
    )


def _allowed(number: re.Match[str], spread: float) -> float:
    if number["score"]:
        return SCORE
    return DECADES + 2.0 * spread if len(number["decimals"]) == 1 else FACTOR


def main(arguments: Sequence[str]) -> int:
    """Write the README and return 0, or with `--check` return 1 where it is stale."""
    old = README.read_text(encoding="utf-8")
    new = _fresh(old)
    if "--check" not in arguments:
        README.write_text(new, encoding="utf-8")
    elif not agree(old, new):
        print("README.md shows output that gradlint no longer prints: run make docs", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
