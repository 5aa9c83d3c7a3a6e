"""The child process that probes model files: `python -m gradlint.probe.process.worker`.

It reads one JSON request a line, and answers in JSON.

A model file may be anything. What evaluating it costs is bounded here by the operating system; nothing that the parent holds,
secrets in its environment included, is within reach.
"""

from __future__ import annotations

import json
import sys
import traceback
from typing import Any

from gradlint.errors import ForwardError, GradlintError


def _limit(gigabytes: float) -> None:
    try:
        import resource  # noqa: PLC0415 - not on Windows, where only time is bounded
    except ImportError:
        return
    bound = int(gigabytes * 2**30)
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    soft = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _probe(request: dict[str, Any]) -> Any:
    from gradlint.frontends.onnx.file import read_onnx  # noqa: PLC0415 - after the limit is set
    from gradlint.probe.process.files import measure_file  # noqa: PLC0415
    from gradlint.probe.process.messages import pack, unpack, unpack_inputs  # noqa: PLC0415
    from gradlint.recipe import Recipe, Task  # noqa: PLC0415

    file = read_onnx(request["path"], train=request["train"])
    recipe = unpack(Recipe, request["recipe"]) if request["recipe"] else None
    return pack(
        measure_file(
            file,
            unpack_inputs(request["inputs"]),
            seeds=request["seeds"],
            seed=request["seed"],
            progress=_say_progress,
            task=Task(recipe=recipe, rehearse=request["rehearse"]),
        )
    )


def _answer(request: dict[str, Any]) -> None:
    try:
        _limit(request["memory"])
        _say(measurement=_probe(request))
    except Exception as error:  # noqa: BLE001 - the parent decides what to show
        if isinstance(error, MemoryError) or "allocate memory" in str(error):  # torch has no exception of its own for it
            _say(memory=True)
        elif isinstance(error, GradlintError):
            where = error.where if isinstance(error, ForwardError) else None
            said = {"kind": type(error).__name__, "message": str(error.args[0]), "hint": error.hint, "where": where}
            _say(error={**said, "trace": traceback.format_exc()})
        else:
            _say(internal=traceback.format_exc())


def _say_progress(text: str) -> None:
    _say(progress=text)


def _say(**message: Any) -> None:
    _OUT.write(json.dumps(message) + "\n")
    _OUT.flush()


if __name__ == "__main__":
    _OUT, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints must not land between the answers
    for line in sys.stdin:
        _answer(json.loads(line))
