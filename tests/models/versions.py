"""Skips for versions of other packages that lack what a test compares with.

The oldest versions that pyproject.toml allows have bugs and gaps of their own. A skip names the first version without them.
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


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.partition("+")[0].split(".")[:2])
