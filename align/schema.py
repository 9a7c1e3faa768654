"""Typed, bounded options: dataclass fields that say what they mean and what they allow.

`option` declares one, `Reader` fills a dataclass from plain data and collects every mistake with its place.
Needs only the standard library: objectives declare their hyper-parameters with it too.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Callable, Sequence

from align.errors import UserError, shorten


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


def nearest(name: str, known: Sequence[str]) -> str:
    """The way out for an unknown name: the nearest known one, or the list of all."""
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.55)
    return f"did you mean {match[0]!r}?" if match else "known here: " + (", ".join(sorted(known)) or "nothing")


class Reader:
    """Fills dataclasses from plain data. Mistakes are collected in `errors`, never raised one by one.

    `place(path)` gives the file and line (or 'command line') of a path such as `("train", "epochs")`.
    """

    def __init__(self, place: Callable[[tuple], str], dotted: Callable[[tuple], str]):
        self.place, self.dotted = place, dotted
        self.errors: list[UserError] = []

    def fail(self, path: tuple, what: str, fix: str = "") -> None:
        name = self.dotted(path)
        self.errors.append(UserError(self.place(path), f"{name}: {what}" if name else what, fix))

    def section(self, cls: type, data: object, path: tuple) -> typing.Any:
        """An instance of the dataclass `cls`; None where mistakes (now in `errors`) make that impossible."""
        if data is None:
            data = {}
        if not isinstance(data, dict):
            self.fail(path, f"{shorten(data)} is not a section", f"write keys: {', '.join(field_names(cls))}")
            return None
        hints, values, before = typing.get_type_hints(cls), {}, len(self.errors)
        for key in data:
            if key not in field_names(cls):
                self.fail((*path, key), "unknown key", nearest(str(key), field_names(cls)))
        for field in dataclasses.fields(cls):
            here = (*path, field.name)
            if field.name in data:
                values[field.name] = self.value(hints[field.name], data[field.name], here, field.metadata)
            elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                self.fail(here, "is missing", field.metadata.get("doc", ""))
        return cls(**values) if len(self.errors) == before else None

    def value(self, hint: object, value: object, path: tuple, metadata: typing.Mapping) -> object:
        """`value` as the type `hint`, checked against its range."""
        options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        if value is None and type(None) in options:
            return None
        for kind in options:
            if dataclasses.is_dataclass(kind):
                return self.section(kind, value, path)
            if typing.get_origin(kind) is list and isinstance(value, list):
                item = typing.get_args(kind)[0]
                return [self.value(item, element, (*path, index), {}) for index, element in enumerate(value)]
            if kind is float and type(value) is int:
                value = float(value)
            if kind is int and type(value) is float and value.is_integer():
                value = int(value)
            if isinstance(kind, type) and type(value) is kind:
                self.check_range(value, path, metadata)
                return value
        names = " or ".join(_type_name(kind) for kind in options)
        self.fail(path, f"{shorten(value)} is not {names}", metadata.get("doc", ""))
        return None

    def check_range(self, value: object, path: tuple, metadata: typing.Mapping) -> None:
        choices = metadata.get("choices")
        if choices and isinstance(value, str) and value not in choices:
            self.fail(path, f"{shorten(value)!r} is not {range_text(metadata)}", nearest(value, choices))
        if isinstance(value, bool) or not isinstance(value, int | float):
            return
        bounds = {"ge": float.__ge__, "gt": float.__gt__, "le": float.__le__, "lt": float.__lt__}
        inside = all(metadata.get(k) is None or test(float(value), float(metadata[k])) for k, test in bounds.items())
        if not math.isfinite(value) or not inside:
            self.fail(path, f"{value:g} is out of range", f"it must be {range_text(metadata) or 'finite'}")


def field_names(cls: type) -> list[str]:
    return [field.name for field in dataclasses.fields(cls)]


def _type_name(kind: object) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", dict: "a mapping"}
    if typing.get_origin(kind) is list:
        return "a list"
    return "null" if kind is type(None) else names.get(kind, getattr(kind, "__name__", str(kind)))
