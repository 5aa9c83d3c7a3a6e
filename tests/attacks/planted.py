"""Code that shows that it was run."""

from __future__ import annotations

from pathlib import Path


class Planted:
    """Makes a file when it is unpickled."""

    def __reduce__(self):
        return Path.touch, (Path("PLANTED"),)


CALL = "__import__('pathlib').Path('PLANTED').touch()"
