"""The parent's side: start the child process, send requests to it, and enforce the limits."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradlint import errors
from gradlint.errors import ForwardError, GradlintError, TargetError
from gradlint.frontends.inputs import InputSpec
from gradlint.probe.process.messages import pack, unpack
from gradlint.recipe import Task
from gradlint.result import Measurement

_PASSED_ON = ("HOME", "LANG", "LD_LIBRARY_PATH", "PATH", "SYSTEMROOT", "TEMP", "TMP", "TMPDIR", "VIRTUAL_ENV")
_PREFIXES = ("LC_", "MKL_", "OMP_", "OPENBLAS_", "TORCH_")


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits for probing one model file: `seconds` of wall time, and `memory` in gigabytes, without memory-mapped weights."""

    seconds: float = 600.0
    memory: float = 16.0


class InternalError(RuntimeError):
    """An internal error of gradlint in the child process. The message is its traceback."""


class RemoteTraceback(Exception):  # noqa: N818 - the cause of an error, never raised
    """The traceback of an error in the child process, as its message."""


class Worker:
    """One child process. It is started on first use, and again if it has died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        atexit.register(self.stop)

    def prepare(self) -> None:
        """Start the child process if it does not run, so that it imports torch while this process does something else."""
        with self._lock:
            self._started()

    def measure(
        self,
        path: Path,
        inputs: tuple[InputSpec, ...],
        *,
        seeds: int,
        seed: int,
        limits: Limits,
        train: bool = False,
        progress: Callable[[str], None] | None = None,
        task: Task | None = None,
    ) -> Measurement:
        """Probe an ONNX file in the child process and return the measurement.

        Args:
            path: The file.
            inputs: The specification of each input.
            seeds: How many seeds to draw.
            seed: The first seed.
            limits: Limits of time and memory; the child is killed when it exceeds the time.
            train: Whether BatchNorms use the statistics of the batch.
            progress: Called with one line of text at the start of each stage.
            task: The task. Only its recipe and its number of rehearsal steps are sent to the child.

        Raises:
            TargetError: A limit was reached, or the child died.
            GradlintError: The error that the child raised, of the same class.
            InternalError: gradlint itself failed in the child.
        """
        request = {
            "path": str(path.resolve()),
            "inputs": pack(inputs),
            "train": train,
            "seeds": seeds,
            "seed": seed,
            "memory": limits.memory,
            "recipe": pack(task.recipe) if task else None,
            "rehearse": task.rehearse if task else None,
        }
        with self._lock:
            answer = self._ask(request, limits, progress or (lambda _: None))
        if "measurement" in answer:
            return unpack(Measurement, answer["measurement"])
        if "memory" in answer:
            raise TargetError(f"probing needs more than {limits.memory:g} GB of memory", hint="allow more with --memory-limit GB")
        if "error" in answer:
            raise _restored_error(answer["error"]) from RemoteTraceback(answer["error"]["trace"])
        raise InternalError(answer["internal"])

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

    def _ask(self, request: dict[str, Any], limits: Limits, progress: Callable[[str], None]) -> dict[str, Any]:
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        late = threading.Event()

        def end() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(limits.seconds, end)
        timer.start()
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            for line in process.stdout:
                answer: dict[str, Any] = json.loads(line)
                if "progress" not in answer:
                    return answer
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
        if late.is_set():
            raise TargetError(f"probing took longer than {limits.seconds:g} s", hint="allow more with --time-limit SECONDS")
        raise TargetError(
            f"the process that ran the model died with {f'signal {-code}' if code < 0 else f'exit code {code}'}",
            hint=f"{limits.memory:g} GB of memory may be too little (--memory-limit GB), or more than the machine has",
        )

    def _started(self) -> subprocess.Popen[str]:
        if self._process is not None and self._process.poll() is not None:
            self.stop()
        if self._process is None:
            passed = {name: value for name, value in os.environ.items() if name in _PASSED_ON or name.startswith(_PREFIXES)}
            home = str(Path(errors.__file__).resolve().parents[1])
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "gradlint.probe.process.worker"],  # -P: import nothing from the working folder
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
                env={**passed, "PYTHONPATH": os.pathsep.join([home, *filter(None, [os.environ.get("PYTHONPATH")])])},
            )
        return self._process


def _restored_error(error: dict[str, Any]) -> GradlintError:
    kind = getattr(errors, error["kind"], TargetError)
    if kind is ForwardError:
        return ForwardError(error["message"], where=error["where"], hint=error["hint"])
    restored: GradlintError = kind(error["message"], hint=error["hint"])
    return restored


worker = Worker()
"""The worker that this process uses."""
