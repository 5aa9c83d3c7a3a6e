"""The parent's side: `check` and `explained`, which start a child for a model file, send it a job, and enforce the limits."""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from gradlint import errors
from gradlint.errors import ForwardError, GivenUpError, GradlintError, TargetError
from gradlint.frontends.discover import model_on_stdin
from gradlint.options import Limits, Options

if TYPE_CHECKING:
    from gradlint.result import TargetReport

_PASSED_ON = ("HOME", "LANG", "LD_LIBRARY_PATH", "PATH", "SYSTEMROOT", "TEMP", "TMP", "TMPDIR", "VIRTUAL_ENV")
_PREFIXES = ("LC_", "MKL_", "OMP_", "OPENBLAS_", "TORCH_")
_PARSED = frozenset({".onnx", ".pt2"})
_GRACE = 0.25
"""Share of the time limit that a child has left to report what it measured before the limit, and after a kill another has for
the static analysis."""

_LEAST = 10.0  # seconds that the static analysis has in any case

_MOST = 1 << 31
"""The most bytes of a model on stdin: as many as a protobuf file may have."""

_CHUNK = 1 << 20
_FIELDS = frozenset(range(1, 32))  # of a ModelProto, with room for those to come

Progress = Callable[[str], None]


class InternalError(RuntimeError):
    """An internal error of gradlint in the child process. The message is its traceback."""


class RemoteTraceback(Exception):  # noqa: N818 - the cause of an error, never raised
    """The traceback of an error in the child process, as its message."""


def check(target: object, options: Options | None = None, *, progress: Progress | None = None) -> TargetReport:
    """Check one target as `gradlint.engine.check` does, a model file in the child process.

    If the probe of a file reaches a limit before anything was measured, or dies, the report is the static one, with a verdict
    left open and `given_up` set. A task with a loss is checked in this process, because a function cannot be sent to another one.

    Raises:
        GradlintError: The target cannot be read, imported or run, or a limit was reached.
        InternalError: gradlint itself failed in the child.
    """
    options = options or Options()
    if not _is_parsed(target, options):
        from gradlint import engine  # noqa: PLC0415 - the child has it

        return engine.check(target, options, progress=progress)
    from gradlint.process.messages import unpack  # noqa: PLC0415
    from gradlint.result import TargetReport  # noqa: PLC0415

    return unpack(TargetReport, worker.run("check", str(target), options, progress)["report"])


def explained(target: str, node: str, options: Options, *, width: int, unicode: bool) -> str:
    """Explain one operator of a target, as text of some width; see `gradlint.explain.explain` for errors."""
    if not _is_parsed(target, options):
        from gradlint.explain import explain  # noqa: PLC0415
        from gradlint.report.explanation import render  # noqa: PLC0415

        return render(explain(target, node, options), width=width, unicode=unicode)
    text: str = worker.run("explain", target, options, node=node, width=width, unicode=unicode)["text"]
    return text


def prepare(targets: list[str], *, probe: bool) -> None:
    """Start the child process for targets that need one, so that it imports its modules while this process does other things."""
    if any(map(_is_file, targets)):
        worker.prepare(probe=probe)


def _is_parsed(target: object, options: Options) -> bool:
    return options.limits is not None and options.task.loss is None and options.task.target is None and _is_file(target)


def _is_file(target: object) -> bool:
    """Return whether a target is a file that has to be parsed, a folder with a model, or stdin."""
    if isinstance(target, str) and target == "-":
        return True
    if not isinstance(target, (str, Path)):
        return False
    path = Path(target)
    return (path / "config.json").exists() if path.is_dir() else path.suffix.lower() in _PARSED and path.is_file()


class Worker:
    """One child process. It is started on first use, and again if it has died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        atexit.register(self.stop)

    def prepare(self, *, probe: bool = True) -> None:
        """Start the child process if it does not run."""
        with self._lock:
            self._started(probe=probe)

    def run(
        self, job: str, target: str, options: Options, progress: Progress | None = None, **arguments: object
    ) -> dict[str, Any]:
        """Send a job to the child process and return its answer.

        Args:
            job: "check" or "explain".
            target: Path of a model file, or "-" for stdin, which this process reads.
            options: How to check it. The child is killed when it exceeds the limits.
            progress: Called with one line of text at the start of each stage.
            arguments: What else the job needs, as JSON values.

        If the probe in a check has to be given up, the answer is that of a check without it.

        Raises:
            TargetError: A limit was reached, or the child died.
            GradlintError: The error that the child raised, of the same class.
            InternalError: gradlint itself failed in the child.
        """
        from gradlint.process.messages import pack  # noqa: PLC0415

        assert options.limits is not None
        with _copied_stdin() if target == "-" else _nothing() as copy:
            request = {"job": job, "target": target, "stdin": copy, "cwd": str(Path.cwd()), "options": pack(options), **arguments}
            with self._lock:
                try:
                    answer = self._ask(request, options, progress)
                except GivenUpError as error:
                    if job != "check":
                        raise
                    answer = self._ask_for_less(request, options, error, progress)
        if "error" in answer:
            raise _restored_error(answer["error"]) from RemoteTraceback(answer["error"]["trace"])
        if "internal" in answer:
            raise InternalError(answer["internal"])
        return answer

    def stop(self) -> None:
        """Kill the child process, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    with suppress(BrokenPipeError):  # there may be unwritten bytes
                        pipe.close()
            self._process = None

    def _ask_for_less(
        self, request: dict[str, Any], options: Options, error: GivenUpError, progress: Progress | None
    ) -> dict[str, Any]:
        """Ask for the static analysis where the probe raised `error`, which is raised again if this fails too."""
        from gradlint.process.messages import pack  # noqa: PLC0415

        assert options.limits is not None
        self.stop()
        why = f"the probe was given up: {error.args[0].removeprefix(request['target'] + ': ')} ({error.hint})"
        limits = replace(options.limits, seconds=max(options.limits.seconds * _GRACE, _LEAST))
        static = replace(options, probe=False, limits=limits, given_up=why)
        try:
            answer = self._ask({**request, "options": pack(static)}, static, progress)
        except TargetError:
            answer = {}
        if "report" not in answer:
            raise error
        return answer

    def _ask(self, request: dict[str, Any], options: Options, progress: Progress | None) -> dict[str, Any]:
        """Send a request and return the answer. Raises TargetError if there is none, GivenUpError if it was read before."""
        limits, failure = options.limits, TargetError
        assert limits is not None
        process = self._started(probe=options.probe)
        assert process.stdin is not None
        assert process.stdout is not None
        late = threading.Event()

        def end() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(limits.seconds * (1.0 + _GRACE), end)
        timer.daemon = True
        timer.start()
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            for line in process.stdout:
                answer: dict[str, Any] = json.loads(line)
                if "progress" not in answer:
                    return _in_memory(answer, request["target"], limits, failure)
                if answer["progress"].startswith("probing"):
                    failure = GivenUpError
                if progress is not None:
                    progress(answer["progress"])
        except BrokenPipeError:
            pass
        except BaseException:  # interrupted: the pending answer must not be read for the next request
            self.stop()
            raise
        finally:
            timer.cancel()
        code = process.wait()
        self.stop()
        label = request["target"]
        if late.is_set():
            hint = "allow more with --time-limit SECONDS"
            raise failure(f"{label}: took longer than {limits.seconds:g} s", hint=hint)
        raise failure(f"{label}: the process that read it {_ending(code)}", hint=_reason(code, limits))

    def _started(self, *, probe: bool) -> subprocess.Popen[str]:
        if self._process is not None and self._process.poll() is not None:
            self.stop()
        if self._process is None:
            passed = {name: value for name, value in os.environ.items() if name in _PASSED_ON or name.startswith(_PREFIXES)}
            home = str(Path(errors.__file__).resolve().parents[1])
            what = "probe" if probe else "static"
            # -P: import nothing from the working folder
            self._process = subprocess.Popen(  # noqa: S603 - this interpreter, with our own module
                [sys.executable, "-P", "-m", "gradlint.process.child", str(os.getpid()), what],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
                errors="surrogateescape",
                env={**passed, "PYTHONPATH": os.pathsep.join([home, *filter(None, [os.environ.get("PYTHONPATH")])])},
            )
        return self._process


def _in_memory(answer: dict[str, Any], label: str, limits: Limits, failure: type[TargetError]) -> dict[str, Any]:
    if "memory" in answer:
        raise failure(f"{label}: needs more than {limits.memory:g} GB of memory", hint="allow more with --memory-limit GB")
    return answer


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    with suppress(ValueError):
        return f"died with {signal.Signals(-code).name}"
    return f"died with signal {-code}"


def _reason(code: int, limits: Limits) -> str:
    if -code == getattr(signal, "SIGBUS", 0):
        return "a file changed or lost its end while it was read"
    if -code == getattr(signal, "SIGXCPU", 0):
        return "allow more time with --time-limit SECONDS"
    return f"{limits.memory:g} GB of memory may be too little (--memory-limit GB), or more than the machine has"


@contextmanager
def _nothing() -> Iterator[None]:
    yield None


@contextmanager
def _copied_stdin() -> Iterator[str]:
    """Copy a model from stdin to a private file. Raises TargetError if there is none, or more than a model can have."""
    with tempfile.TemporaryDirectory(prefix="gradlint-") as folder:
        path = Path(folder) / "stdin"
        with model_on_stdin() as stream, path.open("wb") as file:
            _copy(stream, file)
        yield str(path)


def _copy(source: BinaryIO, file: BinaryIO) -> None:
    copied = 0
    while chunk := source.read(_CHUNK):
        if not copied and (chunk[0] & 7 not in {0, 1, 2, 5} or chunk[0] >> 3 not in _FIELDS):
            raise TargetError("-: what comes from stdin is no ONNX file", hint="send a model there: gradlint - < model.onnx")
        copied += len(chunk)
        if copied > _MOST:
            raise TargetError("-: stdin has more than 2 GB, the most of an ONNX file", hint="give the path of the file instead")
        file.write(chunk)


def _restored_error(error: dict[str, Any]) -> GradlintError:
    kind = getattr(errors, error["kind"], TargetError)
    if kind is ForwardError:
        return ForwardError(error["message"], where=error["where"], hint=error["hint"])
    restored: GradlintError = kind(error["message"], hint=error["hint"])
    return restored


worker = Worker()
"""The worker that this process uses."""
