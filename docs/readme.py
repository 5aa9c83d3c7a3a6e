"""Fills in the output that the README shows: `python docs/readme.py` writes, `--check` exits 1 when it is stale.

A block that follows `<!-- output -->` and starts with `$ gradlint ...` is run again. Digits and bars are not compared by
--check, since the last decimal of a measurement may differ between processors.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
_BLOCK = re.compile(r"(<!-- output -->\n```console\n\$ gradlint (?P<arguments>[^\n]*)\n)(?P<output>.*?)(```\n)", re.DOTALL)


def _run(arguments: str) -> str:
    command = [sys.executable, "-m", "gradlint", *arguments.split(), "--no-timings"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603 - our own README
    if done.returncode == 2:
        raise SystemExit(f"gradlint {arguments}: {done.stderr}")
    return done.stdout.rstrip() + "\n"


def _fresh(text: str) -> str:
    return _BLOCK.sub(lambda match: match[1] + _run(match["arguments"]) + match[4], text)


def _wording(text: str) -> str:
    return re.sub(r"[ \d.+-]*[\d█▉▊▋▌▍▎▏]+[ \d.+-]*", "#", text)


if __name__ == "__main__":
    old = README.read_text(encoding="utf-8")
    new = _fresh(old)
    if "--check" not in sys.argv:
        README.write_text(new, encoding="utf-8")
    elif _wording(old) != _wording(new):
        sys.exit("README.md shows output that gradlint no longer prints: run make docs")
