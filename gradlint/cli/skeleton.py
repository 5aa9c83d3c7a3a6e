"""The command `gradlint new-rule`: write a working rule file as a template for a new rule."""

# ruff: noqa: PLC0415 - imports are deferred until the command runs, so that --help and --version stay quick

from __future__ import annotations

import re
from pathlib import Path
from string import Template

from gradlint.errors import ConfigError

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")

_SKELETON = Template('''\
"""$code $name: an activation reads another activation, with no weight layer between them.

What it finds:
    Two activations or more in a row. (This file works as it stands. Say here what your rule finds, and from which size on.)

Why it matters:
    The second one bends what is bent already: relu(relu(x)) is relu(x), and sigmoid(relu(x)) never falls below 1/2, so that half
    of its range is lost. (The heading may also be "Why it explodes" or "Why it vanishes". Give the formula, with its numbers.)

How to fix it:
    Remove one of them, or put a weight layer between them. (Say what to change, in the words of torch.)

References:
    Glorot, Bordes, Bengio 2011, Deep Sparse Rectifier Neural Networks, AISTATS (what a rectifier passes).
"""

from __future__ import annotations

from collections.abc import Iterator

from gradlint.rule import Example, Finding, GraphBuilder, Kind, Needs, Node, Rule, Severity, Subject, kind_of

MOST = 1  # activations in a row; give every threshold a name and a source: a paper, a derivation, a measurement


def _stack(*ops: str) -> GraphBuilder:
    builder = GraphBuilder()
    x = builder.input(8, 64)
    for op in ops:
        x = builder.linear(x) if op == "linear" else builder.op(op, x)
    return builder


class $class_name(Rule):
    """Activations in a row."""

    code = "$code"
    name = "$name"
    severity = Severity.NOTE
    needs = Needs.GRAPH
    examples = (
        Example(lambda: _stack("linear", "relu", "tanh"), fires_on=("tanh0",)),
        Example(lambda: _stack("linear", "relu")),
        Example(lambda: _stack("linear", "relu", "linear", "tanh")),
    )

    def applies(self, subject: Subject) -> str | None:
        """Only where there is an activation."""
        return None if any(kind_of(node) is Kind.ACTIVATION for node in subject.graph) else "no activation in the graph"

    def check(self, subject: Subject) -> Iterator[Finding]:
        """One finding for all of them."""
        found = [node.id for node in subject.graph if _in_a_row(subject, node) > MOST]
        if found:
            yield self.finding(
                subject,
                found,
                f"an activation reads another one, in {len(found)} place{'s' * (len(found) > 1)}",
                remedy="remove one of them, or put a weight layer between them",
                activations=len(found),
            )


def _in_a_row(subject: Subject, node: Node) -> int:
    """How many activations end in a node, one behind the other."""
    count = 0
    while kind_of(node) is Kind.ACTIVATION:
        count += 1
        parents = subject.graph.parents(node.id)
        if len(parents) != 1:
            break
        node = parents[0]
    return count
''')


def write_rule(code: str, name: str, folder: Path | None = None) -> Path:
    """Write the skeleton of a rule to `folder`, by default `rules/` of the running checkout, and return the path of the file.

    Raises ConfigError if the code or the name is malformed or taken, or if there is no folder to write to. Raises RuleFileError
    if the folder contains files that are not rules.
    """
    from gradlint.catalog import CODE, CODE_FORM, builtin_dir, is_checkout, load_rules
    from gradlint.rule import __all__ as taken

    if not CODE.fullmatch(code):
        raise ConfigError(f"the code {code!r} is not {CODE_FORM}", hint=_spelled(code))
    if not _NAME.fullmatch(name):
        raise ConfigError(f"the name {name!r} is not lower-case words and hyphens", hint="name the pattern, as in deep-post-norm")
    if folder is None and not is_checkout():
        raise ConfigError("new-rule: this gradlint is installed, and its rules are not yours to add to", hint="give --rules DIR")
    target = folder or builtin_dir()
    others = [target] if target.is_dir() and target.resolve() != builtin_dir().resolve() else []
    for rule in load_rules(others):
        if code == rule.code:
            raise ConfigError(f"the code {code} belongs to {rule.name}", hint="take a free one; gradlint rule lists the others")
        if name == rule.name:
            raise ConfigError(f"the name {name} belongs to {rule.code}", hint=f"see gradlint rule {rule.code}, or take another")
    path = target / f"{name.replace('-', '_')}.py"
    if path.exists():
        raise ConfigError(f"{path} is there already", hint="take another name")
    class_name = "".join(word.capitalize() for word in name.split("-"))
    class_name += "Rule" if class_name in taken else ""
    try:
        target.mkdir(parents=True, exist_ok=True)
        path.write_text(_SKELETON.substitute(code=code, name=name, class_name=class_name), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot write the rule: {error.strerror}") from error
    return path


def _spelled(code: str) -> str:
    from gradlint.catalog import CODE

    return f"write it {code.upper()}" if CODE.fullmatch(code.upper()) else "take capitals of your own for a pack of your own"
