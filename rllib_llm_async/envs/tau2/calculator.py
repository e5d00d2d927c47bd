"""The benchmark's `calculate`, bounded in time.

It evaluates the text as Python: a few characters, such as ``9**9**9``, then hold the
interpreter for minutes and with it all other episodes. Powers are therefore tried with
bounds first; all else, error texts included, is the benchmark's own.
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


class _NoArithmeticError(ValueError):
    """What Python evaluates, but no calculator: calls, tuples, an ellipsis."""


def bounded(calculate: Callable[..., str]) -> Callable[..., str]:
    """``calculate`` for any expression: what would take long is an error.

    Args:
        calculate: The benchmark's tool.
    """

    def calculator(*args: Any, **arguments: Any) -> str:
        for expression in (*args, *arguments.values()):
            if isinstance(expression, str) and set(expression) <= _ALLOWED:
                _check(expression)
        return calculate(*args, **arguments)

    return calculator


def _check(expression: str) -> None:
    """Raises an error if evaluating ``expression`` would, or could, take long.

    Raises:
        ValueError: If that cannot be told.
        OverflowError: If a power in it is beyond what a float holds.
    """
    if len(expression) > _MAX_CHARACTERS:
        raise ValueError("Expression too long")
    if "**" not in expression:
        return
    try:
        _value(ast.parse(expression.lstrip(" "), mode="eval").body)
    except OverflowError:
        raise
    except (_NoArithmeticError, MemoryError, RecursionError) as error:
        raise ValueError(f"Invalid expression: {error}") from error
    except (SyntaxError, TypeError, ArithmeticError):
        pass  # as the benchmark's own will say, before it comes to anything long


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return node.value
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        return _BINARY[type(node.op)](_value(node.left), _value(node.right))
    if isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
        return _UNARY[type(node.op)](_value(node.operand))
    raise _NoArithmeticError("only numbers, + - * / and parentheses are understood")
