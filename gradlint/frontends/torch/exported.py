"""`.pt2` files: an exported program, read from their data alone.

`torch.export.load` runs code of such a file: pickled tensors, objects and sample inputs, guards that it passes to `exec`, and
symbolic expressions that sympy evaluates. Here a copy of the archive is made that holds none of these, and what cannot be left
out is refused.
"""

from __future__ import annotations

import io
import json
import math
import re
import zipfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gradlint.errors import TargetError, UnsafeFileError
from gradlint.frontends.inputs import InputSpec
from gradlint.frontends.torch.lineage import dtype_name
from gradlint.frontends.torch.sizes import is_size
from gradlint.frontends.torch.weights import unique_names

_TARGET = re.compile(r"(torch\.ops\.(aten|prims|higher_order)\.\w+(\.\w+)?|_operator\.\w+|math\.\w+|torch\.sym_\w+)")
_SHAPES = frozenset({"builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict", "builtins.NoneType"})
_MOST_ENTRIES = 1 << 17
_LONGEST = 64 << 20  # bytes of the description of a program
_ENTRY = re.compile(r"[\w.\-+ /=@]{1,1000}")
_NAME = re.compile(r"[\w.@:+\-]{0,1000}", re.ASCII)
_TEXTS = frozenset({"as_string", "as_strings", "expr_str", "in_spec", "out_spec"})  # read elsewhere, or only ever quoted
_MOST_ELEMENTS = 1 << 32
_PLACE = re.compile(r"(weight|tensor)_\d{1,9}")
_WAY_OUT = "export the model to ONNX, or name the code that builds it: gradlint file.py:build_model"


def load_exported(path: Path) -> tuple[nn.Module, tuple[InputSpec, ...]]:
    """Return the module of a `.pt2` file, and the specification of each of its inputs.

    Raises UnsafeFileError if the file cannot be read without running code from it, and TargetError if it is damaged or of a
    version that the installed torch does not read.
    """
    try:
        program = torch.export.load(_without_code(path))
        module: nn.Module = program.module(check_guards=False) if _takes_guards(program) else program.module()
        specs = _inputs(path, program)
    except (TargetError, MemoryError):
        raise
    except Exception as error:
        what = str(error).strip().split("\n")[0]
        raise TargetError(
            f"{path}: it cannot be read as an exported program: {type(error).__name__}: {what:.300}", hint=_WAY_OUT
        ) from error
    vars(module)["train"] = lambda _mode=True: module  # the mode is that of the export
    return module, specs


def _inputs(path: Path, program: Any) -> tuple[InputSpec, ...]:
    names = set(program.graph_signature.user_inputs)
    specs = []
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in names:
            value = node.meta.get("val")
            if not isinstance(value, Tensor):
                raise TargetError(f"{path}: its input {node.name} is no tensor", hint=_WAY_OUT)
            shape = tuple(int(size) for size in value.shape)
            if math.prod(shape) > _MOST_ELEMENTS:
                raise TargetError(f"{path}: its input {node.name} has the shape {shape}, which no machine holds", hint=_WAY_OUT)
            specs.append(InputSpec(node.name, dtype_name(value.dtype), shape))
    return tuple(specs)


def _takes_guards(program: Any) -> bool:
    return "check_guards" in program.module.__code__.co_varnames


def _without_code(path: Path) -> io.BytesIO:
    """Return a copy of the archive with nothing in it that reading would run."""
    copy = io.BytesIO()
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(copy, "w") as clean:
        _check_entries(path, archive)
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
                    f"{path}: it holds {inside:.100}, which is compiled code or not part of the model", hint=_WAY_OUT
                )
            if inside.startswith("data/sample_inputs/"):
                content = b""  # a pickle
            elif inside.endswith("_config.json"):
                folder = name.rpartition("/")[0]
                empty = {
                    entry.filename.rpartition("/")[2]
                    for entry in archive.infolist()
                    if not entry.file_size and entry.filename.startswith(folder)
                }
                _refuse_pickles(path, _parsed(content), empty)
            elif inside.startswith("models/"):
                document = _parsed(content)
                for problem in _sanitized(document):
                    raise UnsafeFileError(f"{path}: {problem}", hint=_WAY_OUT)
                content = json.dumps(document).encode()
            clean.writestr(name, content)
    copy.seek(0)
    return copy


def _check_entries(path: Path, archive: zipfile.ZipFile) -> None:
    """Raise TargetError unless the entries are stored as they are, under names of their own, in one folder."""
    entries = archive.infolist()
    names = [entry.filename for entry in entries]
    total, there = sum(entry.file_size for entry in entries), path.stat().st_size
    if total > there or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise TargetError(f"{path}: its entries stand for {total} bytes, and the file has {there}: torch saves them as they are")
    if len(names) > _MOST_ENTRIES or len(set(names)) < len(names):
        raise TargetError(f"{path}: it has {len(names)} entries, {len(set(names))} of them with a name of their own")
    for name in names:
        if (
            not _ENTRY.fullmatch(name)
            or {"", ".", ".."}.intersection(name.split("/"))
            or name.split("/")[0] != names[0].split("/")[0]
        ):
            raise UnsafeFileError(f"{path}: its entry {name:.100} is none that torch writes", hint=_WAY_OUT)


def _parsed(content: bytes) -> Any:
    """Parse JSON. Raises ValueError for more than a program needs, and RecursionError for what is nested too deep."""
    if len(content) > _LONGEST:
        raise ValueError(f"a description of {len(content)} bytes")
    return json.loads(content, object_pairs_hook=unique_names)


def _refuse_pickles(path: Path, config: Any, empty: Collection[str]) -> None:
    """Raise UnsafeFileError unless all tensors are stored as bytes, and TargetError if they are in one of the `empty` entries."""
    for name, entry in config.get("config", {}).items():
        if not _NAME.fullmatch(name):
            raise UnsafeFileError(f"{path}: a name in it is {name!r:.60}", hint=_WAY_OUT)
        if entry.get("use_pickle", True) is not False or not _PLACE.fullmatch(str(entry.get("path_name", ""))):
            raise UnsafeFileError(f"{path}: {name:.100} is stored as a pickle, and reading it would run code", hint=_WAY_OUT)
        if entry["path_name"] in empty and all(size.get("as_int") for size in entry["tensor_meta"]["sizes"]):
            raise TargetError(f"{path}: the values of {name} are missing")  # torch would take them for zeros


def _sanitized(document: Any) -> Iterator[str]:
    """Take out of a program what is run when it is read; yield what cannot be taken out."""
    open_parts = [document]
    while open_parts:
        part = open_parts.pop()
        if isinstance(part, list):
            open_parts += part
        if isinstance(part, str) and not _NAME.fullmatch(part):
            yield f"a name in it is {part!r:.60}"  # torch writes names into the code that it makes of a graph
        if not isinstance(part, dict):
            continue
        for key, value in part.items():
            if not _NAME.fullmatch(key):
                yield f"a name in it is {key!r:.60}"
            elif key == "guards_code":
                part[key] = []
            elif key == "metadata":
                part[key] = {}
            elif (
                key in {"target", "as_operator"} and isinstance(value, str) and "inputs" in part and not _TARGET.fullmatch(value)
            ):
                yield f"it calls {value:.100}, which is no operator of torch"
            elif key == "expr_str" and not is_size(value):
                yield f"a size in it is {value!r:.60}, which is not arithmetic"
            elif key in {"in_spec", "out_spec"} and value and not _is_plain(value):
                yield "its arguments or results are of a type of its own"
            elif key not in _TEXTS:
                open_parts.append(value)


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
