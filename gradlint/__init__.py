"""gradlint says, before a training run, whether a model's gradients will explode or vanish, where, why, and what to change.

Every public name is imported on first access, so that `import gradlint` imports neither torch nor onnx nor rich.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradlint.api import CheckFailedError, Inputs, Report, check
    from gradlint.errors import GradlintError
    from gradlint.frontends.targets import Target
    from gradlint.recipe import Recipe
    from gradlint.result import Confidence, Finding, Severity, Verdict
    from gradlint.rule import Example, Rule

    __version__: str

_DEFINED_IN = {
    "CheckFailedError": "gradlint.api",
    "Confidence": "gradlint.result",
    "Example": "gradlint.rule",
    "Finding": "gradlint.result",
    "GradlintError": "gradlint.errors",
    "Inputs": "gradlint.api",
    "Recipe": "gradlint.recipe",
    "Report": "gradlint.api",
    "Rule": "gradlint.rule",
    "Severity": "gradlint.result",
    "Target": "gradlint.frontends.targets",
    "Verdict": "gradlint.result",
    "check": "gradlint.api",
}

__all__ = [
    "CheckFailedError",
    "Confidence",
    "Example",
    "Finding",
    "GradlintError",
    "Inputs",
    "Recipe",
    "Report",
    "Rule",
    "Severity",
    "Target",
    "Verdict",
    "__version__",
    "check",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("gradlint.report").tool_version()
    home = _DEFINED_IN.get(name)
    if home is None:
        raise AttributeError(f"module 'gradlint' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return __all__
