"""Arithmetic on what an agent wrote, bounded in time.

The benchmark's own `calculate` evaluates the text as Python: a few characters, such as
``9**9**9``, then hold the interpreter for minutes and with it all other episodes.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from typing import Any

_ALLOWED = frozenset("0123456789+-*/(). ")
_MAX_CHARACTERS = 1000
#: Integers beyond are of no use: the result must fit a float, which ends at 1024 bits.
_MAX_BITS = 10_000


def _power(base: Any, exponent: Any) -> Any:
    if (
        isinstance(base, int)
        and isinstance(exponent, int)
        and base.bit_length() * exponent > _MAX_BITS
    ):
        raise OverflowError("int too large to convert to float")
    return base**exponent


_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Pow: _power,
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}


def calculate(expression: str) -> str:
    """The value rounded to two decimals, as the benchmark's tool gives it.

    Raises:
        ValueError: If it is not arithmetic.
        ArithmeticError: For a division by zero or a result beyond a float.
    """
    if not set(expression) <= _ALLOWED:
        raise ValueError("Invalid characters in expression")
    if len(expression) > _MAX_CHARACTERS:
        raise ValueError("Expression too long")
    try:
        tree = ast.parse(expression.strip(), mode="eval")
        value = float(_value(tree.body))
    except (SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(f"Invalid expression: {error}") from error
    return str(round(value, 2))


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return node.value
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        return _BINARY[type(node.op)](_value(node.left), _value(node.right))
    if isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
        return _UNARY[type(node.op)](_value(node.operand))
    raise ValueError("only numbers, + - * / and parentheses are understood")
