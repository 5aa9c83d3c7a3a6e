"""Folders as Hugging Face saves them: `config.json` beside `.safetensors`, built by the installed transformers.

A folder is not trusted. What transformers reads is a copy of the configuration, without what makes it run or fetch code, beside
links to the weight files that were checked; it sees nothing else of the folder.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as registration

from gradlint.errors import TargetError, UnsafeFileError
from gradlint.frontends.memory import available
from gradlint.frontends.torch.weights import read_safetensors, unique_names

_SHOWN = 5
_LONGEST = 16 << 20  # bytes of a configuration: names of 20 000 classes are 1 MB
_DEEPEST = 64
_FILES = 10_000
_CODE = ("auto_map", "custom_pipelines", "trust_remote_code")
_FETCHED = re.compile(r".*implementation|use_kernels?|kernel_config|_name_or_path")  # may name code of a hub
_COUNTS = re.compile(r"layer|depth|block|stage|expert|head|group|level|repeat", re.IGNORECASE)
_MOST = 100_000
"""The most layers, heads or other parts that a configuration may ask for; lists of them are made before any module is."""

_LARGEST = 1 << 40
_SPARE = 4, 10_000
"""Modules and tensors that a model may have: so many for each tensor of its files, and so many beside."""


def is_model_folder(folder: Path) -> bool:
    """Return whether a folder holds a model with its configuration and its weights."""
    return (folder / "config.json").is_file() and next(folder.glob("*.safetensors"), None) is not None


def load_folder(folder: Path) -> nn.Module:
    """Build the model of a folder and load its weights, in single precision. Nothing in the folder is run.

    Raises TargetError if transformers is not installed, does not know the architecture, or finds keys that are missing or not
    expected, or if the model does not fit in the memory; UnsafeFileError if the configuration wants code of the folder to run, or
    a file lies elsewhere.
    """
    config = _configuration(folder)
    weights = [_own_file(folder, path) for path in sorted(folder.glob("*.safetensors"))[:_FILES]]
    tensors = sum(len(read_safetensors(path, folder / path.name)) for path in weights)
    try:
        transformers: Any = importlib.import_module("transformers")
    except ImportError as error:
        raise TargetError(f"{folder}: this folder is read by transformers", hint="pip install transformers") from error
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    kind = getattr(transformers, name, None) if isinstance(name, str) and name.isidentifier() else transformers.AutoModel
    is_model = isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)
    if not is_model and kind is not transformers.AutoModel:
        raise TargetError(f"{folder}: transformers {transformers.__version__} has no architecture {name!r:.100}")
    with _silent(transformers):
        try:
            _check_size(folder, kind, transformers.AutoConfig, config, tensors)
            model, told = _loaded(folder, kind, config, weights)
        except TargetError:
            raise
        except Exception as error:
            what = str(error).strip().split("\n")[0]
            raise TargetError(f"{folder}: transformers cannot load it: {type(error).__name__}: {what:.300}") from error
    _check_keys(folder, name or type(model).__name__, told)
    whole: nn.Module = model.float()
    return whole


def _configuration(folder: Path) -> dict[str, Any]:
    """Return the configuration without what would run or fetch code. Raises TargetError if it is damaged or asks for too much."""
    path = _own_file(folder, folder / "config.json")
    if path.stat().st_size > _LONGEST:
        raise TargetError(f"{folder}: its config.json has {path.stat().st_size} bytes, more than {_LONGEST}")
    try:
        config = json.loads(path.read_bytes(), parse_constant=_no_number, object_pairs_hook=unique_names)
    except (ValueError, OSError, RecursionError) as error:
        raise TargetError(f"{folder}: config.json cannot be read: {error!s:.200}") from error
    if not isinstance(config, dict):
        raise TargetError(f"{folder}: config.json holds no configuration")
    open_parts: list[tuple[str, Any, int]] = [("", config, 0)]
    while open_parts:
        key, value, depth = open_parts.pop()
        if depth > _DEEPEST:
            raise TargetError(f"{folder}: config.json is nested deeper than {_DEEPEST} levels")
        if isinstance(value, dict):
            if any(value.get(name) for name in _CODE):
                hint = "import it yourself and name a factory: gradlint file.py:build --weights model.safetensors"
                raise UnsafeFileError(
                    f"{folder}: its configuration wants code to be run that is not part of transformers", hint=hint
                )
            for name in [name for name in value if _FETCHED.fullmatch(name)]:
                del value[name]
            open_parts += [(name, inner, depth + 1) for name, inner in value.items()]
        elif isinstance(value, list):
            open_parts += [(key, inner, depth + 1) for inner in value]
        elif isinstance(value, int) and abs(value) > (_MOST if _COUNTS.search(key) else _LARGEST):
            raise TargetError(f"{folder}: its configuration asks for {key:.100} = {value!s:.30}, which no machine holds")
    if config.get("quantization_config"):
        raise TargetError(
            f"{folder}: its weights are quantized, and have no gradients", hint="give the folder of the original model"
        )
    return config


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number")


def _own_file(folder: Path, path: Path) -> Path:
    """Return the file behind a path in a folder: one of the folder, or of the cache that it belongs to.

    Raises UnsafeFileError for a link that leads elsewhere, a hard link, a device or a pipe.
    """
    home = Path(os.path.realpath(folder))
    real = Path(os.path.realpath(path))
    blobs = home.parent.parent / "blobs"  # of a cache of downloads, whose snapshots are folders of links
    is_cached = path.is_symlink() and home.parent.name == "snapshots" and real.parent == blobs
    if not real.is_file() or not (real.parent == home or is_cached):
        hint = "a model folder holds its own files, and no links out of it"
        raise UnsafeFileError(f"{folder}: {path.name!r} is no file of this folder", hint=hint)
    if real.stat().st_nlink > 1:
        raise UnsafeFileError(f"{folder}: {path.name!r} is a hard link to a file with other names", hint="copy the folder")
    return real


@contextmanager
def _silent(transformers: Any) -> Iterator[None]:
    level = transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled() if hasattr(transformers.logging, "is_progress_bar_enabled") else True
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)
        if bars:
            transformers.logging.enable_progress_bar()


def _check_size(folder: Path, kind: Any, auto: Any, config: Mapping[str, Any], tensors: int) -> None:
    """Build the model without values. Raises TargetError once it has more parts than its files explain, or too many bytes."""
    most, room, size, count = _SPARE[0] * tensors + _SPARE[1], available(), 0, 0

    def module(*_: Any) -> None:
        nonlocal count
        count += 1
        if count > most:
            raise _TooLargeError(f"its configuration asks for more than {most} modules, and its files hold {tensors} tensors")

    def tensor(_: Any, __: str, value: torch.Tensor | None) -> None:
        nonlocal size
        module()
        size += 0 if value is None else value.numel() * 4
        if size > room:
            raise _TooLargeError(
                f"its configuration asks for more than {size / 1e9:.3g} GB of weights, and {room / 1e9:.3g} GB of memory are free"
            )

    handles = [
        registration.register_module_module_registration_hook(module),
        registration.register_module_parameter_registration_hook(tensor),
        registration.register_module_buffer_registration_hook(tensor),
    ]
    try:
        known = getattr(kind, "config_class", None)
        built = known.from_dict(dict(config)) if known is not None else auto.for_model(**config)
        with torch.device("meta"):
            kind._from_config(built) if known is not None else kind.from_config(built)  # noqa: SLF001
    except _TooLargeError as error:
        hint = "check a smaller model of the same kind, or build it on the meta device in a factory, with --materialize"
        raise TargetError(f"{folder}: {error}", hint=hint) from error
    finally:
        for handle in handles:
            handle.remove()


class _TooLargeError(Exception):
    """The model that is being built has more parts than it may have."""


def _loaded(folder: Path, kind: Any, config: Mapping[str, Any], weights: Sequence[Path]) -> tuple[Any, Mapping[str, Any]]:
    """Let transformers load a folder that holds nothing but the configuration and links to the weights."""
    with tempfile.TemporaryDirectory(prefix="gradlint-") as view:
        (Path(view) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        for path, named in zip(weights, sorted(folder.glob("*.safetensors")), strict=False):
            (Path(view) / named.name).symlink_to(path)
        index = folder / "model.safetensors.index.json"
        if os.path.lexists(index) and not (folder / "model.safetensors").exists():
            (Path(view) / index.name).write_text(json.dumps(_index(folder, index)), encoding="utf-8")
        options = {"local_files_only": True, "trust_remote_code": False, "use_safetensors": True, "output_loading_info": True}
        model, told = kind.from_pretrained(view, **options)
        return model, told


def _index(folder: Path, path: Path) -> dict[str, Any]:
    """Return which file holds which tensor. Raises TargetError if one is not a file of the folder."""
    real = _own_file(folder, path)
    if real.stat().st_size > _LONGEST:
        raise TargetError(f"{folder}: {path.name} has more than {_LONGEST} bytes")
    try:
        found = json.loads(real.read_bytes(), object_pairs_hook=unique_names)["weight_map"].items()
        names = {file.name for file in folder.glob("*.safetensors")}
        elsewhere = not all(isinstance(file, str) and file in names for _, file in found)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise TargetError(f"{folder}: {path.name} cannot be read: {error!s:.200}") from error
    if elsewhere:
        raise TargetError(f"{folder}: {path.name} cannot be read: a tensor is said to lie in a file that is not there")
    return {"metadata": {}, "weight_map": dict(found)}


def _check_keys(folder: Path, name: str, told: Mapping[str, Any]) -> None:
    kinds = (("missing", "missing_keys"), ("unexpected", "unexpected_keys"), ("of another shape", "mismatched_keys"))
    troubles = [f"{what}: {_listed(told[key])}" for what, key in kinds if told.get(key)]
    if troubles:
        raise TargetError(f"{folder}: its weights are not those of {name}; {'; '.join(troubles)}")


def _listed(keys: Any) -> str:
    keys = sorted(map(str, keys))
    return ", ".join(keys[:_SHOWN]) + (f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else "")
