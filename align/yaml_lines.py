"""YAML read with the line of every key, so that an error can name its place."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from align.errors import UserError, UserErrors, shorten

Path_ = tuple[str | int, ...]  # where a value sits: ("data", "sources", 0, "path")


class _Loader(yaml.SafeLoader):
    """SafeLoader with two repairs: only true/false are booleans (`off` is a word), and 5e-7 is a number."""


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern) for tag, pattern in resolvers if tag not in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:float")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(true|false|True|False)$"), list("tfTF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.\d*|\.\d+|\d+)([eE][-+]?\d+)?$|^[-+]?\.(inf|Inf)$|^\.(nan|NaN)$"),
    list("-+0123456789."),
)


def parse_value(text: str) -> object:
    """A value as the recipe's YAML would read it: for `key=value` on the command line."""
    return yaml.load(text, Loader=_Loader)


def load(path: Path) -> tuple[dict, dict[Path_, str]]:
    """Reads a YAML mapping. Returns its data and, for every path in it, `file:line`."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(str(path), f"cannot be read: {shorten(error)}", "name a recipe file (YAML)") from None
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        places: dict[Path_, str] = {(): f"{path}:1"}
        errors: list[UserError] = []
        if root is not None:
            _visit(root, (), str(path), places, errors)
        if errors:
            raise UserErrors(errors)
        data = loader.construct_document(root) if root is not None else {}
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        problem = getattr(error, "problem", None) or error
        raise UserError(f"{path}:{line}", f"not valid YAML: {shorten(problem)}", "mend the line") from None
    finally:
        loader.dispose()
    if not isinstance(data, dict):
        raise UserError(f"{path}:1", "a recipe is a mapping of sections", "start with 'name:' and 'model:'")
    return data, places


def _visit(node: yaml.Node, at: Path_, file: str, places: dict[Path_, str], errors: list[UserError]) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*at, key.value)
            place = f"{file}:{key.start_mark.line + 1}"
            if here in places:
                errors.append(UserError(place, f"{dotted(here)}: given twice", f"first at {places[here]}; keep one"))
            places[here] = place
            _visit(value, here, file, places, errors)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            places[(*at, index)] = f"{file}:{value.start_mark.line + 1}"
            _visit(value, (*at, index), file, places, errors)


def dotted(path: Path_) -> str:
    """`("data", "sources", 0, "path")` as people write it: `data.sources[0].path`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else (f".{part}" if text else str(part))
    return text
