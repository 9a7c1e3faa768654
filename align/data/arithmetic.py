"""`builtin:arithmetic`: expressions to be worked out step by step, with worked solutions and an exact rule for steps.

Made by seeded code, the same on every machine. The part of a problem follows from a hash of its expression, so no
problem is in two parts. Parts: `warm` (to learn the form from), `train`, `heldout`.
"""

from __future__ import annotations

import ast
import hashlib
import random
import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from align.data.examples import Example

PARTS = {"train": 600, "heldout": 200, "warm": 1500}  # split -> problems
_SHARES = (("heldout", 0.2), ("warm", 0.6), ("train", 1.0))  # split -> up to which hash, in [0, 1)
_OPERATIONS = 3  # lines of a solution
_LARGEST_TERM, _LARGEST_FACTOR, _LARGEST_RESULT = 49, 9, 199
_TASK = "Work it out, one step a line."
_EQUATION = re.compile(r"(\d+)([-+*])(\d+)=(\d+)")
_COUNT = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}


class Node(NamedTuple):
    """An operation on two operands, each a number or an operation."""

    left: Node | int
    operator: str
    right: Node | int


def rows(split: str) -> list[dict]:
    """The rows of a part as records: a question, and its worked solution as positive."""
    found: dict[str, Node] = {}
    draw = random.Random("arithmetic")
    while len(found) < PARTS[split]:
        tree = _problem(draw)
        text = written(tree)
        if text not in found and part(text) == split:
            found[text] = tree
    return [_row(text, tree) for text, tree in found.items()]


def part(expression: str) -> str:
    """The part that a problem belongs to."""
    place = int.from_bytes(hashlib.sha256(expression.encode()).digest()[:8], "big") / 2**64
    return next(name for name, end in _SHARES if place < end)


def _row(text: str, tree: Node) -> dict:
    solution = "\n".join(f"{left}{operator}{right}={result}" for left, operator, right, result in steps(tree))
    return {
        "prompt": [{"role": "system", "content": _TASK}, {"role": "user", "content": text}],
        "responses": [{"text": solution, "role": "positive", "reward": 1.0}],
        "source": "arithmetic",
    }


def _problem(draw: random.Random) -> Node:
    while True:
        tree = parse(written(_tree(draw, _OPERATIONS)))  # as it reads: from the left, without needless brackets
        if all(_is_easy(*step) for step in steps(tree)):
            return tree


def _tree(draw: random.Random, operations: int) -> Node | int:
    if not operations:
        return draw.randint(2, _LARGEST_TERM)
    left = draw.randrange(operations)
    return Node(_tree(draw, left), draw.choice("++-*"), _tree(draw, operations - 1 - left))


def _is_easy(left: int, operator: str, right: int, result: int) -> bool:
    return 0 < result <= _LARGEST_RESULT and (operator != "*" or 1 < min(left, right) <= _LARGEST_FACTOR)


def steps(tree: Node) -> list[tuple[int, str, int, int]]:
    """(left, operator, right, result) of each operation, in the order in which a solution writes them."""
    done: list[tuple[int, str, int, int]] = []

    def value(node: Node | int) -> int:
        if isinstance(node, int):
            return node
        left, right = value(node.left), value(node.right)
        done.append((left, node.operator, right, _COUNT[node.operator](left, right)))
        return done[-1][-1]

    value(tree)
    return done


def written(node: Node | int, parent: str = "", is_right: bool = False) -> str:
    """The expression as text, with the brackets it needs."""
    if isinstance(node, int):
        return str(node)
    text = written(node.left, node.operator) + node.operator + written(node.right, node.operator, True)
    weaker = node.operator != "*" and (parent == "*" or (parent == "-" and is_right))
    return f"({text})" if weaker or (parent == "*" == node.operator and is_right) else text


def parse(expression: str) -> Node:
    """The tree of an expression. Raises ValueError."""
    if not re.fullmatch(r"[-+*()0-9]{1,200}", expression):
        raise ValueError(f"{expression!r} is no expression")
    signs = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*"}

    def tree(node: ast.AST) -> Node | int:
        if isinstance(node, ast.BinOp) and type(node.op) in signs:
            return Node(tree(node.left), signs[type(node.op)], tree(node.right))
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return node.value
        raise ValueError(f"{expression!r} is no expression")

    try:
        return tree(ast.parse(expression, mode="eval").body)
    except SyntaxError:
        raise ValueError(f"{expression!r} is no expression") from None


def judge_steps(example: Example, text: str, ends: Sequence[int]) -> list[float | None]:
    """Which steps of an answer are right, exactly: 1.0 or 0.0 a step; None for a piece that holds nothing.

    A step is right if it is one true equation, and an operation that the problem asks for and that no step before
    it has done. So a step that takes a wrong result further is wrong, and one beside it may be right.
    """
    asked = example.prompt if isinstance(example.prompt, str) else example.prompt[-1][1]
    left = Counter(_same(*step[:3]) for step in steps(parse(asked)))
    scores: list[float | None] = []
    for begin, end in zip([0, *ends], ends, strict=False):
        piece = text[begin:end].strip()
        equation = _EQUATION.fullmatch(piece.replace(" ", ""))
        operation = _same(int(equation[1]), equation[2], int(equation[3])) if equation else None
        is_true = equation and _COUNT[equation[2]](int(equation[1]), int(equation[3])) == int(equation[4])
        is_right = bool(is_true and left[operation] > 0)
        left[operation] -= is_right
        scores.append(float(is_right) if piece else None)
    return scores


def _same(left: int, operator: str, right: int) -> tuple:
    """The operation, the same for a+b and b+a."""
    return (left, operator, right) if operator == "-" else (min(left, right), operator, max(left, right))
