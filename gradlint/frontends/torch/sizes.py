"""Arithmetic of symbolic sizes in exported programs, as text: read strictly, since torch has sympy evaluate it."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping

_LONGEST = 2000
_DEEPEST = 50
_MOST_BITS = 4096
_SYMBOL = re.compile(r"[A-Za-z]{1,2}\d{1,6}")
_FLAGS = frozenset({"positive", "integer", "nonnegative", "real"})
_FUNCTION_NAMES = (
    "Integer Rational Add Mul Abs Max Min Mod PythonMod FloorDiv CleanDiv CeilDiv "
    "IntTrueDiv TruncToInt CeilToInt ModularIndexing Eq Ne"
)
_FUNCTIONS = frozenset(_FUNCTION_NAMES.split())
_OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod)
_OF_A_SYMBOL = 64  # bits


def is_size(text: object) -> bool:
    """Return whether a text is a size: whole numbers, symbols such as s0, and functions of them, none of which grows large."""
    if not isinstance(text, str) or len(text) > _LONGEST:
        return False
    try:
        return _bits(ast.parse(text, mode="eval").body, 0) <= _MOST_BITS
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return False


def _bits(tree: ast.AST, depth: int) -> float:
    """Return how many bits a value has at most. Raises ValueError or TypeError for what is none."""
    rule = _RULES.get(type(tree))
    if rule is None or depth > _DEEPEST:
        raise ValueError(type(tree).__name__)
    return rule(tree, depth + 1)


def _constant(tree: ast.Constant, _: int) -> float:
    if type(tree.value) is bool:
        return 1
    if type(tree.value) not in {int, float}:
        raise TypeError(tree.value)
    return max(abs(tree.value), 1).bit_length() if isinstance(tree.value, int) else _OF_A_SYMBOL


def _name(tree: ast.Name, _: int) -> float:
    if not _SYMBOL.fullmatch(tree.id):
        raise ValueError(tree.id)
    return _OF_A_SYMBOL


def _unary(tree: ast.UnaryOp, depth: int) -> float:
    if not isinstance(tree.op, (ast.USub, ast.UAdd)):
        raise TypeError(tree.op)
    return _bits(tree.operand, depth)


def _binary(tree: ast.BinOp, depth: int) -> float:
    if isinstance(tree.op, ast.Pow):
        return _power(tree.left, tree.right, depth)
    if not isinstance(tree.op, _OPERATORS):
        raise TypeError(tree.op)
    return _bits(tree.left, depth) + _bits(tree.right, depth)


def _power(base: ast.AST, exponent: ast.AST, depth: int) -> float:
    if isinstance(exponent, ast.Call) and isinstance(exponent.func, ast.Name) and exponent.func.id == "Integer" and exponent.args:
        exponent = exponent.args[0]
    if not isinstance(exponent, ast.Constant) or type(exponent.value) is not int:
        raise TypeError("an exponent that is no number")
    return _bits(base, depth) * max(abs(exponent.value), 1)


def _compare(tree: ast.Compare, depth: int) -> float:
    return sum(_bits(part, depth) for part in (tree.left, *tree.comparators))


def _call(tree: ast.Call, depth: int) -> float:
    if not isinstance(tree.func, ast.Name):
        raise TypeError("a call of a call")
    if tree.func.id == "Symbol":
        flags = [
            word.arg in _FLAGS and isinstance(word.value, ast.Constant) and type(word.value.value) is bool
            for word in tree.keywords
        ]
        names = [isinstance(part, ast.Constant) and bool(_SYMBOL.fullmatch(str(part.value))) for part in tree.args]
        if len(names) != 1 or not all((*flags, *names)):
            raise ValueError("no symbol")
        return _OF_A_SYMBOL
    if tree.func.id == "Pow" and len(tree.args) == 2 and not tree.keywords:
        return _power(tree.args[0], tree.args[1], depth)
    if tree.func.id not in _FUNCTIONS or any(word.arg != "evaluate" for word in tree.keywords):
        raise ValueError(tree.func.id)
    return sum(_bits(part, depth) for part in tree.args)


_RULES: Mapping[type[ast.AST], Callable[..., float]] = {
    ast.Constant: _constant,
    ast.Name: _name,
    ast.UnaryOp: _unary,
    ast.BinOp: _binary,
    ast.Compare: _compare,
    ast.Call: _call,
}
