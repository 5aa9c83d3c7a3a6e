"""`measure_file`: probe a model file in the current process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from gradlint.frontends.inputs import InputSpec
from gradlint.frontends.onnx.file import OnnxFile
from gradlint.onnx_torch.runnable import OnnxRunnable
from gradlint.probe.measure import measure
from gradlint.recipe import Task
from gradlint.result import Measurement


def measure_file(
    file: OnnxFile,
    inputs: tuple[InputSpec, ...],
    *,
    seeds: int,
    seed: int,
    progress: Callable[[str], None],
    task: Task | None = None,
) -> Measurement:
    """Probe an ONNX file in this process. See `gradlint.probe.measure.measure` for the arguments and the errors.

    The notes also include the remarks of `OnnxRunnable` on the meaning of its gradients.
    """
    model = OnnxRunnable(file, inputs)
    found = measure(model, seeds=seeds, seed=seed, progress=progress, task=task)
    return replace(found, notes=(*model.notes, *found.notes))
