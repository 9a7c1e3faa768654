"""`align check --list`: one row an objective, in words that fit; and what the command refuses."""

from __future__ import annotations

import pytest

from align import objectives
from align.cli import run
from align.errors import UserError
from align.objectives import EXTRAS

NEEDS = {"reference", "behavior", "ema", "rewards", "mismatched", "heads", "teacher", *objectives.ROLES_OF_NEEDS}
UNITS = {"pair", "response", "token", "role_token", "prompt", "negative"}


def printed(capsys, *arguments: str) -> list[str]:
    run(list(arguments))
    streams = capsys.readouterr()
    assert streams.err == ""
    return streams.out.splitlines()


@pytest.fixture
def rows(capsys) -> dict[str, list[str]]:
    """name -> its cells, of the table that the command prints."""
    lines = printed(capsys, "check", "--list")
    assert lines[0] == "| objective | needs | normalised by | what it does |"
    assert lines[1] == "|---|---|---|---|"
    cells = [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in lines[2:]]
    assert all(line.startswith("| `") and line.endswith(" |") for line in lines[2:])
    found = {name: rest for name, *rest in cells}
    assert len(found) == len(cells), "an objective stands there twice"
    return found


def test_every_objective_has_a_row(rows):
    names = [name.strip("`") for name in rows]
    assert names == sorted(objectives.available()) and {"dpo", "d2o", "unlikelihood"} < set(names)


def test_rows_tell_needs_unit_and_sentence(rows):
    for name, cells in rows.items():
        assert len(cells) == 3, f"{name}: a '|' in its sentence, or a cell is missing"
        cls = objectives.load(name.strip("`"))
        needs, unit, sentence = cells
        assert tuple(needs.split(", ")) == cls.needs and set(cls.needs) <= NEEDS, name
        assert unit == cls.normalize_by and unit in UNITS, name
        assert sentence == " ".join(cls.__doc__.split()).rstrip("."), name


def test_rows_by_hand(rows):
    """Two rows as they are meant, not as the classes happen to say."""
    assert rows["`dpo`"][:2] == ["reference, pairs", "pair"] and "held by the reference" in rows["`dpo`"][2]
    assert rows["`d2o`"][:2] == ["reference, negatives, samples", "prompt"] and "no positives" in rows["`d2o`"][2]


def test_sentences_fit(rows):
    for name, (_, _, sentence) in rows.items():
        assert 30 <= len(sentence) <= 110, f"{name}: {len(sentence)} characters"
        assert "|" not in sentence and "\n" not in sentence and not sentence.endswith("."), name
        assert sentence[0].isupper(), name
        class_name = objectives.load(name.strip("`")).__name__
        assert not sentence.startswith(f"{class_name}("), f"{name}: dataclass's stand-in for a missing docstring"


def test_every_extra_is_asked_for_or_known():
    """What the classes ask of the head under their defaults is something that exists."""
    for name in objectives.available():
        assert set(objectives.load(name)().extras) <= EXTRAS.keys(), name


@pytest.mark.parametrize(
    "arguments, what, fix",
    [
        (["check", "--list", "recipe.yaml"], "--list names no recipe", "align check --list"),
        (["check", "recipe.yaml", "--list"], "--list names no recipe", "align check --list"),
        (["check"], "names no recipe", "align check RECIPE"),
        (["check", "train.seed=3"], "names no recipe", "align check RECIPE"),
        (["check", "--lost"], "--lost", "--help"),
        (["chek"], "chek", "--help"),
        (["train"], "RECIPE", "--help"),
        ([], "names no command", "align check RECIPE"),
    ],
)
def test_user_errors(arguments, what, fix, capsys):
    with pytest.raises(UserError) as raised:
        run(arguments)
    text = str(raised.value)
    assert text.startswith("command line: ") and what in text and fix in text
    assert capsys.readouterr().out == "", "nothing is printed beside the error"


def test_help_of_check_tells_of_the_list(capsys):
    with pytest.raises(SystemExit) as left:
        run(["check", "--help"])
    assert left.value.code == 0 and "--list" in capsys.readouterr().out
