"""Nodes held against the schemas of their operators: onnx infers shapes without a check, and not every node survives that."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import onnx

STANDARD = ("", "ai.onnx")
_AXES = 64  # numpy has no more; onnx looks for an axis at places in memory where there is none


class Form(NamedTuple):
    """What a node of an operator must look like."""

    inputs: tuple[int, int]
    outputs: tuple[int, int]
    required: frozenset[str]
    types: Mapping[str, int]


def opsets_of(proto: onnx.ModelProto) -> dict[str, int]:
    """The version of each domain that a model imports; the standard domain is ""."""
    opsets = {item.domain: item.version for item in proto.opset_import}
    opsets[""] = opsets.pop("ai.onnx", opsets.get("", 1))
    return opsets


@lru_cache(maxsize=4096)
def schema_of(op_type: str, domain: str, version: int) -> Any:
    """The schema of an operator at an opset version, None where onnx has none."""
    try:
        return onnx.defs.get_schema(op_type, max_inclusive_version=version, domain="" if domain in STANDARD else domain)
    except (onnx.defs.SchemaError, OverflowError, TypeError, ValueError):
        return None


@lru_cache(maxsize=4096)
def _form(op_type: str, domain: str, version: int) -> Form | None:
    schema = schema_of(op_type, domain, version)
    if schema is None:
        return None
    return Form(
        (schema.min_input, schema.max_input),
        (schema.min_output, schema.max_output),
        frozenset(name for name, attribute in schema.attributes.items() if attribute.required),
        {name: attribute.type.value for name, attribute in schema.attributes.items()},
    )


def misfit(node: onnx.NodeProto, opsets: Mapping[str, int]) -> str | None:
    """Why a node is not one of its operator, None when it is or when the operator is not known."""
    domain = "" if node.domain in STANDARD else node.domain
    form = _form(node.op_type, domain, opsets.get(domain, 1))
    if form is None:
        return None
    for given, (low, high), what in ((node.input, form.inputs, "inputs"), (node.output, form.outputs, "outputs")):
        if not low <= len(given) <= high:
            return f"{node.op_type} {node.name!r} has {len(given)} {what}"
    present = {attribute.name: attribute for attribute in node.attribute}
    if not form.required <= present.keys():
        return f"{node.op_type} {node.name!r} lacks the attribute {min(form.required - present.keys())!r}"
    for name, attribute in present.items():
        if not attribute_fits(attribute, form.types.get(name)):
            return f"{node.op_type} {node.name!r} has an attribute {name!r} of another type"
        if name.endswith("axis") and abs(attribute.i) > _AXES:
            return f"{node.op_type} {node.name!r} names an axis {attribute.i}"
    return None


def attribute_fits(attribute: onnx.AttributeProto, expected: int | None) -> bool:
    """Whether an attribute has the type that its schema gives it, and a value where one cannot be left out."""
    if attribute.ref_attr_name or expected is None:
        return True
    if attribute.type == onnx.AttributeProto.GRAPH and not attribute.HasField("g"):
        return False
    return bool(attribute.type == expected)
