"""The child process that probes model files: `python -m gradlint.probe.process.worker`.

It reads requests from stdin, one line of JSON each, and writes its answers, also lines of JSON, to stdout.

Model files are not trusted. The operating system limits the memory of this process, and the parent limits its time. The process
cannot read the parent's memory, and the parent passes on only a few environment variables, so that secrets stay out of reach.
"""

from __future__ import annotations

import gc
import json
import sys
import traceback
from contextlib import suppress
from typing import Any

from gradlint.errors import ForwardError, GradlintError


def _limit(gigabytes: float) -> None:
    try:
        import resource  # noqa: PLC0415 - not on Windows, where only time is limited
    except ImportError:
        return
    bound = int(gigabytes * 2**30)
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    soft = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _probe(request: dict[str, Any]) -> Any:
    from gradlint.frontends.onnx.file import read_onnx  # noqa: PLC0415 - only after the limit is set
    from gradlint.probe.process.files import measure_file  # noqa: PLC0415
    from gradlint.probe.process.messages import pack, unpack, unpack_inputs  # noqa: PLC0415
    from gradlint.recipe import Recipe, Task  # noqa: PLC0415

    inputs = unpack_inputs(request["inputs"])
    named = {str(spec.name) for spec in inputs}  # the parent has checked the file, and found which inputs are no weights
    file = read_onnx(request["path"], train=request["train"], lenient=True, inputs=named)
    recipe = unpack(Recipe, request["recipe"]) if request["recipe"] else None
    return pack(
        measure_file(
            file,
            inputs,
            seeds=request["seeds"],
            seed=request["seed"],
            progress=_send_progress,
            task=Task(recipe=recipe, rehearse=request["rehearse"]),
        )
    )


def _answer(request: dict[str, Any]) -> None:
    try:
        _limit(request["memory"])
        _send(measurement=_probe(request))
    except Exception as error:  # noqa: BLE001 - the parent decides what to show
        if isinstance(error, MemoryError) or "allocate memory" in str(error):  # torch has no class for this error
            _send(memory=True)
        elif isinstance(error, GradlintError):
            where = error.where if isinstance(error, ForwardError) else None
            fields = {"kind": type(error).__name__, "message": str(error.args[0]), "hint": error.hint, "where": where}
            _send(error={**fields, "trace": traceback.format_exc()})
        else:
            _send(internal=traceback.format_exc())


def _send_progress(text: str) -> None:
    _send(progress=text)


def _send(**message: Any) -> None:
    _OUT.write(json.dumps(message) + "\n")
    _OUT.flush()


if __name__ == "__main__":
    _OUT, sys.stdout = sys.stdout, sys.stderr  # what a library prints must not mix with the answers
    gc.disable()  # it takes a seventh of the time that imports take
    with suppress(ImportError):  # while the parent reads the file; a request says what is missing
        import gradlint.probe.process.files  # noqa: F401 - imported for its time
    gc.freeze()
    gc.enable()
    for line in sys.stdin:
        _answer(json.loads(line))
