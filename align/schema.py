"""Typed, bounded options: dataclass fields that say what they mean and what they allow.

`option` declares one, `Reader` fills a dataclass from plain data and collects every mistake with its place.
Needs only the standard library: objectives declare their hyper-parameters with it too.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import operator
import types
import typing
from collections.abc import Callable, Sequence

from align.errors import UserError, shorten

UNREADABLE = object()  # in place of a value of the wrong type
LARGEST_INT = 2**63 - 1  # what torch takes as a seed, a length, a step


def option(
    default: object = dataclasses.MISSING,
    *,
    doc: str,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    choices: Sequence[str] | None = None,
) -> typing.Any:
    """A dataclass field with its sentence (`doc`, unit included) and its range.

    A callable `default` (`list`, a section's class) makes a fresh value for each instance.
    """
    metadata = {"doc": doc, "ge": ge, "gt": gt, "le": le, "lt": lt, "choices": choices}
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def range_text(metadata: typing.Mapping) -> str:
    """The range of an option in words: 'above 0 and at most 1'; empty where everything goes."""
    if metadata.get("choices"):
        return "one of " + ", ".join(map(str, metadata["choices"]))
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    return " and ".join(f"{word} {metadata[key]:g}" for key, word in words.items() if metadata.get(key) is not None)


def near_miss(name: str, known: Sequence[str]) -> str:
    """The way out for a typo; empty where nothing known is near."""
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.55)
    return f"did you mean {match[0]!r}?" if match else ""


def nearest(name: str, known: Sequence[str]) -> str:
    """The way out for an unknown name: the nearest known one, or the list of all."""
    return near_miss(name, known) or "known here: " + (", ".join(sorted(known)) or "nothing")


class Reader:
    """Fills dataclasses from plain data. Mistakes are collected in `errors`, never raised one by one.

    `place(path)` gives the file and line (or 'command line') of a path such as `("train", "epochs")`.
    """

    def __init__(self, place: Callable[[tuple], str], dotted: Callable[[tuple], str]):
        self.place, self.dotted = place, dotted
        self.errors: list[UserError] = []
        self.failed: list[tuple] = []  # the paths of `errors`

    def fail(self, path: tuple, what: str, fix: str = "") -> None:
        name = self.dotted(path)
        self.failed.append(path)
        self.errors.append(UserError(self.place(path), f"{name}: {what}" if name else what, fix))

    def sound(self, path: tuple) -> bool:
        """Whether nothing has been found wrong at `path`, above it or inside it."""
        return not any(bad[: len(path)] == path[: len(bad)] for bad in self.failed)

    def section(self, cls: type, data: object, path: tuple) -> typing.Any:
        """An instance of the dataclass `cls`.

        What cannot be read (the mistakes are in `errors`) has its default, or None where there is none: such an
        instance serves only for finding the other mistakes.
        """
        values = self.values(cls, data, path)
        missing = {field.name: None for field in dataclasses.fields(cls) if _required(field)}
        return cls(**missing | values)

    def values(self, cls: type, data: object, path: tuple) -> dict[str, object]:
        """The fields of the dataclass `cls` that `data` gives and that can be read."""
        if data is None:
            data = {}
        if not isinstance(data, dict):
            self.fail(path, f"{shorten(data)} is not a section", f"write keys: {', '.join(field_names(cls))}")
            return {}
        hints, values = typing.get_type_hints(cls), {}
        for key in data:
            if key not in field_names(cls):
                self.fail((*path, key), "unknown key", nearest(str(key), field_names(cls)))
        for field in dataclasses.fields(cls):
            here = (*path, field.name)
            if field.name in data:
                value = self.value(hints[field.name], data[field.name], here, field.metadata)
                if value is not UNREADABLE:
                    values[field.name] = value
            elif _required(field):
                self.fail(here, "is missing", field.metadata.get("doc", ""))
        return values

    def value(self, hint: object, value: object, path: tuple, metadata: typing.Mapping) -> object:
        """`value` as the type `hint`, checked against its range; UNREADABLE if it is of another type."""
        options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        if value is None and type(None) in options:
            return None
        for kind in options:
            if dataclasses.is_dataclass(kind):
                return self.section(kind, value, path)
            if typing.get_origin(kind) is list and isinstance(value, list):
                item = typing.get_args(kind)[0]
                read = [self.value(item, element, (*path, index), {}) for index, element in enumerate(value)]
                return [None if element is UNREADABLE else element for element in read]  # places count from here
            if kind is float and type(value) is int:
                value = _as_float(value)
            if kind is int and type(value) is float and value.is_integer():
                value = int(value)
            if isinstance(kind, type) and type(value) is kind:
                self.check_range(value, path, metadata)
                return value
        names = " or ".join(_type_name(kind) for kind in options)
        self.fail(path, f"{shorten(value)} is not {names}", metadata.get("doc", ""))
        return UNREADABLE

    def check_range(self, value: object, path: tuple, metadata: typing.Mapping) -> None:
        choices = metadata.get("choices")
        if choices and isinstance(value, str) and value not in choices:
            self.fail(path, f"{shorten(value)!r} is not {range_text(metadata)}", nearest(value, choices))
        if isinstance(value, bool) or not isinstance(value, int | float):
            return
        tests = {"ge": operator.ge, "gt": operator.gt, "le": operator.le, "lt": operator.lt}
        inside = all(metadata.get(key) is None or test(value, metadata[key]) for key, test in tests.items())
        limits = [range_text(metadata)] if range_text(metadata) else []
        number = _as_float(value)
        shown = f"{number:g}"
        if isinstance(value, int) and abs(value) > LARGEST_INT:
            limits.append("below 2^63")
            shown = shorten(value, 24)
        elif math.isinf(number) or (math.isnan(number) and not limits):
            limits.append("finite")  # `above 0` alone would not tell what is wrong with infinity
        elif inside and not math.isnan(number):
            return
        self.fail(path, f"{shown} is out of range", f"it must be {' and '.join(limits)}")


def _required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _as_float(value: int) -> float:
    """`value` as a float; infinite where it is too large for one."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def field_names(cls: type) -> list[str]:
    return [field.name for field in dataclasses.fields(cls)]


def _type_name(kind: object) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", dict: "a mapping"}
    if typing.get_origin(kind) is list:
        return "a list"
    return "null" if kind is type(None) else names.get(kind, getattr(kind, "__name__", str(kind)))
