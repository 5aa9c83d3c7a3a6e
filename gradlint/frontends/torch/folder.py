"""Folders as Hugging Face saves them: `config.json` beside `.safetensors`, built by the installed transformers."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from torch import nn

from gradlint.errors import TargetError, UnsafeFileError

_SHOWN = 5


def is_model_folder(folder: Path) -> bool:
    """Return whether a folder holds a model with its configuration and its weights."""
    return (folder / "config.json").is_file() and next(folder.glob("*.safetensors"), None) is not None


def load_folder(folder: Path) -> nn.Module:
    """Build the model of a folder and load its weights, in single precision. Nothing in the folder is run.

    Raises TargetError if transformers is not installed, does not know the architecture, or finds keys that are missing or not
    expected; UnsafeFileError if the configuration wants code of the folder to run.
    """
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (ValueError, OSError, RecursionError) as error:
        raise TargetError(f"{folder}: config.json cannot be read: {error}") from error
    if not isinstance(config, dict) or config.get("auto_map"):
        hint = "import it yourself and name a factory: gradlint file.py:build --weights model.safetensors"
        raise UnsafeFileError(f"{folder}: its configuration wants code to be run that is not part of transformers", hint=hint)
    try:
        transformers: Any = importlib.import_module("transformers")
    except ImportError as error:
        raise TargetError(f"{folder}: this folder is read by transformers", hint="pip install transformers") from error
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    kind = getattr(transformers, name, None) if isinstance(name, str) else transformers.AutoModel
    if not isinstance(kind, type) or not hasattr(kind, "from_pretrained"):
        raise TargetError(f"{folder}: transformers {transformers.__version__} has no architecture {name!r}")
    level = transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled() if hasattr(transformers.logging, "is_progress_bar_enabled") else True
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        options = {"local_files_only": True, "trust_remote_code": False, "use_safetensors": True, "output_loading_info": True}
        model, told = kind.from_pretrained(str(folder.resolve()), **options)
    except Exception as error:
        what = str(error).strip().split("\n")[0]
        raise TargetError(f"{folder}: transformers cannot load it: {type(error).__name__}: {what}") from error
    finally:
        transformers.logging.set_verbosity(level)
        if bars:
            transformers.logging.enable_progress_bar()
    troubles = [
        f"{what}: {_listed(told[key])}"
        for what, key in (("missing", "missing_keys"), ("unexpected", "unexpected_keys"))
        if told[key]
    ]
    if troubles:
        raise TargetError(f"{folder}: its weights are not those of {name or type(model).__name__}; {'; '.join(troubles)}")
    whole: nn.Module = model.float()
    return whole


def _listed(keys: Any) -> str:
    keys = sorted(map(str, keys))
    return ", ".join(keys[:_SHOWN]) + (f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else "")
