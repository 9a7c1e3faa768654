"""Every module imports, imports run one way, and checking a recipe stays light."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import align

PACKAGE = Path(align.__file__).parent
MODULES = sorted(module.name for module in pkgutil.walk_packages([str(PACKAGE)], prefix="align."))

# Who may not import whom, at any depth of their own text.
FORBIDDEN = {
    "align.objectives": ("align.data", "align.trainer", "align.models", "align.recipe", "align.run", "transformers"),
    "align.data": ("align.trainer", "align.models", "align.job", "align.scoring", "align.negatives"),
    "align.scoring": ("align.trainer", "align.job", "align.recipe", "align.objectives"),
    "align.reference": ("align.trainer", "align.job", "align.recipe"),
    "align.report": ("align.trainer", "align.models", "align.job", "align.recipe", "align.data", "align.scoring"),
    "align.errors": ("align.",),
}


def imported_by(module: str) -> set[str]:
    """Modules imported anywhere in a module's text, type-checking blocks left out."""
    file = PACKAGE.parent / Path(*module.split("."))
    path = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_there_are_modules():
    assert len(MODULES) > 20


@pytest.mark.parametrize("module", MODULES)
def test_imports(module):
    importlib.import_module(module)
    assert sys.modules[module].__doc__, "every module says what it is for"


@pytest.mark.parametrize("importer", FORBIDDEN)
def test_imports_run_one_way(importer):
    users = [name for name in MODULES if name == importer or name.startswith(importer + ".")]
    assert users
    for user in users:
        bad = [name for name in imported_by(user) if name.startswith(FORBIDDEN[importer])]
        assert not bad, f"{user} imports {bad}"


def test_sections_of_a_recipe_do_not_know_the_recipe():
    """They lie beside what reads them, and the recipe imports them: nothing that they reach imports the recipe."""
    sections = [name for name in MODULES if re.fullmatch(r"(mining_)?(options|checks)", name.rpartition(".")[2])]
    assert {"align.guard.options", "align.guard.checks", "align.negatives.mining_checks"} < set(sections)
    for section in sections:
        reached, coming = set(), [section]
        while coming:
            found = imported_by(coming.pop()) & set(MODULES) - reached
            reached |= found
            coming += found
        assert not {"align.recipe", "align.trainer"} & reached, section


def test_objectives_need_torch_only():
    allowed = ("torch", "align.objectives", "align.schema")
    for module in (name for name in MODULES if name.startswith("align.objectives")):
        outside = {name for name in imported_by(module) if name.split(".")[0] not in sys.stdlib_module_names}
        assert all(name.startswith(allowed) for name in outside), (module, outside)


def test_no_module_shadows_another_package():
    """`align/` lands on sys.path when train.py is run as a file by tools that look there."""
    installed = {path.name for path in Path(sysconfig.get_paths()["purelib"]).iterdir()}
    for module in (name for name in MODULES if name.count(".") == 1):
        name = module.rpartition(".")[2]
        assert name not in sys.stdlib_module_names and name not in installed, f"align/{name} shadows a package"


def loaded_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(result.stdout.splitlines()[-1].split())


def test_help_needs_no_torch():
    assert "torch" not in loaded_after("import align.cli")


def test_check_needs_torch_but_no_models(root):
    modules = loaded_after(f"import align.cli; align.cli.run(['check', {str(root / 'recipes/d2o.yaml')!r}])")
    assert "torch" in modules and not {"transformers", "trl", "deepspeed", "peft", "datasets"} & modules


def test_reports_need_no_torch():
    assert not {"torch", "transformers"} & loaded_after("import align.report.command")
