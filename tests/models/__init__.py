"""Models, cases and reports that more than one test looks at."""

from pathlib import Path

EXAMPLE_PACK = Path(__file__).parent / "example_pack"
"""A rule pack of two files, as `docs/rule-packs.md` describes one."""
