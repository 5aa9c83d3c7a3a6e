"""Limits for ONNX files. A file is not trusted: every size is compared with a limit before memory is allocated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx

from gradlint.errors import TargetError
from gradlint.frontends.onnx.walk import subgraphs

Key = tuple[str, str]  # domain and name of a local function


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of `read_onnx`. The defaults far exceed what published models need, and are safe on a machine with 2 GB."""

    nodes: int = 1_000_000
    """The most nodes of the model, including subgraphs and local functions, which count once per call."""

    inlined: int = 20_000
    """The most nodes that calls of local functions may stand for, unless they are few for each node as written."""

    copies: int = 100
    """The most nodes that a node as written may stand for on average."""

    rank: int = 64
    """The most axes of a tensor; numpy allows no more."""

    skeleton: int = 1 << 28
    """The most bytes of the file without the weights that stay on disk."""

    operands: int = 1 << 14
    """The most inputs, or outputs, of a node."""

    name: int = 1 << 13
    """The most characters of a name; reports repeat names."""

    elements: int = 1 << 28
    """The most elements of a constant that is computed from others."""

    grown: int = 1 << 22
    """The most elements of a constant that is larger than all constants it is computed from."""

    steps: int = 64
    """The most operators that are computed to read a large constant."""

    vector: int = 1 << 20
    """The most elements of a vector that shape inference propagates; onnx allocates an object for each."""


DEFAULT = Limits()


def too_large(label: str, what: str) -> TargetError:
    """Return the error for a file that exceeds a limit. `what` completes the message after the label."""
    return TargetError(
        f"{label}: {what}", hint="if the file is sound, raise the limit: read_onnx(path, limits=Limits(...)) from Python"
    )


def check_size(label: str, proto: onnx.ModelProto, limits: Limits) -> None:
    """Raise TargetError if local functions are recursive, or if the model has more nodes or longer names than the limit."""
    for nodes in (proto.graph.node, *(function.node for function in proto.functions)):
        _check_nodes(label, nodes, limits)
    sizes = _function_sizes(label, proto)
    total = _size(proto.graph.node, sizes)
    if total > limits.nodes:
        raise too_large(label, f"has {total} nodes, more than {limits.nodes}")
    written = _size(proto.graph.node, {}) + sum(_size(function.node, {}) for function in proto.functions)
    if total > max(limits.inlined, limits.copies * written):
        raise too_large(label, f"has {written} nodes that stand for {total} through calls of local functions")


def _check_nodes(label: str, nodes: Iterable[onnx.NodeProto], limits: Limits) -> None:
    for node in nodes:
        most = max(len(node.input), len(node.output))
        if most > limits.operands:
            raise too_large(label, f"a node has {most} inputs or outputs, more than {limits.operands}")
        longest = max(map(len, (node.name, node.op_type, node.domain, *node.input, *node.output)))
        if longest > limits.name:
            raise too_large(label, f"a name has {longest} characters, more than {limits.name}")
        for graph in subgraphs(node):
            _check_nodes(label, graph.node, limits)


def _function_sizes(label: str, proto: onnx.ModelProto) -> Mapping[Key, int]:
    """Return the number of nodes of each local function after its calls are inlined."""
    waiting = {(function.domain, function.name): function.node for function in proto.functions}
    calls = {key: set(_called(nodes)) & waiting.keys() for key, nodes in waiting.items()}
    readers: dict[Key, list[Key]] = {key: [] for key in waiting}
    for key, called in calls.items():
        for other in called:
            readers[other].append(key)
    sizes: dict[Key, int] = {}
    ready = [key for key, called in calls.items() if not called]
    while ready:
        key = ready.pop()
        sizes[key] = _size(waiting[key], sizes)
        for reader in readers[key]:
            calls[reader].discard(key)
            if not calls[reader]:
                ready.append(reader)
    circle = sorted(name for domain, name in waiting.keys() - sizes.keys())
    if circle:
        raise TargetError(f"{label}: the local functions {circle} call one another in a circle")
    return sizes


def _called(nodes: Iterable[onnx.NodeProto]) -> Iterable[Key]:
    for node in nodes:
        yield node.domain, node.op_type
        for graph in subgraphs(node):
            yield from _called(graph.node)


def _size(nodes: Iterable[onnx.NodeProto], sizes: Mapping[Key, int]) -> int:
    total = 0
    for node in nodes:
        total += sizes.get((node.domain, node.op_type), 1)
        for graph in subgraphs(node):
            total += _size(graph.node, sizes)
    return total
