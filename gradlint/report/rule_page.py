"""The output of `gradlint rule`: a list of rules, a page for each, or JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gradlint.catalog import Description


def listed(rules: Sequence[Description]) -> str:
    """Return one line per rule: code, severity, name."""
    return "".join(f"{rule.code}  {rule.severity:<7}  {rule.name}\n" for rule in rules)


def as_json(rules: Sequence[Description]) -> str:
    """Return a JSON list of objects with code, name, severity and documentation."""
    import json  # noqa: PLC0415 - not needed for a list or a page

    return json.dumps([rule._asdict() for rule in rules], indent=2) + "\n"


def page(documentation: str, width: int | None = None, *, bold: Callable[[str], str] = str) -> str:
    """Return a rule's documentation, filled to `width` if one is given. `bold` marks the title and the headings.

    A heading is a line that is followed by an indented paragraph.
    """
    lines = documentation.split("\n")
    if width is not None:
        lines = _filled(lines, width)
    marked = [bold(lines[0])]
    for line, following in zip(lines[1:], [*lines[2:], ""], strict=True):
        heading = line and not line.startswith(" ") and following.startswith(" ")
        marked.append(bold(line) if heading else line)
    return "\n".join([*marked, ""])


def _filled(lines: Sequence[str], width: int) -> list[str]:
    """Wrap indented paragraphs to `width`. A line that ends a sentence is not joined to the next, so that lists stay lists."""
    joined: list[str] = []
    for line in lines:
        before, indent = (joined[-1] if joined else ""), _indent(line)
        goes_on = before.strip() and not before.endswith((".", ":"))
        if goes_on and line.strip() and indent and _indent(before) == indent:
            joined[-1] += f" {line.strip()}"
        else:
            joined.append(line)
    filled = []
    for line in joined:
        filled += textwrap.wrap(line, width, subsequent_indent=_indent(line), break_on_hyphens=False) or [""]
    return filled


def _indent(line: str) -> str:
    return line[: len(line) - len(line.lstrip())]
