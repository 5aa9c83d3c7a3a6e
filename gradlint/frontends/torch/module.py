"""A torch module as something that gradlint can draw, run, differentiate and edit."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import parameter
from torch.utils import _pytree as pytree

from gradlint.errors import ForwardError, TargetError
from gradlint.frontends.base import Edit, Restartable, Tap, Tensors
from gradlint.frontends.inputs import InputSpec
from gradlint.frontends.targets import Target, called
from gradlint.frontends.torch import source, state
from gradlint.frontends.torch.inputs import Feed, feed_given, feed_values, infer
from gradlint.frontends.torch.record import Recorder
from gradlint.frontends.torch.trace import eager, watched
from gradlint.frontends.user_code import described, raising_line
from gradlint.graph import Graph

_RUNGS: Mapping[str, Mapping[str, bool]] = {
    "calls": {"gaps": False},  # full when no tensor is lost; watching the operators beneath costs, and imports the compiler
    "full": {},
    "function-mode": {"gaps": False},
    "modules": {"functions": False, "gaps": False},
}


def resolve(obj: Any, name: str = "the target") -> Target:
    """A module with its arguments and its task, from what a user can name.

    `obj` is a module, a class or function without required arguments, `(module, args)`, `(module, args, kwargs)`, or anything
    with `.module`, `.args` and `.kwargs`. A lone tensor stands for one argument. Raises TargetError for anything else, and when
    a factory needs arguments or raises.
    """
    if not isinstance(obj, nn.Module) and callable(obj):
        with source.recorded_construction():
            obj = called(obj, getattr(obj, "__name__", name))
    if isinstance(obj, nn.Module):
        return Target(obj)
    if isinstance(obj, tuple) and len(obj) in {2, 3} and isinstance(obj[0], nn.Module):
        obj = Target(*obj)
    module, args, kwargs = getattr(obj, "module", None), getattr(obj, "args", ()), getattr(obj, "kwargs", {})
    if not isinstance(module, nn.Module):
        raise TargetError(
            f"{name} is of type {type(obj).__name__}, not a torch.nn.Module",
            hint="name a module, a class, or a function that returns module, (module, args) or (module, args, kwargs)",
        )
    asked = (getattr(obj, key, None) for key in ("loss", "target", "recipe"))
    return Target(module, tuple(args) if isinstance(args, (tuple, list)) else (args,), dict(kwargs), *asked)


class TorchRunnable:
    """A torch module behind `gradlint.frontends.base.Runnable`.

    `args` and `kwargs` are the arguments of the forward, `inputs_given` what the user wrote with `--input`; what neither gives
    is inferred. `capture` says how the graph was taken ("full", "function-mode", "modules"; empty before the first forward),
    `notes` what else a report should say. Raises InputError when inputs are missing and cannot be inferred, or do not fit.
    """

    frontend = "torch"

    def __init__(
        self,
        module: nn.Module,
        inputs_given: tuple[InputSpec, ...] = (),
        *,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
        mode: str = "train",
        target_name: str = "",
    ) -> None:
        self.mode = mode
        self.target_name = target_name
        self.capture = ""
        self.notes: list[str] = []
        self.module: nn.Module = getattr(module, "_orig_mod", module)  # what torch.compile wraps
        self._graph: Graph | None = None
        self._guarded = False
        self._rung = ""  # how later runs watch
        feed: Feed | None = None
        if args or kwargs:
            feed = feed_values(self.module, args, kwargs or {}, inputs_given)
        elif inputs_given:
            feed = feed_given(self.module, inputs_given)
        if feed is None:
            infer(self.module, inputs_given, self._attempt)
        elif _is_lazy(self.module):
            self._attempt(feed)
        else:
            self._take(feed)

    @property
    def graph(self) -> Graph:
        """The graph that the first forward drew; raises RuntimeError before it."""
        if self._graph is None:
            raise RuntimeError("the graph of a torch module is drawn by its first forward")
        return self._graph

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """Put the module into `mode`, and hand it and the process back as they came; see `state.untouched`."""
        if self._guarded:
            yield
            return
        with state.untouched(self.module):
            self._guarded = True
            try:
                self.module.train(self.mode == "train")
                yield
            finally:
                self._guarded = False

    def forward(self, inputs: Sequence[Any], tap: Tap | None = None, edit: Edit | None = None) -> Tensors:
        """Run on one array for each of `self.inputs`; returns one tensor for each of `graph.outputs`.

        The first run draws the graph. Where a way to watch it fails, the model is run once more and watched in another way;
        `tap` starts again from the inputs, and is told so where it is `Restartable`. `capture` tells which way it was. Raises
        ForwardError when the module itself raises, naming the user's line.
        """
        failure: Exception | None = None
        observer: object = tap
        with nullcontext() if self._guarded else self.untouched():
            for rung in self._rungs():
                if failure is not None and isinstance(observer, Restartable):
                    observer.restart()
                try:
                    return self._traced(rung, inputs, tap, edit)
                except _LostTensorError as error:
                    failure = error
                except Exception as error:  # noqa: BLE001 - was it the model or the tracer? the model alone will tell
                    failure = error
                    self._plain(self.module, self._tensors(inputs))
        assert failure is not None
        raise failure

    def parameters(self) -> Mapping[str, Tensor]:
        """The trainable parameters by name, each tensor once."""
        return {name: tensor for name, tensor in self.module.named_parameters() if tensor.requires_grad}

    def call(self, inputs: Sequence[Any]) -> Any:
        """What the module returns for one array for each of `self.inputs`; raises ForwardError when it raises."""
        with nullcontext() if self._guarded else self.untouched(), torch.enable_grad():
            return self._plain(self.module, self._tensors(inputs))

    def _rungs(self) -> list[str]:
        if self._graph is not None:
            return [self._rung]
        scripted = any(isinstance(child, torch.jit.ScriptModule) for child in self.module.modules())
        return list(_RUNGS)[scripted:]  # calls alone would miss what a script does

    def _traced(self, rung: str, inputs: Sequence[Any], tap: Tap | None, edit: Edit | None) -> Tensors:
        recorder = Recorder(self.module, tap=tap, edit=edit, known=self._graph, stop=_run.__code__)
        with torch.enable_grad():
            pairs = zip(self.inputs, self._tensors(inputs), strict=True)
            args, kwargs = self._arguments([recorder.feed(spec.name or "input", tensor) for spec, tensor in pairs])
            with watched(recorder, **_RUNGS[rung]):
                returned = _run(self.module, args, kwargs)
            results = recorder.results(returned)
        if recorder.failure is not None:
            raise recorder.failure
        if self._graph is None:
            if rung == "calls" and recorder.lost:
                raise _LostTensorError
            self._graph = Graph(recorder.nodes, [ref for ref, _ in results], mode=self.mode)
            self._rung, self.capture = rung, "full" if rung == "calls" else rung
            if self.capture != "full":
                self.notes.append(f"the model could not be traced fully; its graph was taken by {rung}")
        return tuple(tensor for _, tensor in results)

    def _plain(self, module: nn.Module, tensors: Sequence[Tensor]) -> Any:
        """Run a module with nobody watching; raises ForwardError when it raises."""
        args, kwargs = self._arguments(tensors)
        try:
            with eager():
                return module(*args, **kwargs)
        except Exception as error:
            line = raising_line(error)
            hint = None if self.inputs and self.inputs[0].given else "the inputs were inferred; give them with --input"
            message = f"the model's forward raised {described(error)}" + (f" ({line})" if line else "")
            raise ForwardError(message, where=str(line) if line else None, hint=hint) from error

    def _tensors(self, arrays: Sequence[Any]) -> list[Tensor]:
        device = next((tensor.device for tensor in (*self.module.parameters(), *self.module.buffers())), None)
        pairs = zip(self.inputs, arrays, strict=True)
        return [torch.tensor(array, dtype=getattr(torch, spec.dtype), device=device) for spec, array in pairs]

    def _arguments(self, tensors: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        leaves = list(self._leaves)
        for place, tensor in zip(self._places, tensors, strict=True):
            leaves[place] = tensor
        args, kwargs = pytree.tree_unflatten(leaves, self._structure)
        return args, kwargs

    def _take(self, feed: Feed) -> None:
        self._leaves, self._structure = pytree.tree_flatten((feed.args, dict(feed.kwargs)))
        self._places = [index for index, leaf in enumerate(self._leaves) if isinstance(leaf, InputSpec)]
        self.inputs = tuple(self._leaves[index] for index in self._places)

    def _attempt(self, feed: Feed) -> None:
        """Run the module once, to see whether it runs; a lazy module is run, and given its shapes, as a copy."""
        self._take(feed)
        rng = np.random.default_rng(0)
        tensors = self._tensors([spec.draw(rng) for spec in self.inputs])
        if not _is_lazy(self.module):
            with self.untouched(), torch.no_grad():
                self._plain(self.module, tensors)
            return
        with state.same_process(), torch.no_grad():
            try:
                trial = copy.deepcopy(self.module, _fresh_buffers(self.module))
            except RuntimeError as error:
                hint = "run its forward once before handing it over"
                raise TargetError(f"a model with lazy parameters has to be copied: {described(error)}", hint=hint) from error
            self._plain(trial, tensors)
        self.module = trial
        self.notes.append("lazy parameters were given their shapes on a copy of the model")


class _LostTensorError(Exception):
    """A tensor that carries a gradient was made by nothing that was watched."""


def _run(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The frame at which the walk to the user's line stops: what lies above it is not the model."""
    return module(*args, **kwargs)


def _fresh_buffers(module: nn.Module) -> dict[int, Any]:
    """Copies of the lazy buffers, which torch cannot make itself, as a memo for deepcopy."""
    lazy = (buffer for buffer in module.buffers() if parameter.is_lazy(buffer))
    make: Any = parameter.UninitializedBuffer
    return {id(buffer): make(device=buffer.device, dtype=buffer.dtype) for buffer in lazy}


def _is_lazy(module: nn.Module) -> bool:
    return any(parameter.is_lazy(tensor) for tensor in (*module.parameters(), *module.buffers()))
