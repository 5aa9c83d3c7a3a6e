"""Writes docs/rules/ from the docstrings of the rules; `--check` only says whether it is up to date."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from gradlint.catalog import load_rules
from gradlint.rule import Needs, Rule

OUT = Path(__file__).resolve().parent / "rules"
FAMILIES = {
    "GL1": "Initialization",
    "GL2": "Depth and residual sums",
    "GL3": "Normalization",
    "GL4": "Activations",
    "GL5": "Recurrence",
    "GL6": "Input and numeric range",
    "GL7": "Training recipe",
    "GL8": "Measured",
    "GL9": "Coverage",
}
_NEEDS = {
    Needs.GRAPH: "the graph alone; the probe confirms or refutes it",
    Needs.PROBE: "the probe",
    Needs.RECIPE: "a recipe",
    Needs.LOSS: "a loss",
}
_HEADING = re.compile(r"^(\S.*):$", re.MULTILINE)


def page(rule: type[Rule]) -> str:
    """One rule as markdown: its docstring, with headings as headings and references as a list."""
    body, _, references = rule.documentation().partition("\n")[2].partition("References:\n")
    text = re.sub(r"^ {4}", "", _HEADING.sub(r"## \1\n", body), flags=re.MULTILINE).strip()
    entries = "\n".join(f"- {line.strip()}" for line in references.strip().splitlines())
    facts = f"Severity: {rule.severity.value}. Needs {_NEEDS[rule.needs]}."
    code = f"[rules/{_stem(rule)}.py](../../rules/{_stem(rule)}.py)"
    head = f"# {rule.code} {rule.name}\n\n{_capital(_sentence(rule))}\n\n{facts} Source: {code}."
    return f"{head}\n\n{text}\n\n## References\n\n{entries}\n"


def index(rules: Sequence[type[Rule]]) -> str:
    """The table of all rules, by family."""
    parts = ["# Rules", "Written by `python docs/build.py` from the docstrings in `rules/`."]
    for prefix, family in FAMILIES.items():
        members = [rule for rule in rules if rule.code.startswith(prefix)]
        if members:
            rows = [
                f"| [{rule.code}]({_file(rule)}) | {rule.name} | {rule.severity.value} | {_capital(_sentence(rule))} |"
                for rule in members
            ]
            parts += [f"## {family}", "\n".join(["| code | name | severity | what |", "|---|---|---|---|", *rows])]
    return "\n\n".join(parts) + "\n"


def build() -> dict[Path, str]:
    """Every file of docs/rules with its content."""
    rules = load_rules()
    pages = {OUT / _file(rule): page(rule) for rule in rules}
    return {OUT / "README.md": index(rules), **pages}


def stale(files: dict[Path, str]) -> list[Path]:
    """Files that are missing, differ, or belong to no rule."""
    wrong = [path for path, text in files.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    return wrong + [path for path in sorted(OUT.glob("*.md")) if path not in files]


def main(arguments: Sequence[str]) -> int:
    """Write what is stale and return 0, or with `--check` name it and return 1."""
    files = build()
    wrong = stale(files)
    if "--check" in arguments:
        for path in wrong:
            print(f"stale: docs/rules/{path.name}; run python docs/build.py", file=sys.stderr)
        return int(bool(wrong))
    OUT.mkdir(exist_ok=True)
    for path in wrong:
        if path in files:
            path.write_text(files[path], encoding="utf-8")
        else:
            path.unlink()
        print(f"{'wrote' if path in files else 'removed'} docs/rules/{path.name}")
    return 0


def _sentence(rule: type[Rule]) -> str:
    return rule.documentation().partition("\n")[0].partition(": ")[2]


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def _stem(rule: type[Rule]) -> str:
    return rule.name.replace("-", "_")


def _file(rule: type[Rule]) -> str:
    return f"{rule.code}-{rule.name}.md"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
