"""Whether an answer is right, by comparing it with what the row knows to be right (its positives).

An answer that holds nothing to compare is undecided, not wrong.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from align.data.examples import Example
from align.errors import UserError, shorten
from align.judges import sandbox

if TYPE_CHECKING:
    from align.judges.options import Verifier

# A sign counts only where no operand stands in front of it: 51-13 ends in 13.
_NUMBER = re.compile(r"(?:(?<![\w)])[-−])?\d[\d,]*(?:\.\d+)?(?:\s?/\s?\d+)?")
_TOLERANCE = Fraction(1, 10**6)  # of the larger one
_BLOCK = re.compile(r"```[a-zA-Z0-9]*\n(.*?)```", re.DOTALL)


class Verdict(NamedTuple):
    is_right: bool | None
    note: str | None = None  # why it is undecided, or what went wrong


Verify = Callable[[Example, str], Verdict]


def load(options: Verifier) -> Verify:
    """The verifier that a recipe names. Raises UserError."""
    builders = {
        "numeric": lambda: _by_value(number_of, _same_number, "no number"),
        "exact": lambda: _by_value(lambda text: " ".join(text.split()), str.__eq__, ""),
        "regex": lambda: _by_value(_match_of(options.pattern), str.__eq__, "no match"),
        "math": _math,
        "code": lambda: _code(options),
    }
    return builders[options.name]() if options.name in builders else _own(options.name)


def described(options: Verifier) -> dict:
    """What the verdicts of a verifier depend on: its options, the source of a user's own, and what programs may do.

    Raises UserError.
    """
    found = dataclasses.asdict(options)
    if options.name == "code":
        found["offline"] = sandbox.is_offline()
    if "." in options.name:  # a function of the user's own
        found["source_sha256"] = source_sha256(dotted(options.name, "rollouts.verifier.name"))
    return found


def source_sha256(function: Callable) -> str | None:
    """SHA-256 of the file that a function is written in, which may change under its name; None if it has none."""
    try:
        return hashlib.sha256(Path(inspect.getsourcefile(inspect.unwrap(function))).read_bytes()).hexdigest()
    except TypeError:  # compiled, or an object that is called
        return None


def references(example: Example) -> list[str]:
    """What is known to be right. Raises UserError where nothing is."""
    found = example.texts("positive")
    if not found:
        fix = "give each prompt a positive that holds the right answer"
        raise UserError(str(example.place), "nothing says what is right", fix)
    return found


def _by_value(value_of: Callable, is_same: Callable, lacking: str) -> Verify:
    """Compares what `value_of` reads off the answer with what it reads off each positive."""

    def verify(example: Example, text: str) -> Verdict:
        wanted = [value for value in map(value_of, references(example)) if value is not None]
        if not wanted:
            raise UserError(str(example.place), f"{lacking} in the positive", "give one that the verifier can read")
        found = value_of(text)
        if found is None:
            return Verdict(None, f"unparsable: {lacking}")
        return Verdict(any(is_same(found, value) for value in wanted))

    return verify


def number_of(text: str) -> Fraction | None:
    """The last number in a text; None if there is none."""
    matches = _NUMBER.findall(text)
    if not matches:
        return None
    top, _, bottom = matches[-1].replace(",", "").replace("−", "-").replace(" ", "").partition("/")
    try:
        return Fraction(Decimal(top)) / Fraction(bottom or 1)
    except (InvalidOperation, ZeroDivisionError):
        return None


def _same_number(one: Fraction, other: Fraction) -> bool:
    return abs(one - other) <= _TOLERANCE * max(abs(one), abs(other))


def _match_of(pattern: str) -> Callable[[str], str | None]:
    compiled = re.compile(pattern)

    def value(text: str) -> str | None:
        found = list(compiled.finditer(text))
        return found[-1][1 if compiled.groups else 0] if found else None

    return value


def _math() -> Verify:
    """Mathematical expressions, through the library math-verify."""
    try:
        import math_verify
    except ImportError:
        fix = "pip install 'align-negatives[math]'"
        raise UserError("rollouts.verifier.name", "math needs the package math-verify", fix) from None

    def verify(example: Example, text: str) -> Verdict:
        found = math_verify.parse(text)
        if not found:
            return Verdict(None, "unparsable: no expression")
        return Verdict(any(math_verify.verify(math_verify.parse(right), found) for right in references(example)))

    return verify


def _code(options: Verifier) -> Verify:
    """Python: the answer's last code block (or all of it), and behind it the positive, which holds the tests."""

    def verify(example: Example, text: str) -> Verdict:
        blocks = _BLOCK.findall(text)
        program = blocks[-1] if blocks else text
        runs = [sandbox.run(program, tests, options.timeout, options.memory) for tests in references(example)]
        return Verdict(all(run.passed for run in runs), next((run.note for run in runs if run.note), None))

    return verify


def dotted(name: str, where: str) -> Callable:
    """The function `package.module.function`. Raises UserError."""
    module, _, function = name.rpartition(".")
    fix = "give package.module.function, importable from the folder where align is started"
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # the console script does not look there
    try:
        found = getattr(importlib.import_module(module), function) if module else None
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(where, f"{shorten(name)} cannot be imported: {shorten(error, 120)}", fix) from None
    if not callable(found):
        raise UserError(where, f"{shorten(name)!r} is no function", fix)
    return found


def _own(name: str) -> Verify:
    """A user's (prompt, answer, positives) -> True, False or None."""
    function = dotted(name, "rollouts.verifier.name")

    def verify(example: Example, text: str) -> Verdict:
        try:
            is_right = function(example.prompt, text, example.texts("positive"))
        except Exception as error:
            what = f"{name} fails: {type(error).__name__}: {shorten(error, 120)}"
            raise UserError(str(example.place), what, "mend the function") from error
        if is_right not in (True, False, None):
            raise UserError(str(example.place), f"{name} returns {shorten(is_right)}", "return True, False or None")
        return Verdict(None if is_right is None else bool(is_right), None if is_right is not None else "undecided")

    return verify
