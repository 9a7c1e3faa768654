"""Everything under recipes/ is sound, and the README is true: its commands, its files, its objectives."""

from __future__ import annotations

import re
import shlex

import pytest

from align import catalogue, objectives, recipe
from tests.conftest import ROOT

RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_there_are_recipes():
    assert len(RECIPES) >= 2


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_recipe_passes_check(path):
    loaded = recipe.load(path)
    first = path.read_text(encoding="utf-8").splitlines()[0]
    commands = {"rollouts": "iterate", "mining": "mine", "degrade": "negatives degrade", "repair": "negatives repair"}
    own = [f"align {command}" for section, command in commands.items() if getattr(loaded, section) is not None]
    command = own[0] if own else "accelerate launch align/train.py"
    assert re.fullmatch(rf"# {command} recipes/{re.escape(path.name)}( --[a-z]+ [\w./]+)*", first)
    assert loaded.output == f"runs/{loaded.name}"


def test_every_objective_has_a_recipe():
    used = {recipe.load(path).objective["name"] for path in RECIPES}
    assert used == set(objectives.available())


def readme_commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    lines = [line.split(" #")[0].strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def test_readme_names_its_two_commands_first():
    assert readme_commands()[:2] == ["bash launch/quickstart.sh", "bash launch/test.sh"]


@pytest.mark.parametrize("command", readme_commands())
def test_files_in_readme_commands_exist(command):
    words = [word for word in shlex.split(command) if "=" not in word or word.startswith("--")]
    files = [word for word in words if re.match(r"(launch|align|recipes|tests|benchmarks)/", word)]
    for file in files:
        assert (ROOT / file).exists(), f"{command}: there is no {file}"
    if "align/train.py" in words or words[:2] == ["align", "train"]:
        overrides = [word for word in shlex.split(command) if re.match(r"[a-z_.]+=", word) and "my.jsonl" not in word]
        recipe.load(next(ROOT / word for word in words if word.startswith("recipes/")), overrides)


def test_readme_file_map_is_complete():
    """Each module of align/ has its line in the map, and the map names nothing that is not there."""
    modules = {path.relative_to(ROOT / "align").as_posix() for path in (ROOT / "align").rglob("*.py")}
    wanted = {name for name in modules if not name.endswith("__init__.py") and not name.startswith("objectives/")}
    named = set(re.findall(r"`align/([\w/]+\.py)`", README))
    assert wanted - named == set() and named - modules == set()


def test_readme_lists_the_objectives():
    """The table is what `align check --list` prints."""
    assert f"\n\n{catalogue.table()}\n\n" in README
    assert catalogue.table().count("\n| `") == len(objectives.available()) >= 40
