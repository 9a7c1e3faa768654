"""Worked solutions: a wrong operand, operator or result in one equation, and all that is computed with it afterwards.

Only equations that check out are touched, whatever units stand between their numbers. What follows from the error is
carried to the end, so that the solution agrees with itself and arrives at another answer.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from random import Random

from align.negatives.edits import Answer, Edit

_DIGITS = r"(?:(?:\d{1,3}(?:,\d{3}){1,4}|\d{1,15})(?:\.\d{1,12})?|\.\d{1,12})"
NUMBER = re.compile(rf"(?<![\w.]){_DIGITS}(?!\d|\.\d|,\d{{3}})")
_SIGN = re.compile(r"\s*([-+*/x×÷−])\s*")
_UNIT = r"(?:[ ]?(?<![A-Za-z/])(?!x\b)[A-Za-z][A-Za-z/]*){0,3}"  # apples, dollars a day
_TERM = rf"\({{0,4}}\s?\$?{_DIGITS}(?:\s?%)?{_UNIT}\s?\){{0,4}}"
_EQUATION = re.compile(rf"(?<![\w.=+*/×÷(-])({_TERM}(?:\s*[-+*/x×÷−]\s*{_TERM})+)\s*=\s*\$?({NUMBER.pattern})")
MANY = 50  # equations from which on a text is a table, not a solution
MOST = 12  # times as large or small as the right one a result may be
_OPERATORS = {"x": "*", "×": "*", "÷": "/", "−": "-"}
_OTHER = {"+": "-*", "-": "+", "*": "+/", "/": "*"}


@dataclass(frozen=True)
class Equation:
    numbers: tuple[int, ...]  # of its operands, by their place among the numbers of the text
    result: int
    start: int
    end: int  # of the left side
    signs: tuple[tuple[int, int, str], ...]  # (start, end, operator) in the text


@functools.lru_cache(maxsize=64)
def numbers_of(text: str) -> tuple[re.Match, ...]:
    return tuple(NUMBER.finditer(text))


def value_of(number: str) -> Fraction:
    return Fraction(number.replace(",", ""))


@functools.lru_cache(maxsize=64)
def equations_of(text: str) -> tuple[Equation, ...]:
    """The equations of a text whose two sides are equal, in order; none of a text that is nothing but sums."""
    places = {found.start(): index for index, found in enumerate(numbers_of(text))}
    equations = []
    for found in _EQUATION.finditer(text):
        inner = [one.start() for one in NUMBER.finditer(text, *found.span(1))]
        if found.start(2) not in places or any(start not in places for start in inner):
            continue
        signs = tuple((one.start(1), one.end(1), one[1]) for one in _SIGN.finditer(text, *found.span(1)))
        equation = Equation(tuple(places[start] for start in inner), places[found.start(2)], *found.span(1), signs)
        value = compute(text[slice(*found.span(1))])
        if value is not None and len(signs) == len(inner) - 1 and value == value_of(found[2]):
            equations.append(equation)
    return tuple(equations) if len(equations) <= MANY else ()


def compute(expression: str) -> Fraction | None:
    """The value of a sum of products with parentheses, units left out; None if it has none."""
    plain = re.sub(r"(?<![A-Za-z])x(?![A-Za-z])", "*", re.sub(r"%", "/100", expression))
    plain = re.sub(r"[A-Za-z]+(?:/[A-Za-z]+)*|[$,\s]", "", plain)
    tokens = re.findall(r"\d+(?:\.\d+)?|\.\d+|[-+*/()]", "".join(_OPERATORS.get(c, c) for c in plain))
    if "".join(tokens) != "".join(_OPERATORS.get(c, c) for c in plain):
        return None
    try:
        value, rest = _sum(tokens)
    except (IndexError, ValueError, ZeroDivisionError):
        return None
    return None if rest else value


def _sum(tokens: list[str]) -> tuple[Fraction, list[str]]:
    value, tokens = _product(tokens)
    while tokens and tokens[0] in "+-":
        sign, (other, tokens) = tokens[0], _product(tokens[1:])
        value = value + other if sign == "+" else value - other
    return value, tokens


def _product(tokens: list[str]) -> tuple[Fraction, list[str]]:
    value, tokens = _atom(tokens)
    while tokens and tokens[0] in "*/":
        sign, (other, tokens) = tokens[0], _atom(tokens[1:])
        value = value * other if sign == "*" else value / other
    return value, tokens


def _atom(tokens: list[str]) -> tuple[Fraction, list[str]]:
    if tokens[0] == "(":
        value, tokens = _sum(tokens[1:])
        if tokens[:1] != [")"]:
            raise ValueError("an open parenthesis")
        return value, tokens[1:]
    return Fraction(tokens[0]), tokens[1:]


def equation_edits(answer: Answer, draw: Random, kind: str) -> Iterator[Edit]:
    """For each equation one edit of a kind (`number`, `operator`) that changes the last number of the text."""
    equations = equations_of(answer.text)
    given = {value_of(found[0]) for found in numbers_of(answer.prompt)}
    for index, equation in enumerate(equations):
        for change in _changes(answer.text, equation, given, draw, kind):
            edit = _carried(answer.text, equations[index:], change, given, kind)
            if edit is not None:
                yield edit
                break


Change = tuple[int, int, str, Fraction | None]  # (start, end, what stands there, the result if it is simply wrong)


def _changes(text: str, equation: Equation, given: set[Fraction], draw: Random, kind: str) -> list[Change]:
    """What may be wrong in an equation, in an order that is drawn."""
    if kind == "operator":
        found = []
        for start, end, sign in equation.signs:
            if re.search(r"(?<![\d.])1$", text[:start]):  # 1/2 is a number
                continue
            for other in _OTHER[_OPERATORS.get(sign, sign)]:
                found.append((start, end, sign if other == _OPERATORS.get(sign, sign) else other, None))
        draw.shuffle(found)
        return found
    numbers, found = numbers_of(text), []
    for index in equation.numbers:
        old = value_of(numbers[index][0])
        for other in sorted(given - {old, Fraction(0), Fraction(1)}):
            found.append((*numbers[index].span(), written(other, numbers[index][0]), None))
    result = numbers[equation.result]
    value = value_of(result[0])
    slips = (
        [value + step for step in (10, -10, 1, -1, 2, -2, 100) if abs(step) <= value] if value.denominator == 1 else []
    )
    found += [(*result.span(), written(slip, result[0]), slip) for slip in slips if slip > 0]
    draw.shuffle(found)
    return found


def written(value: Fraction, like: str) -> str:
    """A number in the manner of another: commas, decimals. Empty if it cannot be written in two decimals."""
    decimals = len(like.partition(".")[2])
    exact = next((digits for digits in range(decimals, 3) if (value * 10**digits).denominator == 1), None)
    if exact is None or value < 0:
        return ""
    text = f"{float(value):,.{exact}f}"
    return text if "," in like or value >= 10**5 else text.replace(",", "")


def _carried(text: str, equations: Sequence[Equation], change: Change, given: set[Fraction], kind: str) -> Edit | None:
    """The edit with all that follows from it; None where that is unclear, or the end stays as it was."""
    numbers, first = numbers_of(text), equations[0]
    start, end, new, result = change
    new_at: dict[int, str] = {}  # by number
    swapped = {start: (end, new)}
    was: dict[Fraction, str] = {}  # results that are others now
    if not new:
        return None
    for equation in equations:
        left = _rewritten(text, equation, numbers, new_at, swapped)
        value = result if equation is first and result is not None else compute(left)
        old = numbers[equation.result][0]
        if value is None or not is_plausible(value, value_of(old)):
            return None
        if value == value_of(old):
            if equation is first:
                return None
            continue
        earlier = {value_of(one[0]) for one in numbers if one.start() < first.start}
        if value_of(old) in given | earlier or not written(value, old):
            return None  # the same number means something else, too
        was[value_of(old)] = written(value, old)
        for index in range(equation.result, len(numbers)):
            if value_of(numbers[index][0]) == value_of(old):
                new_at[index] = written(value, numbers[index][0]) or was[value_of(old)]
    if not numbers or len(numbers) - 1 not in new_at or value_of(new_at[len(numbers) - 1]) == value_of(numbers[-1][0]):
        return None
    pieces = [(*numbers[index].span(), text_) for index, text_ in new_at.items()]
    pieces += [(start, end, new)] if result is None else []
    whole_end = numbers[first.result].end()
    return Edit(kind, start, whole_end, tuple(sorted(pieces)))


def is_plausible(value: Fraction, old: Fraction) -> bool:
    """Whether a result could be taken for the right one: of like size, and whole where that is."""
    return old > 0 and 1 / MOST <= value / old <= MOST and (value.denominator == 1 or old.denominator != 1)


def _rewritten(
    text: str, equation: Equation, numbers: Sequence[re.Match], new_at: dict[int, str], swapped: dict
) -> str:
    """The left side of an equation with what is changed in it."""
    pieces = [(*numbers[index].span(), new_at[index]) for index in equation.numbers if index in new_at]
    pieces += [(start, end, new) for start, (end, new) in swapped.items() if equation.start <= start < equation.end]
    left = text[: equation.end]
    for start, end, new in sorted(pieces, reverse=True):
        left = left[:start] + new + left[end:]
    return left[equation.start :]
