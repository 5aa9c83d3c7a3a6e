"""Run planned ONNX graphs on torch tensors, node by node."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from torch import Tensor

from gradlint.errors import ForwardError, GradlintError
from gradlint.frontends.base import PartialRun
from gradlint.frontends.user_code import described
from gradlint.onnx_torch import (
    activation,
    boxes,
    control,
    elementwise,
    index,
    microsoft,
    nn,
    norm,
    pool,
    quantize,
    random,
    reduce,
    resize,
    rnn,
    shape,
    signal,
    vision,
)
from gradlint.onnx_torch.dtypes import TORCH, DtypeError, Load, is_float8, type_bytes
from gradlint.onnx_torch.plan import STANDARD, Plan, Planner, Step
from gradlint.onnx_torch.registry import KERNELS, Context, Kernel, SubGraph, Value

FAMILIES = (
    activation,
    boxes,
    control,
    elementwise,
    index,
    microsoft,
    nn,
    norm,
    pool,
    quantize,
    random,
    reduce,
    resize,
    rnn,
    shape,
    signal,
    vision,
)
"""The modules that register kernels in the operator table when they are imported."""

Values = tuple[Value, ...]
Observer = Callable[[Step, Values, Values], Values]
Reader = Callable[[Step, Values], Values]
_HINT = "check the input shapes (--input NAME=DTYPE[SHAPE]) and that onnxruntime can run the file"
_TEXT = frozenset({"Cast", "Identity", "If", "Loop", "Optional", "OptionalHasElement", "SequenceConstruct", "Shape"})
"""Operators that accept text, which is an array of objects here."""
_NESTING = 64  # the deepest nesting of function bodies: functions of an untrusted file may be recursive


class Engine:
    """An ONNX model that is ready to run.

    `constants` holds the initializers and constants by name. `run` takes replacements for them, so that the owner decides which
    ones are parameters. `load` reads the values of a TensorProto.
    """

    def __init__(self, proto: onnx.ModelProto, load: Load) -> None:
        self._opsets = _opsets(proto.opset_import)
        self._planner = Planner(load)
        self._functions = {(f.domain, f.name, getattr(f, "overload", "")): f for f in proto.functions}
        self._bodies: dict[tuple[str, bytes], Plan] = {}
        self.plan = self._planner.graph(proto.graph, self._opsets)
        self._declared = [value.type.tensor_type.elem_type for value in proto.graph.output]

    def __deepcopy__(self, memo: dict[int, Any]) -> Engine:
        """Return the engine itself. Plans are immutable, so copies of a module share them."""
        return self

    @property
    def constants(self) -> dict[str, Value]:
        """The constants of the model by key. The owner may remove entries that it passes to `run` instead."""
        return self._planner.constants

    def run(
        self,
        feeds: Mapping[str, Value],
        constants: Mapping[str, Value],
        observer: Observer | None = None,
        reader: Reader | None = None,
    ) -> Values:
        """Run the model and return the graph outputs.

        Args:
            feeds: The graph inputs by name.
            constants: The values of constants by key; they take precedence over `self.constants`.
            observer: Called as `observer(step, outputs, inputs)` after every node of the graph and of the branches taken. It
                returns the outputs to use.
            reader: Called as `reader(step, inputs)` before every such node. It returns the inputs to use.

        Raises:
            PartialRun: The run reached an operator that is not supported.
            ForwardError: An operator failed.
        """
        outputs = _Run(self, constants, observer, reader).graph(self.plan, dict(feeds))
        return tuple(map(_as_declared, outputs, self._declared))

    def body(self, step: Step, inputs: Values) -> Plan:
        """Return the plan of the function that defines the operator of `step`. Raises PartialRun if there is none."""
        local = self._functions.get((step.domain, step.op, getattr(step.node, "overload", "")))
        local = local or self._functions.get((step.node.domain, step.op, getattr(step.node, "overload", "")))
        function, defaults, types = (local, [], b"") if local is not None else _schema_body(step, inputs)
        key = (step.id, types)
        if key not in self._bodies:
            opsets = self._opsets | _opsets(function.opset_import)
            given = {a.name: a for a in (*defaults, *function.attribute_proto, *step.node.attribute)}
            self._bodies[key] = self._planner.function(function, opsets, f"{step.id}/", given)
        return self._bodies[key]


def _opsets(imports: Sequence[onnx.OperatorSetIdProto]) -> dict[str, int]:
    return {"" if entry.domain in STANDARD else entry.domain: entry.version for entry in imports}


def _as_declared(value: Value, code: int) -> Value:
    """Convert a quantized graph output, which is held as a float, to the integer or float8 dtype that the file declares."""
    dtype = TORCH.get(code)
    if dtype is None or not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    return value if dtype.is_complex or (dtype.is_floating_point and not is_float8(dtype)) else value.to(dtype)


def _schema_body(step: Step, inputs: Values) -> tuple[Any, list[onnx.AttributeProto], bytes]:
    """Return the function that defines an operator in its schema, the attribute defaults, and the types it was built for.

    Raises PartialRun if the schema has no function.
    """
    missing = PartialRun(step.id, step.op, "gradlint cannot run this operator, and the ONNX standard has no function for it")
    try:
        schema = onnx.defs.get_schema(step.op, step.opset, step.domain)
    except onnx.defs.SchemaError:
        raise missing from None
    defaults = [a.default_value for a in schema.attributes.values() if a.default_value.name]
    if schema.has_function:
        return schema.function_body, defaults, b""
    if not schema.has_context_dependent_function:
        raise missing
    versions = [v for v in schema.context_dependent_function_opset_versions if v <= step.opset]
    types = [type_bytes(value) for value in inputs]
    built = schema.get_context_dependent_function_with_opset_version(
        max(versions, default=step.opset), step.node.SerializeToString(), types
    )
    if not built:
        raise missing
    return onnx.FunctionProto.FromString(built), defaults, b"\0".join(types)


def _read(step: Step, env: Mapping[str, Value]) -> Values:
    try:
        return tuple(env[name] if name else None for name in step.inputs)
    except KeyError as error:
        raise ForwardError(f"{step.op} at {step.id} reads {error}, which nothing before it makes", hint=_HINT) from None


class _Run:
    """One run of a model with its constants, observer and reader. `depth` is the number of enclosing function bodies."""

    def __init__(
        self,
        engine: Engine,
        constants: Mapping[str, Value],
        observer: Observer | None = None,
        reader: Reader | None = None,
        depth: int = 0,
    ) -> None:
        self._engine = engine
        self._constants = constants
        self._observer = observer
        self._reader = reader
        self._depth = depth

    def graph(self, plan: Plan, env: dict[str, Value]) -> Values:
        """Run a plan and return its outputs. `env` maps names to values, and contains the inputs and captures of the plan."""
        held = self._engine.constants
        for name, key in plan.constants.items():
            if name not in env:  # an input replaces the initializer of the same name
                env[name] = self._constants[key] if key in self._constants else held[key]
        for step in plan.steps:
            inputs = _read(step, env)
            if self._reader is not None:
                inputs = self._reader(step, inputs)
            outputs = self._call(step, inputs, env)
            if self._observer is not None:
                outputs = self._observer(step, outputs, inputs)
            env.update(zip(step.outputs, outputs, strict=False))
            for name in step.last:
                env.pop(name, None)
        return tuple(env.get(name) for name in plan.outputs)  # a function may omit outputs that are not used

    def _call(self, step: Step, inputs: Values, env: Mapping[str, Value]) -> Values:
        kernel = KERNELS.get(f"{step.domain}::{step.op}" if step.domain else step.op)
        if step.op not in _TEXT and any(isinstance(value, np.ndarray) for value in inputs):
            raise PartialRun(step.id, step.op, "it works on text, and gradlint computes with numbers")
        try:
            result = self._body(step, inputs) if kernel is None else self._kernel(kernel, step, inputs, env)
        except (GradlintError, MemoryError):
            raise
        except PartialRun as stop:
            if stop.node == step.id or step.op == "If":
                raise
            raise PartialRun(step.id, step.op, f"it needs {stop.op}: {stop.reason}") from stop  # inner nodes are not in the graph
        except (NotImplementedError, DtypeError) as error:  # torch has no kernel for this dtype, or no such dtype
            raise PartialRun(step.id, step.op, str(error)) from error
        except Exception as error:  # a file may give an operator any input and attribute
            shapes = ", ".join(str(list(getattr(value, "shape", ()))) for value in inputs)
            what = str(error) if isinstance(error, (RuntimeError, ValueError)) else described(error)
            raise ForwardError(f"{step.op} at {step.id} fails on inputs of shapes {shapes}: {what}", hint=_HINT) from error
        results = result if isinstance(result, tuple) else (result,)
        if len(results) < step.needed:
            raise ForwardError(f"{step.op} at {step.id} has {len(results)} outputs, and output {step.needed} is read", hint=_HINT)
        return results

    def _body(self, step: Step, inputs: Values) -> Values:
        if self._depth > _NESTING:
            raise RecursionError("functions call one another without end")
        plan = self._engine.body(step, inputs)
        absent = (None,) * (len(plan.inputs) - len(inputs))
        feeds = dict(zip(plan.inputs, inputs + absent, strict=True))
        return _Run(self._engine, self._constants, depth=self._depth + 1).graph(plan, feeds)

    def _kernel(self, kernel: Kernel, step: Step, inputs: Values, env: Mapping[str, Value]) -> Any:
        try:
            attrs = kernel.named(step.attrs)
        except KeyError as error:
            raise PartialRun(step.id, step.op, f"the attribute {error} is not supported") from None
        missing = kernel.required - attrs.keys()
        if missing:
            raise ForwardError(f"{step.op} at {step.id} lacks the attribute {min(missing).rstrip('_')!r}", hint=_HINT)
        while inputs and inputs[-1] is None:
            inputs = inputs[:-1]
        if kernel.arity is not None and len(inputs) > kernel.arity:
            raise PartialRun(step.id, step.op, f"its input {step.inputs[kernel.arity]!r} is not supported")
        if not kernel.wants_context:
            return kernel.function(*inputs, **attrs)

        def run(graph: SubGraph, arguments: Sequence[Value], observed: bool) -> Values:
            if not isinstance(graph, Plan):
                raise TypeError("an attribute that has to be a graph is none")
            inner = {name: env[name] for name in graph.captures}
            inner.update(zip(graph.inputs, arguments, strict=False))
            observers = (self._observer, self._reader) if observed else (None, None)
            return _Run(self._engine, self._constants, *observers, self._depth).graph(graph, inner)

        return kernel.function(Context(step.op, step.opset, step.outputs, run), *inputs, **attrs)
