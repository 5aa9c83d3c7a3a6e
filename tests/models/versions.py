"""Skips for versions of other packages that lack what a test compares with.

Old versions have bugs and gaps of their own, and new ones lack a failure that a test shows. A skip names the first version that
differs.
"""

from __future__ import annotations

from importlib import metadata

import pytest


def older(package: str, first: str) -> bool:
    """Whether an installed package is older than a version; False if it is not installed."""
    try:
        installed = metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return _numbers(installed) < _numbers(first)


def skip_before(package: str, first: str, why: str) -> pytest.MarkDecorator:
    """A mark for what a package older than `first` cannot answer."""
    return pytest.mark.skipif(older(package, first), reason=f"before {package} {first}, {why}")


def skip_from(package: str, first: str, why: str) -> pytest.MarkDecorator:
    """A mark for what a package of version `first` or later no longer shows."""
    return pytest.mark.skipif(not older(package, first), reason=f"since {package} {first}, {why}")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.partition("+")[0].split(".")[:2])


# The minimum-norm subgradient (pytorch/pytorch issue 195931). It hides the infinite derivative of what follows the clamp; other
# versions, and other runtimes that train an ONNX file, still meet it, so that it is reported with every version.
CLAMP_PASSES_AT_ITS_BOUNDS = skip_from("torch", "2.14", "clamp passes no gradient at its bounds")
