"""Whether rows can supply what an objective needs, told from a look at local files before anything is loaded."""

from __future__ import annotations

import itertools

from align.data import sources
from align.data.examples import Example, RowError, parse_row
from align.errors import UserError

ROWS = 2000  # of each source; a need that none of them meets is taken not to be met


def lacking(paths: list[tuple[str, str]], needs: set[str]) -> dict[str, int]:
    """need -> how many rows were looked at, for each need that no row of these sources (path, split) can meet.

    Empty where a source could not be looked at: hub ids and tables are read by libraries that take seconds to
    load, and broken rows have messages of their own.
    """
    wanted, looked_at = {need for need in needs if need in _MET_BY}, 0
    for path, split in paths:
        if not path.startswith(sources.BUILTIN) and not sources.is_local(path):
            return {}
        try:
            for place, row in itertools.islice(sources.rows(path, split, only_lines=True), ROWS):
                if isinstance(row, RowError):
                    return {}
                example = parse_row(row, source=path, place=place)
                looked_at += 1
                wanted = {need for need in wanted if not _MET_BY[need](example)}
                if not wanted:
                    return {}
        except (RowError, UserError, NotImplementedError):
            return {}
    return dict.fromkeys(sorted(wanted), looked_at) if looked_at else {}  # an empty file is told elsewhere


def _has(*roles: str):
    def met(example: Example) -> bool:
        return {response.role for response in example.responses} >= set(roles)

    return met


def _any(test):
    return lambda example: any(test(response) for response in example.responses)


_MET_BY = {
    "positives": _has("positive"),
    "negatives": _has("negative"),
    "pairs": _has("positive", "negative"),
    "responses": _any(lambda response: response.role != "sample"),
    "rewards": _any(lambda response: response.reward is not None),
    "behavior": _any(lambda response: response.behavior_logps is not None),
    "steps": _any(lambda response: any(step.label for step in response.steps)),
}
