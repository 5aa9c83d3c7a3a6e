"""How long gradlint takes as a whole process, against what a user would run instead.

    python benchmarks/start_up.py [--model FILE] [--repeats N] [--quick]

Each row is a pair of commands that take turns, so that a drift of the machine's speed hits both. It gives CPU seconds (user and
system) of either command, medians over the repeats, and the median of the ratios of neighbors. A rival that is not installed is
left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

CHECKER = "import onnx, sys; f = sys.argv[1]; onnx.load(f); onnx.checker.check_model(f, full_check=True)"
CLICK = ("-c", "import click")
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}  # as pip compiles it


def detector() -> Path:
    """Return the ONNX file of the package nudenet, a detector of 12 MB. Raises SystemExit where it is not installed."""
    found = importlib.util.find_spec("nudenet")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("nudenet is not installed: make test installs it, or give --model FILE")
    return Path(found.submodule_search_locations[0]) / "320n.onnx"


def seconds(command: Sequence[str]) -> float:
    """Return the CPU seconds that a command takes, its children included. Raises SystemExit where it cannot be run."""
    devnull = os.open(os.devnull, os.O_RDWR)
    files = [(os.POSIX_SPAWN_DUP2, devnull, stream) for stream in (0, 1, 2)]
    process = os.posix_spawnp(command[0], list(command), ENVIRONMENT, file_actions=files)
    _, status, used = os.wait4(process, 0)
    os.close(devnull)
    if os.waitstatus_to_exitcode(status) not in {0, 1}:
        raise SystemExit(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}")
    return used.ru_utime + used.ru_stime


def paired(ours: Sequence[str], theirs: Sequence[str], repeats: int) -> tuple[float, float, float]:
    """Return the median seconds of both commands and the median ratio, over runs in turn after one warm-up of each."""
    seconds(ours), seconds(theirs)
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(repeats)]
    return median(a for a, _ in pairs), median(b for _, b in pairs), median(a / b for a, b in pairs)


def rows(model: Path) -> Iterator[tuple[str, Sequence[str], str, Sequence[str], float]]:
    """Yield what is run, what against, and the ratio to reach."""
    gradlint = (sys.executable, "-m", "gradlint")
    python = (sys.executable,)
    for argument in ("--version", "--help", "rule"):
        yield f"gradlint {argument}", (*gradlint, argument), "import click", (*python, *CLICK), 2.0
    static = (*gradlint, "--no-probe", str(model))
    yield "gradlint --no-probe", static, "onnx.load + full checker", (*python, "-c", CHECKER, str(model)), 1.0
    doctor = shutil.which("onnx-doctor")
    if doctor is not None:
        yield "gradlint --no-probe", static, "onnx-doctor", (doctor, "check", str(model)), 0.6


def main() -> None:
    """Print a row as soon as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="an ONNX file, by default the 12 MB detector of the package nudenet")
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--quick", action="store_true", help="three repeats")
    options = parser.parse_args()
    model = options.model or detector()
    print(f"{'ours':22s} {'CPU s':>6s}   {'theirs':26s} {'CPU s':>6s}   ratio   reach", flush=True)
    for ours, command, theirs, other, reach in rows(model):
        own, rival, ratio = paired(command, other, 3 if options.quick else options.repeats)
        print(f"{ours:22s} {own:6.3f}   {theirs:26s} {rival:6.3f}   {ratio:5.2f}   {reach:5.1f}", flush=True)


if __name__ == "__main__":
    main()
