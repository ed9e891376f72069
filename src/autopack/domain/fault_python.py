"""Faults in Python, found by `ast`. (rules §6.1)"""

from __future__ import annotations

import ast
import re
import threading
import warnings
from collections.abc import Collection, Iterator
from itertools import accumulate, islice
from typing import Final

from .fault_terms import Edit, FaultOperator

_MAX_NODES: Final = 200_000
# Calls that no test has to notice.
_LOGGING: Final = re.compile(r"(logging|logger|log|_log|_logger|warnings|print)\b")
_DUNDER: Final = re.compile(r"__\w+__")
_ARITHMETIC: Final = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "+"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "*"),
}
# `catch_warnings` changes what the whole process has, so two threads must not do it at once.
_warnings_lock = threading.Lock()


def python_edits(content: bytes, lines: Collection[int] | None) -> Iterator[Edit]:
    """Yield the faults of a Python file in these lines; none if it is not valid Python.

    `lines` are numbers from 1 on, None stands for all.
    """
    if re.search(rb"\r(?!\n)|\f", content):  # Python and git would count other lines
        return
    tree = _parsed(content)
    if tree is not None:
        yield from _Finder(content, lines).edits(tree)


def is_python(content: bytes) -> bool:
    """Return whether a file is valid Python of this interpreter's version."""
    return _parsed(content) is not None


def _parsed(content: bytes) -> ast.Module | None:
    try:
        text = content.decode("utf-8-sig")
        with _warnings_lock, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


class _Finder:
    def __init__(self, content: bytes, lines: Collection[int] | None) -> None:
        bom = 3 if content.startswith(b"\xef\xbb\xbf") else 0
        self._content = content
        self._lines = None if lines is None else frozenset(lines)
        lengths = (len(line) for line in content[bom:].split(b"\n"))
        self._starts = [*accumulate((length + 1 for length in lengths), initial=bom)]

    def edits(self, tree: ast.Module) -> Iterator[Edit]:
        """Yield the faults of a file, outermost first."""
        waiting: list[tuple[ast.AST, bool]] = [(tree, False)]
        for _ in range(_MAX_NODES):
            if not waiting:
                return
            node, is_in_function = waiting.pop()
            if isinstance(node, ast.expr | ast.stmt) and self._is_changed(node):
                yield from self._of(node, is_in_function=is_in_function)
            is_in_function |= isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            waiting += [(child, is_in_function) for child in reversed([*_children(node)])]

    def _is_changed(self, node: ast.expr | ast.stmt) -> bool:
        return self._lines is None or node.lineno in self._lines

    def _of(self, node: ast.expr | ast.stmt, *, is_in_function: bool) -> Iterator[Edit]:
        match node:
            case ast.Compare():
                yield self._negated(node, FaultOperator.NEGATE_COMPARISON)
            case ast.BoolOp():
                yield from self._swapped_logic(node)
            case ast.If(test=test) | ast.IfExp(test=test) if not isinstance(test, ast.Compare):
                if self._is_changed(test):
                    yield self._negated(test, FaultOperator.NEGATE_CONDITION)
            case ast.Constant():
                yield from self._other_constant(node)
            case ast.BinOp():
                yield from self._other_arithmetic(node)
            case ast.Return(value=value) if value is not None:
                if not (isinstance(value, ast.Constant) and value.value is None):
                    yield self._edit(node, FaultOperator.RETURN_NOTHING, b"return None")
            case ast.Call():
                yield from self._swapped_arguments(node)
            case ast.Expr() | ast.AugAssign() | ast.Raise() | ast.Delete() if is_in_function:
                yield self._edit(node, FaultOperator.DROP_LINE, b"pass")
            case ast.Assign() if is_in_function and not isinstance(node.targets[0], ast.Name):
                yield self._edit(node, FaultOperator.DROP_LINE, b"pass")

    def _negated(self, node: ast.expr, operator: FaultOperator) -> Edit:
        start, end = self._span(node)
        return Edit(node.lineno, operator, start, end, b"(not (%b))" % self._content[start:end])

    def _swapped_logic(self, node: ast.BoolOp) -> Iterator[Edit]:
        old, new = (b"and", b"or") if isinstance(node.op, ast.And) else (b"or", b"and")
        yield from self._between(node.values[0], node.values[1], FaultOperator.SWAP_LOGIC, old, new)

    def _other_constant(self, node: ast.Constant) -> Iterator[Edit]:
        value = node.value
        if isinstance(value, bool):
            yield self._edit(node, FaultOperator.CHANGE_CONSTANT, str(not value).encode())
        elif isinstance(value, int) and abs(value) < 1 << 64:
            yield self._edit(node, FaultOperator.CHANGE_CONSTANT, str(value + 1).encode())
        elif isinstance(value, float) and abs(value) < 1e15:
            yield self._edit(node, FaultOperator.CHANGE_CONSTANT, repr(value + 1).encode())

    def _other_arithmetic(self, node: ast.BinOp) -> Iterator[Edit]:
        if type(node.op) in _ARITHMETIC:
            old, new = (sign.encode() for sign in _ARITHMETIC[type(node.op)])
            operator = FaultOperator.CHANGE_ARITHMETIC
            yield from self._between(node.left, node.right, operator, old, new)

    def _swapped_arguments(self, node: ast.Call) -> Iterator[Edit]:
        if len(node.args) < 2 or any(isinstance(each, ast.Starred) for each in node.args[:2]):
            return
        (start, first), (second, end) = self._span(node.args[0]), self._span(node.args[1])
        one, other = self._content[start:first], self._content[second:end]
        if one != other:
            swapped = other + self._content[first:second] + one
            yield Edit(node.args[0].lineno, FaultOperator.SWAP_ARGUMENTS, start, end, swapped)

    def _between(
        self, left: ast.expr, right: ast.expr, operator: FaultOperator, old: bytes, new: bytes
    ) -> Iterator[Edit]:
        """Replace the sign between two operands, where nothing but brackets stands beside it."""
        start, end = self._span(left)[1], self._span(right)[0]
        found = re.fullmatch(rb"[\s)]*(%b)[\s(]*" % re.escape(old), self._content[start:end])
        if found and left.end_lineno is not None:
            line = left.end_lineno + self._content.count(b"\n", start, start + found.start(1))
            if self._lines is None or line in self._lines:
                yield Edit(line, operator, start + found.start(1), start + found.end(1), new)

    def _edit(self, node: ast.expr | ast.stmt, operator: FaultOperator, text: bytes) -> Edit:
        return Edit(node.lineno, operator, *self._span(node), text)

    def _span(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        end_line, end_column = node.end_lineno or node.lineno, node.end_col_offset or 0
        return (
            self._starts[node.lineno - 1] + node.col_offset,
            self._starts[end_line - 1] + end_column,
        )


def _children(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the parts of a node in which a fault may change what the code does."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "type_params"):
            continue
        if name == "test" and isinstance(node, ast.While):  # no loops without end
            continue
        for child in value if isinstance(value, list) else (value,):
            if isinstance(child, ast.AST) and not _is_left_out(child):
                yield child


def _is_left_out(node: ast.AST) -> bool:
    match node:
        # Before Python 3.12 what is inside of an f-string has wrong places.
        case ast.JoinedStr() | ast.Import() | ast.ImportFrom() | ast.Global() | ast.Nonlocal():
            return True
        case ast.Expr(value=ast.Constant()):  # a docstring
            return True
        case ast.Expr(value=ast.Call(func=func)):
            return _LOGGING.match(_first_name(func)) is not None
        case ast.If(test=ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")):
            return True
        case ast.If(test=ast.Compare(left=ast.Name(id="__name__"))):
            return True
        case ast.Assign(targets=[ast.Name(id=name)]):
            return _DUNDER.fullmatch(name) is not None
    return False


def _first_name(node: ast.expr) -> str:
    for each in islice(ast.walk(node), 20):
        if isinstance(each, ast.Name):
            return each.id
    return ""
