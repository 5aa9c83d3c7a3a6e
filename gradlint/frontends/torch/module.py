"""`TorchRunnable`: a torch module whose graph can be captured, and which the probe can run, differentiate and edit."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import parameter
from torch.utils import _pytree as pytree

from gradlint.errors import ForwardError, TargetError
from gradlint.frontends.base import Edit, Restartable, Tap, Tensors
from gradlint.frontends.inputs import InputSpec, without_blank
from gradlint.frontends.torch import state
from gradlint.frontends.torch.blocks import Blocks
from gradlint.frontends.torch.infer.search import infer
from gradlint.frontends.torch.infer.trial import Trial
from gradlint.frontends.torch.inputs import Feed, feed_given, feed_values
from gradlint.frontends.torch.record import Recorder
from gradlint.frontends.torch.trace import eager, recording
from gradlint.frontends.user_code import described, raising_line
from gradlint.graph import Graph

_DRAWN = 1 << 16  # how many values are drawn for a trial of inferred inputs
_STRATEGIES: Mapping[str, Mapping[str, bool]] = {  # ways to capture the graph, in the order in which they are tried
    "calls": {"gaps": False},  # complete unless a tensor is lost; recording gaps costs time, and imports torch's compiler
    "full": {},
    "function-mode": {"gaps": False},
    "modules": {"functions": False, "gaps": False},
}


class TorchRunnable:
    """A torch module as a `gradlint.frontends.base.Runnable`.

    Args:
        module: The module. A lazy module is run once on a copy, which replaces it.
        inputs_given: The inputs that the user specified. They replace tensors in `args` and `kwargs`.
        args: Positional arguments of the forward.
        kwargs: Keyword arguments of the forward. Inputs that are not given at all are inferred.
        mode: "train" or "eval".
        target_name: The name of the target.
        placeholders: Whether inputs that are all zeros stand for any; see `without_blank`.

    Attributes:
        capture: How the graph was captured: "full", "function-mode" or "modules"; empty before the first forward.
        notes: Remarks for the report.

    Raises:
        InputError: Inputs are missing and cannot be inferred, or do not fit.
        ForwardError: The forward of a lazy module raised.
        TargetError: A lazy module cannot be copied.
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
        placeholders: bool = False,
    ) -> None:
        self._placeholders = placeholders
        self.mode = mode
        self.target_name = target_name
        self.capture = ""
        self.notes: list[str] = []
        self.module: nn.Module = getattr(module, "_orig_mod", module)  # unwrap what torch.compile wraps
        self._graph: Graph | None = None
        self._blocks: Blocks | None = None
        self._guarded = False
        self._strategy = ""  # the one that later runs use
        feed: Feed | None = None
        if args or kwargs:
            feed = feed_values(self.module, args, kwargs or {}, inputs_given)
        elif inputs_given:
            feed = feed_given(self.module, inputs_given)
        if feed is None:
            self._take(infer(self.module, inputs_given, self._attempt))
        elif _is_lazy(self.module):
            self._attempt(feed, Trial())
        else:
            self._take(feed)

    @property
    def graph(self) -> Graph:
        """The graph that the first `forward` captured. Raises RuntimeError before that."""
        if self._graph is None:
            raise RuntimeError("the graph of a torch module is drawn by its first forward")
        return self._graph

    @property
    def by_blocks(self) -> bool:
        """Whether its weights have values only while they are read, so that nothing may hold or change all of them."""
        return self._blocks is not None

    def draw_by_blocks(self, blocks: Blocks) -> None:
        """Run the copy of the module of which one block at a time has values, instead of the module itself."""
        self.module, self._blocks = blocks.module, blocks

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """Put the module into `mode`; on exit, restore the module and the process. See `state.untouched`."""
        if self._guarded:
            yield
            return
        left: list[str] = []
        if self._blocks is not None:  # a copy that nobody else has
            with state.untouched_process(self.module), self._blocks:
                self._guarded = True
                self.module.train(self.mode == "train")
                try:
                    yield
                finally:
                    self._guarded = False
            return
        try:
            with state.untouched(self.module, self._leaves) as left:
                self._guarded = True
                with suppress(NotImplementedError):  # an exported program has one mode
                    self.module.train(self.mode == "train")
                yield
        finally:
            self._guarded = False
            self.notes += [f"not handed back as it came: {what}" for what in left if not any(what in note for note in self.notes)]

    def forward(self, inputs: Sequence[Any], tap: Tap | None = None, edit: Edit | None = None) -> Tensors:
        """Run on one array for each of `self.inputs`, and return one tensor for each of `graph.outputs`.

        The first run captures the graph. If a strategy fails, the model runs once more with the next one: `tap` then receives
        all nodes again from the inputs on, after a call of `restart` if it is `Restartable`. Raises ForwardError, which names
        the user's line, if the module itself raises.
        """
        failure: Exception | None = None
        observer: object = tap
        with nullcontext() if self._guarded else self.untouched():
            for strategy in self._strategies():
                if failure is not None and isinstance(observer, Restartable):
                    observer.restart()
                try:
                    return self._traced(strategy, inputs, tap, edit)
                except _LostTensorError as error:
                    failure = error
                except Exception as error:  # noqa: BLE001 - the model or the tracer raised; a run without tracer tells which
                    failure = error
                    self._plain(self.module, self._tensors(inputs))
        assert failure is not None
        raise failure

    def parameters(self) -> Mapping[str, Tensor]:
        """Return the trainable parameters by name, each tensor once."""
        return {name: tensor for name, tensor in self.module.named_parameters() if tensor.requires_grad}

    @property
    def frozen(self) -> int:
        """Number of elements of the parameters that do not require grad."""
        return sum(parameter.numel() for parameter in self.module.parameters() if not parameter.requires_grad)

    def call(self, inputs: Sequence[Any]) -> Any:
        """Run without tracing on one array for each of `self.inputs`; return what the module returns.

        Raises ForwardError if the module raises.
        """
        with nullcontext() if self._guarded else self.untouched(), torch.enable_grad():
            return self._plain(self.module, self._tensors(inputs))

    def _strategies(self) -> list[str]:
        if self._graph is not None:
            return [self._strategy]
        scripted = any(isinstance(child, torch.jit.ScriptModule) for child in self.module.modules())
        return list(_STRATEGIES)[scripted:]  # "calls" misses the operators inside a script

    def _traced(self, strategy: str, inputs: Sequence[Any], tap: Tap | None, edit: Edit | None) -> Tensors:
        recorder = Recorder(self.module, tap=tap, edit=edit, known=self._graph, stop=_run.__code__, blocks=self._blocks)
        with torch.enable_grad():
            pairs = zip(self.inputs, self._tensors(inputs), strict=True)
            args, kwargs = self._arguments([recorder.feed(spec.name or "input", tensor) for spec, tensor in pairs])
            with recording(recorder, **_STRATEGIES[strategy]):
                returned = _run(self.module, args, kwargs)
            results = recorder.results(returned)
        if recorder.failure is not None:
            raise recorder.failure
        if self._blocks is not None:
            self._blocks.refuse_lost()
        if self._graph is None:
            if strategy == "calls" and recorder.lost:
                raise _LostTensorError
            self._graph = Graph(recorder.nodes, [ref for ref, _ in results], mode=self.mode)
            self._strategy, self.capture = strategy, "full" if strategy == "calls" else strategy
            if self.capture != "full":
                self.notes.append(f"the model could not be traced fully; its graph was taken by {strategy}")
        return tuple(tensor for _, tensor in results)

    def _plain(self, module: nn.Module, tensors: Sequence[Tensor]) -> Any:
        """Run a module without tracing. Raises ForwardError if it raises."""
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
        inputs = tuple(self._leaves[index] for index in self._places)
        self.inputs = without_blank(inputs) if self._placeholders else inputs
        self.notes = [spec.note for spec in self.inputs if spec.given and spec.note]

    def _attempt(self, feed: Feed, trial: Trial, until: float = math.inf) -> None:
        """Run the module once, watched, to see whether it accepts the feed; see `infer`.

        A lazy module is replaced by a copy that has its shapes.
        """
        self._take(feed)
        tensors = self._tensors([_for_trial(spec) for spec in self.inputs])
        watching = trial.watching([str(spec.name) for spec in self.inputs], tensors, until)
        if not _is_lazy(self.module):
            with self.untouched(), torch.no_grad(), watching:
                self._plain(self.module, tensors)
            return
        with state.untouched_process(self.module), torch.no_grad():
            try:
                copied = copy.deepcopy(self.module, _fresh_buffers(self.module))
            except RuntimeError as error:
                hint = "run its forward once before handing it over"
                raise TargetError(f"a model with lazy parameters has to be copied: {described(error)}", hint=hint) from error
            with watching:
                self._plain(copied, tensors)
        self.module = copied
        self.notes.append("lazy parameters were given their shapes on a copy of the model")


class _LostTensorError(Exception):
    """No recorded call made a tensor that requires grad."""


def _run(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call the module. The search for the user's line ends at this frame, because frames above it are not the model's."""
    return module(*args, **kwargs)


def _for_trial(spec: InputSpec) -> Any:
    """Return an array to try a forward on: of large arrays only the first values are drawn, and repeated."""
    rng, several = np.random.default_rng(0), math.prod(spec.shape) > _DRAWN and spec.value is None
    return np.resize(replace(spec, shape=(_DRAWN,)).draw(rng), spec.shape) if several else spec.draw(rng)


def _fresh_buffers(module: nn.Module) -> dict[int, Any]:
    """Return copies of the lazy buffers, as a memo for `deepcopy`, because torch cannot copy them itself."""
    lazy = (buffer for buffer in module.buffers() if parameter.is_lazy(buffer))
    make: Any = parameter.UninitializedBuffer
    return {id(buffer): make(device=buffer.device, dtype=buffer.dtype) for buffer in lazy}


def _is_lazy(module: nn.Module) -> bool:
    return any(parameter.is_lazy(tensor) for tensor in (*module.parameters(), *module.buffers()))
