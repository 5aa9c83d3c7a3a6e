"""Record the graph of one run, node by node, and pass the tensors of every node to the probe."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import CodeType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gradlint.frontends.base import Edit, Tap
from gradlint.frontends.torch import ops
from gradlint.frontends.torch.blocks import Blocks
from gradlint.frontends.torch.lineage import Lineage, Origin, dtype_name, replaced, tensors, unwrapped, version
from gradlint.frontends.torch.source import Definitions
from gradlint.frontends.user_code import calling_line
from gradlint.graph import Graph, Node, Ref, Weight

_SIDE_OUTPUTS = ("past_key_values", "hidden_states", "attentions", "cache_params", "encoder_last_hidden_state", "model_output")


class OpaqueCall(NamedTuple):
    """A call that becomes one node with the operator `op`: a custom autograd function, or a whole `module`."""

    op: str
    module: nn.Module | None = None


class Recorder:
    """The recording of one run of a module.

    If `known` is None, the run appends to `nodes`. Otherwise it only reproduces the node ids of the graph `known`, for `tap` and
    `edit`. An exception in the recorder itself, not in the user's code, is stored in `failure`; the recording then stops, but
    the run continues. `stop` is the code object of the frame at which the search for the user's line ends.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        tap: Tap | None,
        edit: Edit | None,
        known: Graph | None,
        stop: CodeType | None = None,
        blocks: Blocks | None = None,
    ) -> None:
        weights: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
        weights.update(module.named_buffers(remove_duplicate=False))
        self.lineage = Lineage({_path(name): tensor for name, tensor in weights.items()}, blocks)
        self.nodes: list[Node] = []
        self.failure: Exception | None = None
        self.depth = 0  # positive while recording is paused, as inside a call that is one node
        self.checkpoints = 0  # positive inside a checkpointed region
        self.lost = False  # whether there was a tensor that no recorded call had made
        self.gaps = 0  # operators that only the dispatch mode saw
        self._paths = {id(child): _path(name) for name, child in module.named_modules()}
        self._definitions = Definitions(module) if known is None else None
        self._stack = [("", type(module).__name__)]
        self._counts: Counter[str] = Counter()
        self._ids: set[str] = set()
        self._known, self._stop, self._tap, self._edit = known, stop, tap, edit
        self._late: list[tuple[str, tuple[Tensor, ...], tuple[Tensor | None, ...]]] = []

    def feed(self, name: str, tensor: Tensor) -> Tensor:
        """Record a graph input and return the tensor to pass to the module."""
        node_id = self._identify("", name)
        if tensor.is_floating_point() or tensor.is_complex():
            tensor = tensor.requires_grad_().clone()  # in-place writes to a leaf that requires grad are not allowed
        if self._edit is not None and (new := self._edit(node_id, (tensor,))) is not None:
            tensor = new[0]
        if self._known is None:
            self.nodes.append(Node(node_id, "input", shape=tuple(tensor.shape), dtype=dtype_name(tensor.dtype)))
        self.lineage.made(tensor, Ref(node_id))
        self._call_tap(node_id, (tensor,), ())
        return tensor

    def enter(self, module: nn.Module) -> None:
        """Record that a module is called. The calls of a module that is not in the tree are attributed to its caller."""
        path = self._paths.get(id(module))
        self._stack.append(self._stack[-1] if path is None else (path, type(module).__name__))

    def leave(self, module: nn.Module, args: Any, outcome: Any) -> None:
        """Record that a module returns. If no recorded call made one of its outputs, the whole module becomes one node."""
        if not self.depth and self.failure is None:
            with self.paused():
                self.flush_late_taps()
            if any(_is_lost(out, self.lineage.origin(out)) for out in tensors(outcome)):
                self.lost = True
                self.module(module, args, outcome)
        if len(self._stack) > 1:
            self._stack.pop()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Record nothing while the body of the context runs."""
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1

    def module(self, module: nn.Module, args: Any, outcome: Any) -> Any:
        """Record a whole module call as one node and return its outcome."""
        op, name = ops.of_module(module)
        return self.call(name, None, (args,), {}, lambda: outcome, opaque=OpaqueCall(op, module))

    def call(
        self,
        name: str,
        function: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        run: Callable[[], Any],
        *,
        opaque: OpaqueCall | None = None,
        note: str | None = None,
        gap: bool = False,
    ) -> Any:
        """Run a call by `run`, record it, and return its outcome.

        `gap` says that the dispatch mode saw the call. That is below autograd: its tensors get their `grad_fn` only afterward, so
        that the tap is called later.
        """
        with self.paused():
            call = None
            try:
                if not gap:
                    self.flush_late_taps()
                operands = (*tensors(args), *(t for key, value in kwargs.items() if key != "out" for t in tensors(value)))
                call = ops.Call(name, function, args, kwargs, operands, tuple(map(self.lineage.origin, operands)))
                self.lost = self.lost or any(map(_is_lost, call.operands, call.origins))
            except Exception as error:  # noqa: BLE001 - a fault of the recorder, not of the model; the next strategy is tried
                self.failure = error
            outcome = run()
            if call is None:
                return outcome
            try:
                return self._recorded(call, outcome, opaque, note, gap=gap)
            except Exception as error:  # noqa: BLE001
                self.failure = error
                return outcome

    def write(self, name: str, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run and record a call that writes in place to its first argument, which is a view.

        The call writes to a copy, which is then copied to the view. Otherwise autograd would drop the hooks of the view, and the
        gradient of the node that made the view would be lost.
        """
        target: Tensor = args[0]
        with self.paused():
            copy = target.clone()
            self.lineage.made(copy, self.lineage.origin(target).ref)
        outcome = self.call(name, function, (copy, *args[1:]), kwargs, lambda: function(copy, *args[1:], **kwargs))
        with self.paused():
            target.copy_(copy)
            now = self.lineage.origin(copy).ref
            self.lineage.made(target, now)
            self._write_back(target, now)
        return target if outcome is copy else outcome

    def writes_view(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Return whether a call writes in place to a view while gradients are recorded."""
        in_place = name == "__setitem__" or (name.endswith("_") and not name.endswith("__")) or kwargs.get("inplace") is True
        if not in_place or not args or not isinstance(args[0], Tensor) or args[0]._base is None:  # noqa: SLF001
            return False
        operands = list(tensors(args))
        alive = torch.is_grad_enabled() and any(operand.requires_grad for operand in operands)
        return alive and any(self.lineage.origin(operand).ref is not None for operand in operands)

    def _recorded(self, call: ops.Call, outcome: Any, opaque: OpaqueCall | None, note: str | None, *, gap: bool) -> Any:
        is_store = call.name == "__setitem__"
        outputs = [call.operands[0]] if is_store else list(tensors(outcome))
        if not outputs:
            return outcome
        if all(origin.ref is None for origin in call.origins):
            self._record_constants(call, outputs)
            return outcome
        written = is_store or _was_written(call, outputs[0])
        if not written and all(any(out is operand for operand in call.operands) for out in outputs):
            return outcome  # for example `x.contiguous()` of a contiguous x
        op = opaque.op if opaque else ops.canonical(call)
        if op == "constant":  # `zeros_like(x)` and `x.zero_()` do not depend on the values of x
            for out in outputs:
                self.lineage.made(out, None)
            if written:
                self._write_back(outputs[0], None)
            return outcome
        node_id = self._identify(self._stack[-1][0], op)
        new = outputs if gap else self._edited(node_id, outputs if written else _require_grad(call, outputs), written=written)
        if any(now is not then for now, then in zip(new, outputs, strict=True)):
            outputs, outcome = new, replaced(outcome, iter(new))
        slots = list(ops.slots(call, op))
        inputs = tuple(call.origins[slot].ref if slot is not None else None for slot in slots)
        if self._known is None:
            notes = self._region_notes(call) | ({"inplace"} if written else set()) | ({note} if note else set())
            self._append(node_id, op, inputs, outputs[0], details=self._details(call, op, opaque), notes=notes)
        for port, out in enumerate(outputs):
            self.lineage.made(out, Ref(node_id, port))
        fed = tuple(call.operands[slot] if slot is not None and call.origins[slot].ref else None for slot in slots)
        self._call_tap(node_id, tuple(outputs), fed, late=gap)
        self.gaps += gap
        if written:
            self._write_back(outputs[0], Ref(node_id))
        return outcome

    def _record_constants(self, call: ops.Call, outputs: list[Tensor]) -> None:
        """Record outputs that depend on no input. They make no node: they are weights computed from weights, or constants."""
        names = tuple(dict.fromkeys(name for origin in call.origins for name in origin.weights))
        for out in outputs:
            if names:
                self.lineage.derived(out, names)
            elif not self.lineage.knows(out):
                self.lineage.made(out, None)
        for operand, origin in zip(call.operands, call.origins, strict=True):
            if not origin.weights and not self.lineage.knows(operand):
                self.lineage.made(operand, None)

    def _edited(self, node_id: str, outputs: list[Tensor], *, written: bool) -> list[Tensor]:
        if self._edit is None:
            return outputs
        new = self._edit(node_id, tuple(out.clone() for out in outputs) if written else tuple(outputs))
        if new is None:
            return outputs
        if written:
            outputs[0].copy_(new[0])
            return outputs
        return list(new)

    def _write_back(self, view: Tensor, now: Ref | None) -> None:
        """Record, after a write to a view, that the base now depends on its former values and on those of the view."""
        base = view._base  # noqa: SLF001
        if base is None:
            return
        if not self.lineage.knows(base):  # the base exists only inside the call that made the view: treat it as the view
            self.lineage.made(base, now)
            return
        op = "reshape" if base.numel() == view.numel() else "slice"
        whole = self._identify(self._stack[-1][0], op)
        before = self.lineage.origin(base).ref
        if self._known is None:
            self._append(whole, op, (before, now), base, notes=frozenset({"inplace"}))
        self.lineage.made(base, Ref(whole))
        self._call_tap(whole, (base,), (base if before else None, view if now else None))

    def _details(self, call: ops.Call, op: str, opaque: OpaqueCall | None) -> tuple[dict[str, Weight], dict[str, Any]]:
        """Return the weights and the attributes of a call."""
        if opaque is not None and opaque.module is not None:
            return ops.module_weights(opaque.module, op, self.lineage), {"name": call.name}
        named = ops.bound(call)
        return ops.weights(call, op, named, self.lineage), ops.attributes(call, op, named)

    def _append(
        self,
        node_id: str,
        op: str,
        inputs: tuple[Ref | None, ...],
        out: Tensor,
        *,
        details: tuple[dict[str, Weight], dict[str, Any]] | None = None,
        notes: frozenset[str] = frozenset(),
    ) -> None:
        path, module_class = self._stack[-1]
        weights, attrs = details or ({}, {})
        index = node_id.rpartition(":")[2]
        assert self._definitions is not None
        node = Node(
            node_id,
            op,
            inputs,
            weights,
            attrs,
            shape=tuple(unwrapped(out).shape),
            dtype=dtype_name(out.dtype),
            module=path,
            module_class=module_class,
            call=int(index) if index.isdigit() else 0,
            source=calling_line(1, self._stop),
            definition=self._definitions.line(path),
            notes=notes,
        )
        self.nodes.append(node)

    def _region_notes(self, call: ops.Call) -> frozenset[str]:
        """Return "no-grad" and "checkpoint" if the call is inside such a region of the user's code."""
        alive = any(operand.requires_grad for operand in call.operands)
        cut = torch.is_inference_mode_enabled() or (alive and not torch.is_grad_enabled())
        return frozenset({"no-grad"} if cut else ()) | frozenset({"checkpoint"} if self.checkpoints else ())

    def _identify(self, path: str, op: str) -> str:
        stem = f"{path}:{op}" if path else op
        while True:
            index = self._counts[stem]
            self._counts[stem] += 1
            node_id = f"{stem}:{index}" if index else stem
            if node_id not in self._ids:
                self._ids.add(node_id)
                return node_id

    def _call_tap(
        self, node_id: str, outputs: tuple[Tensor, ...], inputs: tuple[Tensor | None, ...], *, late: bool = False
    ) -> None:
        if self._tap is None or (self._known is not None and node_id not in self._known):
            return
        if late:
            self._late.append((node_id, outputs, inputs))
        else:
            self._tap(node_id, tuple(map(unwrapped, outputs)), inputs)

    def flush_late_taps(self) -> None:
        """Call the tap for the nodes that the dispatch mode saw, now that their tensors have a `grad_fn`."""
        late, self._late = self._late, []
        for arguments in late:
            if self._tap is not None:
                self._tap(*arguments)

    def results(self, returned: Any) -> list[tuple[Ref, Tensor]]:
        """Return the output tensors of the model and the node output of each.

        Only tensors that require grad are returned; if there are none, float tensors; if there are none either, all tensors.
        """
        self.flush_late_taps()
        tensors = list(returned_tensors(returned))
        floats = [out for out in tensors if out.is_floating_point() or out.is_complex()]
        found: dict[Ref, Tensor] = {}
        for out in [out for out in floats if out.requires_grad] or floats or tensors:
            if (ref := self.lineage.origin(out).ref) is not None:
                found.setdefault(ref, out)
        return list(found.items())


def _path(name: str) -> str:
    """Return the path of a module or a parameter without the wrapper that `torch.compile` adds."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def _is_lost(tensor: Tensor, origin: Origin) -> bool:
    return origin.ref is None and not origin.weights and tensor.grad_fn is not None


def _was_written(call: ops.Call, out: Tensor) -> bool:
    for operand, origin in zip(call.operands, call.origins, strict=True):
        if operand is out:
            in_place = call.name.endswith("_") and not call.name.endswith("__")
            return in_place if call.name == "detach_" or operand.is_inference() else version(unwrapped(operand)) != origin.version
    return False


def _require_grad(call: ops.Call, outputs: Sequence[Tensor]) -> list[Tensor]:
    """Make the first float tensor that is computed from integer inputs require grad, so that it can be differentiated."""
    fed = [operand for operand, origin in zip(call.operands, call.origins, strict=True) if origin.ref is not None]
    integers = not any(operand.is_floating_point() or operand.is_complex() for operand in fed)
    if not integers or all(operand.dtype is torch.bool for operand in fed) or not torch.is_grad_enabled():
        return list(outputs)
    return [
        out.detach().requires_grad_().clone() if out.is_floating_point() and not out.requires_grad else out for out in outputs
    ]


def returned_tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested sequences, mappings and dataclasses, without caches and intermediate states."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from returned_tensors(item)
    elif isinstance(value, Mapping) or (dataclasses.is_dataclass(value) and not isinstance(value, type)):
        items = value if isinstance(value, Mapping) else {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        main = [key for key in items if not str(key).endswith(_SIDE_OUTPUTS)]
        for key in main or items:
            yield from returned_tensors(items[key])
