"""Writes the graph of one run, node by node, and hands every node's tensors to the probe."""

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
from gradlint.frontends.torch.lineage import Lineage, Origin, dtype_name, replaced, tensors, unwrapped, version
from gradlint.frontends.torch.source import Definitions
from gradlint.frontends.user_code import calling_line
from gradlint.graph import Graph, Node, Ref, Weight

_SIDE_OUTPUTS = ("past_key_values", "hidden_states", "attentions", "cache_params", "encoder_last_hidden_state", "model_output")


class Whole(NamedTuple):
    """A call whose operator is decided from outside: a custom function, or a module taken as one node."""

    op: str
    module: nn.Module | None = None


class Recorder:
    """One run of a module.

    With `known` None the run writes `nodes`; else it only repeats the ids of `known` for `tap` and `edit`. What goes wrong in
    here, and not in the user's code, is kept in `failure` and ends the recording, not the run.
    """

    def __init__(
        self, module: nn.Module, *, tap: Tap | None, edit: Edit | None, known: Graph | None, stop: CodeType | None = None
    ) -> None:
        weights: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
        weights.update(module.named_buffers(remove_duplicate=False))
        self.lineage = Lineage({_path(name): tensor for name, tensor in weights.items()})
        self.nodes: list[Node] = []
        self.failure: Exception | None = None
        self.depth = 0  # above 0 inside a call that is one node, where nothing is recorded
        self.checkpoints = 0  # above 0 inside a checkpointed region
        self.lost = False  # whether a tensor turned up that no recorded call had made
        self.gaps = 0  # operators that were seen only beneath the function mode
        self._paths = {id(child): _path(name) for name, child in module.named_modules()}
        self._definitions = Definitions(module) if known is None else None
        self._stack = [("", type(module).__name__)]
        self._counts: Counter[str] = Counter()
        self._ids: set[str] = set()
        self._known, self._stop, self._tap, self._edit = known, stop, tap, edit
        self._late: list[tuple[str, tuple[Tensor, ...], tuple[Tensor | None, ...]]] = []

    def feed(self, name: str, tensor: Tensor) -> Tensor:
        """Enter a graph input; returns the tensor to feed."""
        node_id = self._identify("", name)
        if tensor.is_floating_point() or tensor.is_complex():
            tensor = tensor.requires_grad_().clone()  # a leaf could not be written in place
        if self._edit is not None and (new := self._edit(node_id, (tensor,))) is not None:
            tensor = new[0]
        if self._known is None:
            self.nodes.append(Node(node_id, "input", shape=tuple(tensor.shape), dtype=dtype_name(tensor.dtype)))
        self.lineage.made(tensor, Ref(node_id))
        self._show(node_id, (tensor,), ())
        return tensor

    def enter(self, module: nn.Module) -> None:
        """A module is called; one that is not part of the tree counts as its caller."""
        path = self._paths.get(id(module))
        self._stack.append(self._stack[-1] if path is None else (path, type(module).__name__))

    def leave(self, module: nn.Module, args: Any, outcome: Any) -> None:
        """A module returns; an output that nobody was seen to make makes the module one node."""
        if not self.depth and self.failure is None:
            with self.silent():
                self.show_late()
            if any(_is_lost(out, self.lineage.origin(out)) for out in tensors(outcome)):
                self.lost = True
                self.module(module, args, outcome)
        if len(self._stack) > 1:
            self._stack.pop()

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Record nothing in the body."""
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1

    def module(self, module: nn.Module, args: Any, outcome: Any) -> Any:
        """Record a whole module call as one node."""
        op, name = ops.of_module(module)
        return self.call(name, None, (args,), {}, lambda: outcome, whole=Whole(op, module))

    def call(
        self,
        name: str,
        function: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        run: Callable[[], Any],
        *,
        whole: Whole | None = None,
        note: str | None = None,
        gap: bool = False,
    ) -> Any:
        """Run a call and record it; `gap` marks one seen beneath autograd, whose tensors get their history later."""
        with self.silent():
            call = None
            try:
                if not gap:
                    self.show_late()
                operands = (*tensors(args), *(t for key, value in kwargs.items() if key != "out" for t in tensors(value)))
                call = ops.Call(name, function, args, kwargs, operands, tuple(map(self.lineage.origin, operands)))
                self.lost = self.lost or any(map(_is_lost, call.operands, call.origins))
            except Exception as error:  # noqa: BLE001 - ours, not the user's; the next rung takes over
                self.failure = error
            outcome = run()
            if call is None:
                return outcome
            try:
                return self._recorded(call, outcome, whole, note, gap=gap)
            except Exception as error:  # noqa: BLE001
                self.failure = error
                return outcome

    def write(self, name: str, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run and record a call that writes its first argument, which is a view, in place.

        It is done on a copy that then goes to its place: autograd drops the hooks of a view that is written, and with them the
        gradient of whatever made the view.
        """
        target: Tensor = args[0]
        with self.silent():
            copy = target.clone()
            self.lineage.made(copy, self.lineage.origin(target).ref)
        outcome = self.call(name, function, (copy, *args[1:]), kwargs, lambda: function(copy, *args[1:], **kwargs))
        with self.silent():
            target.copy_(copy)
            now = self.lineage.origin(copy).ref
            self.lineage.made(target, now)
            self._write_back(target, now)
        return target if outcome is copy else outcome

    def writes_view(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Whether a call writes a view in place and a gradient would pass."""
        in_place = name == "__setitem__" or (name.endswith("_") and not name.endswith("__")) or kwargs.get("inplace") is True
        if not in_place or not args or not isinstance(args[0], Tensor) or args[0]._base is None:  # noqa: SLF001
            return False
        operands = list(tensors(args))
        alive = torch.is_grad_enabled() and any(operand.requires_grad for operand in operands)
        return alive and any(self.lineage.origin(operand).ref is not None for operand in operands)

    def _recorded(self, call: ops.Call, outcome: Any, whole: Whole | None, note: str | None, *, gap: bool) -> Any:
        is_store = call.name == "__setitem__"
        outputs = [call.operands[0]] if is_store else list(tensors(outcome))
        if not outputs:
            return outcome
        if all(origin.ref is None for origin in call.origins):
            self._unfed(call, outputs)
            return outcome
        written = is_store or _was_written(call, outputs[0])
        if not written and all(any(out is operand for operand in call.operands) for out in outputs):
            return outcome  # `x.contiguous()` of a contiguous x
        op = whole.op if whole else ops.canonical(call)
        if op == "constant":  # `zeros_like(x)` and `x.zero_()` hold nothing of x
            for out in outputs:
                self.lineage.made(out, None)
            if written:
                self._write_back(outputs[0], None)
            return outcome
        node_id = self._identify(self._stack[-1][0], op)
        new = outputs if gap else self._edited(node_id, outputs if written else _awake(call, outputs), written=written)
        if any(now is not then for now, then in zip(new, outputs, strict=True)):
            outputs, outcome = new, replaced(outcome, iter(new))
        slots = list(ops.slots(call, op))
        inputs = tuple(call.origins[slot].ref if slot is not None else None for slot in slots)
        if self._known is None:
            notes = self._region(call) | ({"inplace"} if written else set()) | ({note} if note else set())
            self._append(node_id, op, inputs, outputs[0], meaning=self._meaning(call, op, whole), notes=notes)
        for port, out in enumerate(outputs):
            self.lineage.made(out, Ref(node_id, port))
        fed = tuple(call.operands[slot] if slot is not None and call.origins[slot].ref else None for slot in slots)
        self._show(node_id, tuple(outputs), fed, late=gap)
        self.gaps += gap
        if written:
            self._write_back(outputs[0], Ref(node_id))
        return outcome

    def _unfed(self, call: ops.Call, outputs: list[Tensor]) -> None:
        """Outputs of weights and constants alone are no nodes: they are derived weights, or constants."""
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
        """After a write through a view: what the base holds now comes from the base as it was and from the written view."""
        base = view._base  # noqa: SLF001
        if base is None:
            return
        if not self.lineage.knows(base):  # hidden inside the call that made the view: it stands for the view
            self.lineage.made(base, now)
            return
        op = "reshape" if base.numel() == view.numel() else "slice"
        whole = self._identify(self._stack[-1][0], op)
        before = self.lineage.origin(base).ref
        if self._known is None:
            self._append(whole, op, (before, now), base, notes=frozenset({"inplace"}))
        self.lineage.made(base, Ref(whole))
        self._show(whole, (base,), (base if before else None, view if now else None))

    def _meaning(self, call: ops.Call, op: str, whole: Whole | None) -> tuple[dict[str, Weight], dict[str, Any]]:
        """Weights and attributes of a call."""
        if whole is not None and whole.module is not None:
            return ops.module_weights(whole.module, op, self.lineage), {"name": call.name}
        named = ops.bound(call)
        return ops.weights(call, op, named, self.lineage), ops.attributes(call, op, named)

    def _append(
        self,
        node_id: str,
        op: str,
        inputs: tuple[Ref | None, ...],
        out: Tensor,
        *,
        meaning: tuple[dict[str, Weight], dict[str, Any]] | None = None,
        notes: frozenset[str] = frozenset(),
    ) -> None:
        path, module_class = self._stack[-1]
        weights, attrs = meaning or ({}, {})
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

    def _region(self, call: ops.Call) -> frozenset[str]:
        """Notes on where in the user's code the call stands."""
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

    def _show(self, node_id: str, outputs: tuple[Tensor, ...], inputs: tuple[Tensor | None, ...], *, late: bool = False) -> None:
        if self._tap is None or (self._known is not None and node_id not in self._known):
            return
        if late:
            self._late.append((node_id, outputs, inputs))
        else:
            self._tap(node_id, tuple(map(unwrapped, outputs)), inputs)

    def show_late(self) -> None:
        """Tap what was seen beneath autograd, now that it has its history."""
        late, self._late = self._late, []
        for shown in late:
            if self._tap is not None:
                self._tap(*shown)

    def results(self, returned: Any) -> list[tuple[Ref, Tensor]]:
        """Tensors of what the model returned, with where they came from: the differentiable ones, else floats, else all."""
        self.show_late()
        tensors = list(_returned(returned))
        floats = [out for out in tensors if out.is_floating_point() or out.is_complex()]
        found: dict[Ref, Tensor] = {}
        for out in [out for out in floats if out.requires_grad] or floats or tensors:
            if (ref := self.lineage.origin(out).ref) is not None:
                found.setdefault(ref, out)
        return list(found.items())


def _path(name: str) -> str:
    """A module or parameter name without the wrapper that torch.compile puts around a module."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def _is_lost(tensor: Tensor, origin: Origin) -> bool:
    return origin.ref is None and not origin.weights and tensor.grad_fn is not None


def _was_written(call: ops.Call, out: Tensor) -> bool:
    for operand, origin in zip(call.operands, call.origins, strict=True):
        if operand is out:
            in_place = call.name.endswith("_") and not call.name.endswith("__")
            return in_place if call.name == "detach_" or operand.is_inference() else version(unwrapped(operand)) != origin.version
    return False


def _awake(call: ops.Call, outputs: Sequence[Tensor]) -> list[Tensor]:
    """Let the first float that is made of fed integers require grad, so that it can be differentiated."""
    fed = [operand for operand, origin in zip(call.operands, call.origins, strict=True) if origin.ref is not None]
    asleep = not any(operand.is_floating_point() or operand.is_complex() for operand in fed)
    if not asleep or all(operand.dtype is torch.bool for operand in fed) or not torch.is_grad_enabled():
        return list(outputs)
    return [
        out.detach().requires_grad_().clone() if out.is_floating_point() and not out.requires_grad else out for out in outputs
    ]


def _returned(value: Any) -> Iterator[Tensor]:
    """Tensors of nested sequences, mappings and dataclasses, without caches and intermediate states."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _returned(item)
    elif isinstance(value, Mapping) or (dataclasses.is_dataclass(value) and not isinstance(value, type)):
        items = value if isinstance(value, Mapping) else {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        main = [key for key in items if not str(key).endswith(_SIDE_OUTPUTS)]
        for key in main or items:
            yield from _returned(items[key])
