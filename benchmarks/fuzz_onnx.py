"""Feeds mutated ONNX files to gradlint: every one must end in a report or in a GradlintError, in bounded time and memory.

Seed models cover what files hold (control flow, functions, external and sparse data, every family of dtypes). A case mutates one
of them, by structure (shapes, dtypes, operators, attributes, names, edges, external references) or by bytes. Cases run in worker
processes with limits on time and memory; case N of a seed is always the same file. Prints what was found and keeps those files.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

from fuzz_mutations import make_case
from fuzz_seeds import seed_models

from gradlint.cli import main as gradlint_main
from gradlint.engine import check
from gradlint.errors import GradlintError
from gradlint.options import Options

SECONDS = 20  # for one file; the slowest seed takes 0.1
MEMORY = 2 << 30  # bytes of address space beyond what the imports take
EVERY = 20  # one case in so many also goes through the command line


class OverBudgetError(BaseException):
    """A file took longer than it may; no handler for ordinary errors catches this."""


def _timed_out(*_: object) -> None:
    raise OverBudgetError


def examine(path: Path, *, command_line: bool, probe: bool = False) -> tuple[str, str]:
    """What became of a file: ("report" | "error" | "finding", what)."""
    signal.signal(signal.SIGALRM, _timed_out)
    signal.alarm(SECONDS)
    try:
        check(str(path), Options(probe=probe, seeds=1, limits=None))
        outcome, what = "report", ""
    except GradlintError as error:
        outcome, what = "error", str(error)
        if (cause := _own_fault(error)) is not None:
            outcome, what = "finding", cause
    except BaseException as error:  # noqa: BLE001 - the point of this program
        if probe and isinstance(error, MemoryError):  # the command line says so in a sentence
            return "error", "needs more memory than it may have"
        return "finding", _placed(error)
    finally:
        signal.alarm(0)
    if command_line:
        status, said = _run_command(path, probe=probe)
        wrong = status not in ((2,) if outcome == "error" else (0, 1, 2) if probe else (0, 1))
        if wrong or "internal error" in said or "took longer" in said:
            return "finding", f"exit code {status} after {outcome}: {said[-200:]!r}"
    return outcome, what


def _placed(error: BaseException) -> str:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "gradlint" in frame.filename]
    place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__} at {place}: {str(error)[:80]}"


def _own_fault(error: GradlintError) -> str | None:
    """The error that this one stands for when it says that a name of ours is wrong, which no file can be the reason of."""
    cause = error.__cause__
    return _placed(cause) if isinstance(cause, (NameError, ImportError, AssertionError)) else None


def _run_command(path: Path, *, probe: bool) -> tuple[object, str]:
    """The exit code and what stderr says; with the probe, in a child process."""
    out, said = io.StringIO(), io.StringIO()
    how = ["--seeds", "1", "--time-limit", str(3 * SECONDS), "--memory-limit", str(MEMORY >> 30)] if probe else ["--no-probe"]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(said):
            gradlint_main([*how, str(path)])
    except SystemExit as stop:
        return stop.code or 0, said.getvalue()
    return None, said.getvalue()


def _worker(options: argparse.Namespace) -> None:
    """Run cases start..stop, one line on stdout for each."""
    folder = Path(options.folder)
    seeds = [path.read_bytes() for path in sorted(folder.glob("seed-*"))]
    used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    path = folder / "case.onnx"
    for number in range(options.start, options.stop):
        path.write_bytes(make_case(seeds, number, options.seed))
        print(number, flush=True)
        start = time.perf_counter()
        outcome, what = examine(path, command_line=number % EVERY == 0, probe=options.probe)
        print(f"{number} {outcome} {time.perf_counter() - start:.3f} {what.splitlines()[0] if what else ''}", flush=True)
        peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        print(f"peak {peak}", flush=True)


def _supervise(options: argparse.Namespace, folder: Path) -> tuple[Counter[str], dict[int, str], tuple[float, int], int]:
    """Run all cases in workers; outcomes, findings by case, seconds and number of the slowest case, and the peak in KiB."""
    outcomes: Counter[str] = Counter()
    findings: dict[int, str] = {}
    slowest, peak, at = (0.0, 0), 0, options.start
    while at < options.stop:
        command = [sys.executable, __file__, "--worker", "--folder", str(folder), "--seed", str(options.seed)]
        command += ["--start", str(at), "--stop", str(min(options.stop, at + 500))] + ["--probe"] * options.probe
        limit = 500 * (2.0 if options.probe else 0.5)
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as worker:  # noqa: S603
            try:
                text = worker.communicate(timeout=limit)[0]
                ending = f"the process ended with {worker.returncode}"
            except subprocess.TimeoutExpired:
                worker.kill()
                text, ending = worker.communicate()[0], "hangs"
        lines = [line.split(" ", 3) for line in text.splitlines()]
        done = [line for line in lines if len(line) == 4]
        for number, outcome, seconds, what in done:
            outcomes[outcome] += 1
            slowest = max(slowest, (float(seconds), int(number)))
            if outcome == "finding":
                findings[int(number)] = what
        peak = max([peak, *(int(line[1]) for line in lines if line[0] == "peak")])
        started = [int(line[0]) for line in lines if len(line) == 1]
        at = min(options.stop, at + 500) if not started or len(started) == len(done) else started[-1] + 1
        if len(started) > len(done):
            findings[started[-1]] = ending
            outcomes["finding"] += 1
    return outcomes, findings, slowest, peak


def main() -> None:
    """Run the cases and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--quick", action="store_true", help="in under two minutes: 2000 cases")
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--stop", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--probe", action="store_true", help="measure as well (slow)")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"), help="where the files of findings go")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.stop = options.start + (2000 if options.quick else options.cases) if options.stop is None else options.stop
    if options.worker:
        _worker(options)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seeds = seed_models(folder)
        for index, data in enumerate(seeds):
            (folder / f"seed-{index:03}").write_bytes(data)
        start = time.perf_counter()
        outcomes, findings, slowest, peak = _supervise(options, folder)
        for number, what in findings.items():
            options.keep.mkdir(parents=True, exist_ok=True)
            (options.keep / f"case-{options.seed}-{number}.onnx").write_bytes(make_case(seeds, number, options.seed))
            print(f"{number}: {what}")
        if (folder / "w.bin").exists() and findings:
            shutil.copy(folder / "w.bin", options.keep)
        seconds = time.perf_counter() - start
    print(f"{sum(outcomes.values())} files: {dict(outcomes)} in {seconds:.0f} s")
    print(f"the slowest, case {slowest[1]}, took {slowest[0]:.2f} s; peak memory {peak / 1024:.0f} MiB")
    sys.exit(bool(findings))


if __name__ == "__main__":
    main()
