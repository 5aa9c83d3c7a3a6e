"""Check nodes against the schemas of their operators, because onnx infers shapes unchecked and can crash on invalid nodes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import NamedTuple

import onnx

STANDARD = ("", "ai.onnx")
_AXES = 64  # numpy allows no more; for a larger axis, onnx reads memory out of bounds


class Signature(NamedTuple):
    """What the schema of an operator requires of a node.

    `inputs` and `outputs` are their least and greatest numbers, `required` the names of required attributes, `types` the types of
    all attributes, `defaults` the values of those that have one, and `operands` the names of the inputs, and `needed`
    says which of them may not be left out. A schema makes all of this anew whenever it is asked.
    """

    inputs: tuple[int, int]
    outputs: tuple[int, int]
    required: frozenset[str]
    types: Mapping[str, int]
    defaults: Mapping[str, onnx.AttributeProto]
    operands: tuple[str, ...]
    needed: tuple[bool, ...]


def opsets_of(proto: onnx.ModelProto) -> dict[str, int]:
    """Return the opset version of each domain that a model imports. The standard domain is ""."""
    opsets = {item.domain: item.version for item in proto.opset_import}
    opsets[""] = opsets.pop("ai.onnx", opsets.get("", 1))
    return opsets


@lru_cache(maxsize=4096)
def signature_of(op_type: str, domain: str, version: int) -> Signature | None:
    """Return what the schema of an operator at an opset version says; None if onnx has no schema."""
    try:
        schema = onnx.defs.get_schema(op_type, max_inclusive_version=version, domain="" if domain in STANDARD else domain)
    except (onnx.defs.SchemaError, OverflowError, TypeError, ValueError):
        return None
    attributes = schema.attributes
    defaults = {name: attribute.default_value for name, attribute in attributes.items()}
    return Signature(
        (schema.min_input, schema.max_input),
        (schema.min_output, schema.max_output),
        frozenset(name for name, attribute in attributes.items() if attribute.required),
        {name: attribute.type.value for name, attribute in attributes.items()},
        {name: default for name, default in defaults.items() if default.name},
        tuple(formal.name for formal in schema.inputs),
        tuple(formal.option == onnx.defs.OpSchema.FormalParameterOption.Single for formal in schema.inputs),
    )


def schema_violation(node: onnx.NodeProto, opsets: Mapping[str, int]) -> str | None:
    """Return a message that says how a node violates its schema; None if it does not, or if the operator has no schema."""
    domain = "" if node.domain in STANDARD else node.domain
    signature = signature_of(node.op_type, domain, opsets.get(domain, 1))
    if signature is None:
        return None
    for given, (low, high), what in ((node.input, signature.inputs, "inputs"), (node.output, signature.outputs, "outputs")):
        if not low <= len(given) <= high:
            return f"{node.op_type} {node.name!r} has {len(given)} {what}"
    for name, operand, needed in zip(node.input, signature.operands, signature.needed, strict=False):
        if needed and not name:
            return f"{node.op_type} {node.name!r} leaves out its input {operand!r}"
    present = {attribute.name: attribute for attribute in node.attribute}
    if not signature.required <= present.keys():
        return f"{node.op_type} {node.name!r} lacks the attribute {min(signature.required - present.keys())!r}"
    for name, attribute in present.items():
        if not attribute_fits(attribute, signature.types.get(name)):
            return f"{node.op_type} {node.name!r} has an attribute {name!r} of another type"
        if name.endswith("axis") and abs(attribute.i) > _AXES:
            return f"{node.op_type} {node.name!r} names an axis {attribute.i}"
    parts = present.get("num_outputs")
    if node.op_type == "Split" and not domain and parts is not None and parts.i != len(node.output):  # onnx would make them all
        return f"Split {node.name!r} has {len(node.output)} outputs and says {parts.i}"
    return None


def first_violation(graphs: Iterator[onnx.GraphProto], opsets: Mapping[str, int]) -> str | None:
    """Return how the first node of some graphs that violates its schema does so; None if there is none."""
    found = (schema_violation(node, opsets) for graph in graphs for node in graph.node)
    return next((reason for reason in found if reason is not None), None)


def attribute_fits(attribute: onnx.AttributeProto, expected: int | None) -> bool:
    """Return whether an attribute has the type that its schema declares and, if it is a graph, a value."""
    if attribute.ref_attr_name or expected is None:
        return True
    if attribute.type == onnx.AttributeProto.GRAPH and not attribute.HasField("g"):
        return False
    return bool(attribute.type == expected)
