"""Load a target: find out what the user named, read its graph, and prepare the function that probes it."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from gradlint.errors import ConfigError, ForwardError, InputError, TargetError, UnsafeFileError
from gradlint.frontends.discover import FileTarget, model_on_stdin
from gradlint.frontends.inputs import InputSpec
from gradlint.frontends.memory import available
from gradlint.frontends.targets import Target, at_home, is_python_target, load_target
from gradlint.graph import Graph
from gradlint.measurements.coverage import InputInfo
from gradlint.probe.budget import ENDLESS, Budget
from gradlint.recipe import Task
from gradlint.result import Measurement

if TYPE_CHECKING:
    from gradlint.frontends.base import Runnable
    from gradlint.frontends.torch.module import TorchRunnable

Progress = Callable[[str], None]
_PICKLES = frozenset({".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".joblib"})


class Measure(Protocol):
    """A function that probes one target."""

    def __call__(self, *, seeds: int, seed: int, progress: Progress, budget: Budget = ENDLESS) -> Measurement:
        """Run the probe with `seeds` seeds, the first one being `seed`. Raises GradlintError if the model cannot be run."""


@dataclass(frozen=True)
class Values:
    """Where the values of the weights of a torch module come from, if not from its factory.

    Attributes:
        weights: A `.safetensors` file.
        materialize: Whether a model on the meta device is initialized on the CPU.
        memory: Gigabytes that the check may take; None for what the machine has.
    """

    weights: Path | None = None
    materialize: bool = False
    memory: float | None = None

    def room(self) -> int:
        """Return how many bytes the weights of a model may take: a quarter of the memory, the rest is for gradients."""
        return int(min(available(), math.inf if self.memory is None else self.memory * (1 << 30))) // 4


@dataclass(frozen=True)
class Loaded:
    """A target that was read.

    `measure` probes the target. The other callables give what may only be known after a probe: `specs_of` the input
    specifications, `graph_of` the graph, `notes_of` the remarks for the report, `capture_of` how the graph was captured.
    `parameters_of` gives, of a module, the number of elements of each trainable parameter and of all that are frozen.
    """

    name: str
    frontend: str
    specs_of: Callable[[], tuple[InputSpec, ...]]
    measure: Measure
    graph_of: Callable[[], Graph]
    notes_of: Callable[[], Sequence[str]] = tuple
    capture_of: Callable[[], str] = lambda: "full"
    parameters_of: Callable[[], tuple[dict[str, int], int]] | None = None
    task: Task = field(default_factory=Task)

    @property
    def specs(self) -> tuple[InputSpec, ...]:
        """The specification of each input. After a probe, these are the inputs that it used."""
        return self.specs_of()

    @property
    def inputs(self) -> tuple[InputInfo, ...]:
        """The inputs as the report shows them."""
        return tuple(spec.info(f"input {index}") for index, spec in enumerate(self.specs))


def load(
    target: object,
    inputs: tuple[InputSpec, ...] = (),
    mode: str | None = None,
    *,
    probe: bool = True,
    task: Task | None = None,
    lenient: bool = False,
    values: Values = Values(),
) -> Loaded:
    """Read a target: a path, a name of Python code, a torch module, a factory, or an ONNX model in memory or as bytes.

    A torch module that will not be probed is captured here by one forward pass. With `lenient`, an ONNX node that its schema
    rejects is a note. Raises GradlintError if the target cannot be read, imported or run, and UnsafeFileError, a subclass, for a
    file type that can run code when it is read.
    """
    task = task or Task()
    path = Path(target) if isinstance(target, Path) or (isinstance(target, str) and _is_path(target)) else None
    if path is not None and (path.is_dir() or (path.suffix.lower() == ".pt2" and path.exists())):
        return _torch(path, inputs, mode, task, values, probe=probe)
    if path is not None:
        if values.weights is not None:
            raise ConfigError(f"{target} has weights of its own", hint="--weights goes with a factory: gradlint train.py:build")
        return _from_path(str(target), inputs, mode, task, probe=probe, lenient=lenient)
    if isinstance(target, bytes) or type(target).__name__ == "ModelProto":
        return _onnx(target, "model", inputs, mode, task, probe=probe, lenient=lenient)
    return _torch(target, inputs, mode, task, values, probe=probe)


def _is_path(target: str) -> bool:
    """Return whether a target is a path or `-`. What exists as a file is data, also where its name reads as that of code."""
    return isinstance(target, FileTarget) or os.path.lexists(target) or not is_python_target(target)


def _from_path(
    text: str,
    inputs: tuple[InputSpec, ...],
    mode: str | None,
    task: Task,
    *,
    probe: bool,
    lenient: bool,
) -> Loaded:
    if text == "-":
        with model_on_stdin() as stream:
            data = stream.read()
        return _onnx(data, "-", inputs, mode, task, probe=probe, lenient=lenient)
    path = Path(text)
    if not path.exists():
        raise TargetError(f"{text}: no such file", hint="give a model file, a folder of them, pkg.mod:attr or file.py:attr")
    suffix = path.suffix.lower()
    if suffix in _PICKLES:
        raise UnsafeFileError(
            f"{text}: reading a pickle or a TorchScript archive runs code from it",
            hint="export the model to ONNX, or name the code that builds it: gradlint file.py:build_model",
        )
    if suffix == ".safetensors":
        hint = f"name the code that builds the model: gradlint train.py:build --weights {text}"
        raise TargetError(f"{text}: weights alone do not say what is computed with them", hint=hint)
    if suffix == ".py":
        raise TargetError(f"{text}: which model in it?", hint=f"name the factory or module: gradlint {text}:build_model")
    if suffix != ".onnx":
        hint = "give an .onnx or a .pt2 file"
        raise TargetError(f"{text}: {suffix or 'this'} is not a model file that gradlint reads", hint=hint)
    return _onnx(path, text, inputs, mode, task, probe=probe, lenient=lenient)


def _stated(inputs: tuple[InputSpec, ...]) -> set[str] | None:
    """Return the names of the given inputs; None if several are given by position, so that all graph inputs are meant."""
    return None if sum(spec.name is None for spec in inputs) > 1 else {spec.name for spec in inputs if spec.name}


def _onnx(
    source: Any,
    name: str,
    inputs: tuple[InputSpec, ...],
    mode: str | None,
    task: Task,
    *,
    probe: bool,
    lenient: bool = False,
) -> Loaded:
    from gradlint.frontends.onnx.file import read_onnx  # noqa: PLC0415 - onnx is imported only where it is needed

    train = mode == "train"
    file = read_onnx(source, train=train, lenient=lenient, inputs=_stated(inputs))
    if mode == "eval" and file.mode == "train":
        raise ConfigError(f"{name}: it was exported in training mode", hint="leave --mode out, or export it with model.eval()")
    fed = [file.inputs_with(inputs) if probe else ()]

    def run(specs: tuple[InputSpec, ...], **how: Any) -> Measurement:
        from gradlint.frontends.torch.state import untouched_process  # noqa: PLC0415 - torch
        from gradlint.onnx_torch.runnable import OnnxRunnable  # noqa: PLC0415

        with untouched_process():  # its weights are tensors with values, whatever the default device is
            model = OnnxRunnable(file, specs)
        found = _here(model, task, **how)
        return replace(found, notes=(*model.notes, *found.notes))

    def measure(**how: Any) -> Measurement:
        try:
            return run(fed[-1], **how)
        except ForwardError as error:
            for batch, specs in file.other_inputs(inputs):
                with suppress(ForwardError):
                    found = run(specs, **how)
                    note = f"fed a batch of {batch}, since otherwise {str(error.args[0]).splitlines()[0]}"
                    fed.append(specs)
                    return replace(found, notes=(note, *found.notes))
            raise

    def notes() -> Sequence[str]:
        return tuple(dict.fromkeys((*file.notes, *(spec.note for spec in fed[-1] if spec.note))))

    return Loaded(name, "onnx", lambda: fed[-1], measure, lambda: file.graph, notes, task=task)


def _here(model: Runnable, task: Task, *, seeds: int, seed: int, progress: Progress, budget: Budget = ENDLESS) -> Measurement:
    from gradlint.probe.measure import measure  # noqa: PLC0415 - torch

    return measure(model, seeds=seeds, seed=seed, progress=progress, task=task, budget=budget)


def _stored(path: Path, inputs: tuple[InputSpec, ...]) -> tuple[Any, tuple[InputSpec, ...]]:
    """Return the module that a file or a folder holds, and its inputs."""
    from gradlint.frontends.torch.exported import load_exported  # noqa: PLC0415 - torch
    from gradlint.frontends.torch.folder import is_model_folder, load_folder  # noqa: PLC0415

    if path.is_dir():
        pickled = next((file for file in path.iterdir() if file.suffix in _PICKLES), None)
        if not is_model_folder(path) and pickled is not None:
            hint = "save the model again with save_pretrained(folder), which writes .safetensors"
            raise UnsafeFileError(
                f"{path}: its weights are in {pickled.name!r}, and reading a pickle runs code from it", hint=hint
            )
        if not is_model_folder(path):
            raise TargetError(f"{path}: no model in this folder", hint="a model folder has a config.json and .safetensors files")
        return load_folder(path), inputs
    module, specs = load_exported(path)
    return module, inputs or specs


def _with_values(module: Any, name: str, *, values: Values, probe: bool) -> Any:
    """Return the module with weights from a file or, if it is on the meta device and that was asked for, newly initialized."""
    from gradlint.frontends.torch.meta import bytes_of, materialized, on_meta  # noqa: PLC0415 - torch
    from gradlint.frontends.torch.weights import load_weights  # noqa: PLC0415

    if values.weights is not None:
        try:
            module = copy.deepcopy(module)  # the user's own module keeps its values
        except Exception as error:
            raise TargetError(f"{name}: it cannot be copied to load weights: {error}", hint="load them in the factory") from error
        load_weights(module, values.weights, name)
    if not on_meta(module):
        return module
    if values.materialize:
        return materialized(module, name) if bytes_of(module) <= values.room() else module
    if probe:
        hint = "--materialize initializes it on the CPU, --no-probe judges its initialization, --weights FILE loads values"
        raise TargetError(f"{name}: its weights are on the meta device and have no values", hint=hint)
    return module


def _torch(target: object, inputs: tuple[InputSpec, ...], mode: str | None, task: Task, values: Values, *, probe: bool) -> Loaded:
    from gradlint.frontends.torch.source import recorded_construction  # noqa: PLC0415 - torch

    handed = target.module if isinstance(target, Target) else target
    name = str(target) if isinstance(target, (str, Path)) else getattr(handed, "__name__", type(handed).__name__)
    text = next((spec.name or "input" for spec in inputs if spec.dtype == "string"), None)
    if text is not None:
        raise InputError(
            f"{text!r} is text, and a torch module takes numbers", hint="give it as x=int64[1,16]<1000, or as @ids.npy"
        )
    home = partial(at_home, target) if isinstance(target, str) else nullcontext
    with home():
        with recorded_construction():
            if isinstance(target, Path):
                found, inputs = _stored(target, inputs)
            else:
                found = load_target(target)[0] if isinstance(target, str) else target
        name, model, task = _runnable(found, name, inputs, mode, task, valued=partial(_with_values, values=values, probe=probe))
        if isinstance(target, Path):
            model.target_name = name = str(target)
            model.notes += ["an exported program keeps the mode of its export"] * (target.suffix.lower() == ".pt2")
        _draw_by_blocks(model, values.room(), probe=probe)
        if not probe:
            import numpy as np  # noqa: PLC0415

            with model.untouched():
                model.forward([spec.draw(np.random.default_rng(0)) for spec in model.inputs])

    def measure(**how: Any) -> Measurement:
        with home():
            return _here(model, task, **how)

    return Loaded(
        name,
        "torch",
        lambda: model.inputs,
        measure,
        lambda: model.graph,
        lambda: model.notes,
        lambda: model.capture,
        lambda: ({name: parameter.numel() for name, parameter in model.parameters().items()}, model.frozen),
        task,
    )


def _draw_by_blocks(model: TorchRunnable, room: int, *, probe: bool) -> None:
    """Let a model that is still on the meta device draw its weights block by block.

    That is one that is too large for the memory, or of which theory reads the weights one after the other.
    """
    from gradlint.frontends.torch.blocks import Blocks  # noqa: PLC0415 - torch
    from gradlint.frontends.torch.meta import bytes_of, on_meta  # noqa: PLC0415

    if not on_meta(model.module):
        return
    blocks = Blocks(model.module, model.target_name, room if probe else min(room, 1 << 30))
    if probe:
        whole = f"its weights take {bytes_of(model.module) / 1e9:.3g} GB"
        model.notes.append(f"{whole}: {blocks.count} blocks, the largest of {blocks.largest / 1e9:.2g} GB, were drawn one by one")
    model.draw_by_blocks(blocks)


def _runnable(
    found: object,
    name: str,
    inputs: tuple[InputSpec, ...],
    mode: str | None,
    task: Task,
    *,
    valued: Callable[[Any, str], Any],
) -> tuple[str, TorchRunnable, Task]:
    """Return the name of a torch target, the module as it is run, and the task with what the target says of it."""
    from gradlint.frontends.torch.module import TorchRunnable  # noqa: PLC0415 - torch
    from gradlint.frontends.torch.resolve import resolve, training  # noqa: PLC0415

    whole = resolve(found, name)
    name = name if ":" in name else type(whole.module).__name__
    module = valued(whole.module, name)
    whole = replace(whole, module=module)
    if any(parameter.is_inference() for parameter in module.parameters()):
        hint = "build the model outside of torch.inference_mode()"
        raise TargetError(f"{name}: its weights were made in inference mode, and can have no gradients", hint=hint)

    def run(whole: Target, inputs: tuple[InputSpec, ...]) -> TorchRunnable:
        return TorchRunnable(
            whole.module,
            inputs,
            args=whole.args,
            kwargs=whole.kwargs,
            mode=mode or "train",
            target_name=name,
            placeholders=task.loss is None and whole.loss is None,
        )

    trained = training(module) if not (whole.args or whole.kwargs or inputs or task.loss or whole.loss) else None
    model = None
    if trained is not None:
        try:
            model, whole = run(trained, ()), trained
            model.notes.append("its training_step is the loss, and configure_optimizers the recipe")
        except InputError:
            whole = replace(whole, recipe=whole.recipe or trained.recipe)
    model = model or run(whole, inputs)
    own = whole.task
    task = replace(task, loss=task.loss or own.loss, recipe=task.recipe or own.recipe)
    return name, model, replace(task, target=own.target) if task.target is None else task
