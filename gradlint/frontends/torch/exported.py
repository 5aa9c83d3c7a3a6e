"""`.pt2` files: an exported program, read from their data alone.

`torch.export.load` runs code of such a file: pickled tensors, objects and sample inputs, guards that it passes to `exec`, and
symbolic expressions that sympy evaluates. Here a copy of the archive is made that holds none of these, and what cannot be left
out is refused.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gradlint.errors import TargetError, UnsafeFileError
from gradlint.frontends.inputs import InputSpec
from gradlint.frontends.torch.lineage import dtype_name

_TARGET = re.compile(r"(torch\.ops\.(aten|prims|higher_order)\.\w+(\.\w+)?|_operator\.\w+|math\.\w+|torch\.sym_\w+)")
_TOKENS = re.compile(r"([A-Za-z]\w*|\d+(\.\d+)?|[\s+\-*/(),<>=!&|~%])*")
_SYMBOL = re.compile(r"[A-Za-z]{1,2}\d+")
_FUNCTION_NAMES = (
    "Symbol Integer Rational Add Mul Pow Abs positive integer nonnegative real True False "
    "Max Min Mod PythonMod FloorDiv CleanDiv CeilDiv IntTrueDiv TruncToInt CeilToInt ModularIndexing Eq Ne"
)
_FUNCTIONS = frozenset(_FUNCTION_NAMES.split())
_SHAPES = frozenset({"builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict", "builtins.NoneType"})
_MOST_BYTES = 64 << 30
_WAY_OUT = "export the model to ONNX, or name the code that builds it: gradlint file.py:build_model"


def load_exported(path: Path) -> tuple[nn.Module, tuple[InputSpec, ...]]:
    """Return the module of a `.pt2` file, and the specification of each of its inputs.

    Raises UnsafeFileError if the file cannot be read without running code from it, and TargetError if it is damaged or of a
    version that the installed torch does not read.
    """
    program = _read(path)
    module: nn.Module = program.module(check_guards=False) if _takes_guards(program) else program.module()
    vars(module)["train"] = lambda _mode=True: module  # the mode is that of the export
    names = set(program.graph_signature.user_inputs)
    specs = []
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in names:
            value = node.meta.get("val")
            if not isinstance(value, Tensor):
                raise TargetError(f"{path}: its input {node.name} is no tensor", hint=_WAY_OUT)
            shape = tuple(int(size) for size in value.shape)
            specs.append(InputSpec(node.name, dtype_name(value.dtype), shape))
    return module, tuple(specs)


def _takes_guards(program: Any) -> bool:
    return "check_guards" in program.module.__code__.co_varnames


def _read(path: Path) -> Any:
    try:
        archive = _without_code(path)
        return torch.export.load(archive)
    except TargetError:
        raise
    except Exception as error:
        what = str(error).strip().split("\n")[0]
        raise TargetError(
            f"{path}: it cannot be read as an exported program: {type(error).__name__}: {what}", hint=_WAY_OUT
        ) from error


def _without_code(path: Path) -> io.BytesIO:
    """Return a copy of the archive with nothing in it that reading would run."""
    copy = io.BytesIO()
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(copy, "w") as clean:
        if sum(entry.file_size for entry in archive.infolist()) > _MOST_BYTES:
            raise TargetError(f"{path}: it holds more than {_MOST_BYTES >> 30} GB")
        names = archive.namelist()
        root = names[0].split("/")[0] if names else ""
        if f"{root}/archive_format" not in names or f"{root}/models/model.json" not in names:
            hint = "save it again with torch.export.save of torch 2.8 or newer"
            raise UnsafeFileError(f"{path}: exported programs of older versions of torch hold pickles", hint=hint)
        for name in names:
            inside = name.removeprefix(f"{root}/")
            content = archive.read(name)
            if inside.startswith(("data/aotinductor", "data/executorch", "extra/")):
                raise UnsafeFileError(
                    f"{path}: it holds {inside}, which is compiled code or not part of the model", hint=_WAY_OUT
                )
            if inside.startswith("data/sample_inputs/"):
                content = b""  # a pickle
            elif inside.endswith("_config.json"):
                _refuse_pickles(path, json.loads(content))
            elif inside.startswith("models/"):
                document = json.loads(content)
                for problem in _sanitized(document):
                    raise UnsafeFileError(f"{path}: {problem}", hint=_WAY_OUT)
                content = json.dumps(document).encode()
            clean.writestr(name, content)
    copy.seek(0)
    return copy


def _refuse_pickles(path: Path, config: Any) -> None:
    for name, entry in config.get("config", {}).items():
        if entry.get("use_pickle", True) is not False or not str(entry.get("path_name", "")).startswith(("weight_", "tensor_")):
            raise UnsafeFileError(f"{path}: {name} is stored as a pickle, and reading it would run code", hint=_WAY_OUT)


def _sanitized(document: Any) -> Iterator[str]:
    """Take out of a program what is run when it is read; yield what cannot be taken out."""
    open_parts = [document]
    while open_parts:
        part = open_parts.pop()
        if isinstance(part, list):
            open_parts += part
        if not isinstance(part, dict):
            continue
        for key, value in part.items():
            if key == "guards_code":
                part[key] = []
            elif key == "metadata":
                part[key] = {}
            elif (
                key in {"target", "as_operator"} and isinstance(value, str) and "inputs" in part and not _TARGET.fullmatch(value)
            ):
                yield f"it calls {value}, which is no operator of torch"
            elif key == "expr_str" and not _is_arithmetic(value):
                yield f"a size in it is {value!r:.60}, which is not arithmetic"
            elif key in {"in_spec", "out_spec"} and value and not _is_plain(value):
                yield "its arguments or results are of a type of its own"
            else:
                open_parts.append(value)


def _is_arithmetic(text: Any) -> bool:
    text = re.sub(r"'([A-Za-z]{1,2}\d+)'", r"\1", text) if isinstance(text, str) else "?"  # Symbol('s0', integer=True)
    names = re.findall(r"[A-Za-z]\w*", text) if _TOKENS.fullmatch(text) else ["?"]
    return all(name in _FUNCTIONS or _SYMBOL.fullmatch(name) for name in names)


def _is_plain(spec: Any) -> bool:
    """Return whether a description of nested arguments, JSON in a string, names only tuples, lists and dicts."""
    open_parts = [json.loads(spec)]
    while open_parts:
        part = open_parts.pop()
        if isinstance(part, list):
            open_parts += part
        elif isinstance(part, dict):
            if part.get("type") is not None and part["type"] not in _SHAPES:
                return False
            open_parts += [value for key, value in part.items() if key != "type"]
    return "__enum__" not in spec and "default_factory" not in spec
