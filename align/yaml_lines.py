"""YAML read with the line of every key, so that an error can name its place."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import yaml

from align.errors import UserError, UserErrors, shorten

Path_ = tuple[str | int, ...]  # where a value sits: ("data", "sources", 0, "path")


_TAG = "tag:yaml.org,2002:"
_FLOAT = (
    _TAG + "float",
    re.compile(r"^[-+]?(\d+\.\d*|\.\d+|\d+)([eE][-+]?\d+)?$|^[-+]?\.(inf|Inf)$|^\.(nan|NaN)$"),
    list("-+0123456789."),
)


class _Loader(yaml.SafeLoader):
    """SafeLoader with repairs: only true/false are booleans (`off` is a word), 5e-7 is a number, a date is text."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> object:
        try:
            return super().construct_object(node, deep)
        except ValueError:  # 0b_ and integers of thousands of digits, which Python's int() refuses
            what = f"{shorten(node.value, 20)} cannot be read as the number it looks like"
            raise yaml.constructor.ConstructorError(None, None, what, node.start_mark) from None


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern) for tag, pattern in resolvers if tag.removeprefix(_TAG) not in ("bool", "float", "timestamp")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_TAG + "bool", re.compile(r"^(true|false|True|False)$"), list("tfTF"))
_Loader.add_implicit_resolver(*_FLOAT)


class _Dumper(yaml.SafeDumper):
    """Quotes text that is no text to `_Loader` (5e-7), nor to other readers of YAML (off, 2024-12-25)."""


_Dumper.add_implicit_resolver(*_FLOAT)


def dump(data: dict) -> str:
    """Plain data as YAML that `load`, and any other reader, takes for the same data."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def parse_value(text: str, where: str) -> object:
    """A value as the recipe's YAML would read it: for `key=value` on the command line. Raises UserError."""
    try:
        return _parse(text, lambda line: where)[0]
    except yaml.YAMLError:
        raise UserError(where, "the value is not valid YAML", "quote it for the shell and for YAML") from None


def load(path: Path) -> tuple[dict, dict[Path_, str]]:
    """Reads a YAML mapping. Returns its data and, for every path in it, `file:line`."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(str(path), f"cannot be read: {shorten(error)}", "name a recipe file (YAML)") from None
    try:
        data, places = _parse(text, lambda line: f"{path}:{line}")
    except yaml.reader.ReaderError as error:  # raised for the whole text at once, without a mark
        line = text.count("\n", 0, error.position) + 1
        what = f"not valid YAML: the character {chr(error.character)!r} is not allowed"
        raise UserError(f"{path}:{line}", what, "take it out") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or error
        place = f"{path}:{mark.line + 1 if mark else 1}"
        raise UserError(place, f"not valid YAML: {shorten(problem)}", "mend the line") from None
    data = {} if data is None else data
    if not isinstance(data, dict):
        raise UserError(f"{path}:1", "a recipe is a mapping of sections", "start with 'name:' and 'model:'")
    return data, places


def _parse(text: str, place: Callable[[int], str]) -> tuple[object, dict[Path_, str]]:
    """The data of a YAML text and the place of every path in it. Raises YAMLError, or UserErrors of `_visit`."""
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        places: dict[Path_, str] = {(): place(1)}
        if root is None:
            return None, places
        errors = _visit(root, (), place, places, ())
        if errors:
            raise UserErrors(errors)
        return loader.construct_document(root), places
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None
    finally:
        loader.dispose()


def _visit(
    node: yaml.Node, at: Path_, place: Callable[[int], str], places: dict[Path_, str], above: tuple[yaml.Node, ...]
) -> list[UserError]:
    """Notes the places of everything inside `node` and makes its keys text. Returns what is wrong with them."""
    if any(node is outer for outer in above):
        return [UserError(places[at], f"{dotted(at)}: holds itself (an alias inside its anchor)", "write it out")]
    errors: list[UserError] = []
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here_place = place(key.start_mark.line + 1)
            if not isinstance(key, yaml.ScalarNode):  # a template that was not filled in, most often: {{folder}}
                what = f"{dotted(at)}: a key in braces or brackets" if at else "a key in braces or brackets"
                errors.append(UserError(here_place, what, "a key is a word; quote a value that begins with { or ["))
                continue
            if key.tag != _TAG + "merge":
                key.tag = _TAG + "str"  # `1: 2` names an unknown key '1', which has its place under that name
            here = (*at, key.value)
            if here in places:
                fix = f"first at {places[here]}; keep one"
                errors.append(UserError(here_place, f"{dotted(here)}: given twice", fix))
            places[here] = here_place
            errors += _visit(value, here, place, places, (*above, node))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            places[(*at, index)] = place(value.start_mark.line + 1)
            errors += _visit(value, (*at, index), place, places, (*above, node))
    return errors


def dotted(path: Path_) -> str:
    """`("data", "sources", 0, "path")` as people write it: `data.sources[0].path`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else (f".{part}" if text else str(part))
    return text
