"""The child process that checks model files: `python -m gradlint.process.child PARENT probe|static`.

It reads requests from stdin, one line of JSON each, and writes its answers, also lines of JSON, to stdout.

Model files are not trusted. The operating system limits memory and processor time of this process, the parent limits its time,
and it ends with the parent. It cannot read the parent's memory, and the parent passes on only a few environment variables, so
that secrets stay out of reach.
"""

from __future__ import annotations

import gc
import json
import os
import queue
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from gradlint.errors import ForwardError, GradlintError

_PR_SET_PDEATHSIG, _SIGKILL = 1, 9
_SPARE = 60.0
"""Seconds of processor time beyond the time limit: the parent is to be the first that ends a run."""

_SELDOM = (100_000, 50, 100)
_READING = 3.0
"""Gigabytes that reading a file may take beyond the size of the file, before anything is probed."""


def _end_with(parent: int) -> None:
    """Let the operating system end this process when the parent dies, where it can; the end of stdin is the other sign."""
    if sys.platform == "linux":
        import ctypes  # noqa: PLC0415 - for this alone

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, _SIGKILL)
    if os.getppid() != parent and os.name == "posix":  # it died before
        os._exit(1)


def _listen(waiting: queue.SimpleQueue[str]) -> None:
    """Put each request into the queue, and end the process with stdin, whatever it does."""
    for line in sys.stdin:
        waiting.put(line)
    os._exit(0)


def _held() -> int:
    """Return the bytes of data that this process holds: libraries, and what earlier targets made them load. 0 if unknown."""
    try:
        with open("/proc/self/status", encoding="ascii") as status:  # noqa: PTH123 - no other path is ever read
            return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmData:"))
    except (OSError, StopIteration):
        return 0


def _limit(*, held: int, memory: float | None = None, seconds: float | None = None) -> None:
    """Limit the gigabytes that a target takes beyond what was held before, and the processor time to so many seconds a core."""
    try:
        import resource  # noqa: PLC0415 - not on Windows, where only time is limited
    except ImportError:
        return
    bounds = {}
    if memory is not None:
        bounds[resource.RLIMIT_DATA] = held + memory * 2**30
    if seconds is not None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        bounds[resource.RLIMIT_CPU] = used.ru_utime + used.ru_stime + (seconds + _SPARE) * (os.cpu_count() or 1)
    for what, bound in bounds.items():
        hard = resource.getrlimit(what)[1]
        most = 2**62 if hard == resource.RLIM_INFINITY else hard
        resource.setrlimit(what, (int(min(bound, most)), hard))


def _tidy() -> None:
    """Give back the memory of earlier targets, which would count against the limit of the next."""
    gc.collect()
    if sys.platform == "linux":
        import ctypes  # noqa: PLC0415 - for this alone

        with suppress(AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


def _check(target: str, options: Any, progress: Callable[[str], None], _: dict[str, Any]) -> dict[str, Any]:
    from gradlint.engine import check  # noqa: PLC0415 - only after the limit is set
    from gradlint.process.messages import pack  # noqa: PLC0415

    return {"report": pack(check(target, options, progress=progress))}


def _explain(target: str, options: Any, progress: Callable[[str], None], request: dict[str, Any]) -> dict[str, Any]:
    from gradlint.explain import explain  # noqa: PLC0415
    from gradlint.report.explanation import render  # noqa: PLC0415

    found = explain(target, request["node"], options, progress=progress)
    return {"text": render(found, width=request["width"], unicode=request["unicode"])}


_JOBS = {"check": _check, "explain": _explain}


def _bytes(target: str) -> int:
    """Return how many bytes reading a target may bring into memory: of a folder, its weights and their copy of another dtype."""
    if not os.path.isdir(target):  # noqa: PTH112
        return os.path.getsize(target)  # noqa: PTH202
    return 3 * sum(entry.stat().st_size for entry in os.scandir(target) if entry.name.endswith(".safetensors"))


def _answer(request: dict[str, Any]) -> None:
    from gradlint.frontends.discover import FileTarget  # noqa: PLC0415
    from gradlint.options import Options  # noqa: PLC0415
    from gradlint.process.messages import unpack  # noqa: PLC0415

    try:
        options, target = unpack(Options, request["options"]), request["target"]
        assert options.limits is not None
        os.chdir(request["cwd"])
        size = 0.0
        if request["stdin"] is not None:
            sys.stdin = open(request["stdin"], encoding="utf-8")  # noqa: PTH123, SIM115 - closed with the next one
        else:
            target = FileTarget(target)
            size = _bytes(target) / 2**30
        memory = options.limits.memory
        _tidy()
        held = _held()
        _limit(held=held, memory=min(memory, _READING + size), seconds=options.limits.seconds)

        def progress(stage: str) -> None:
            if stage.startswith("probing"):  # the file is read: the rest is for running the model
                _limit(held=held, memory=memory)
            _send(progress=stage)

        _send(**_JOBS[request["job"]](target, options, progress, request))
    except Exception as error:  # noqa: BLE001 - the parent decides what to show
        if isinstance(error, MemoryError) or "allocate memory" in str(error) or "bad_alloc" in str(error):  # torch has no class
            _send(memory=True)
        elif isinstance(error, GradlintError):
            where = error.where if isinstance(error, ForwardError) else None
            fields = {"kind": type(error).__name__, "message": str(error.args[0]), "hint": error.hint, "where": where}
            _send(error={**fields, "trace": traceback.format_exc()})
        else:
            _send(internal=traceback.format_exc())


def _send(**message: Any) -> None:
    _OUT.write(json.dumps(message) + "\n")
    _OUT.flush()


if __name__ == "__main__":
    _OUT, sys.stdout = sys.stdout, sys.stderr  # what a library prints must not mix with the answers
    _end_with(int(sys.argv[1]))
    requests: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(requests,), daemon=True).start()
    gc.disable()  # what is imported stays
    with suppress(ImportError):  # while the parent does something else; a request says what is missing
        import gradlint.engine
        import gradlint.frontends.onnx.file

        if sys.argv[2] == "probe":
            import gradlint.onnx_torch.runnable
            import gradlint.probe.measure  # noqa: F401
    gc.freeze()
    gc.set_threshold(*_SELDOM)  # graphs and predictions stay until their report is made
    gc.enable()
    while True:
        _answer(json.loads(requests.get()))
