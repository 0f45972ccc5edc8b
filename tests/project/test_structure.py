"""The rooms of the package and the direction of imports, which import-linter holds against pyproject.toml."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "fusionbench_lite"
TOP = {
    "__init__", "__main__", "errors", "paths", "lazy", "registry", "fields", "doctor", "finetune", "convert", "merge_files",
    "cache", "records", "export", "pictures", "sizes", "components", "torchvision_ops", "evaluate_llm",
}
PLANTED = {
    "a room below imports one above": ("weights/ranks.py", "from fusionbench_lite.planning import plan", "Imports point down"),
    "an import for types alone": (
        "data/files.py", "if TYPE_CHECKING:\n    from fusionbench_lite.running.run import execute", "Imports point down",
    ),
    "two files of a room import each other": ("tables/schema.py", "from fusionbench_lite.tables import records", "No circles"),
    "planning imports torch": ("planning/presets.py", "import torch", "never import torch"),
    "tables import what imports torch": ("tables/titles.py", "from fusionbench_lite.models import modes", "never import torch"),
}


def linted(folder: Path) -> tuple[int, str]:
    """Run import-linter in a folder, as `make lint` does."""
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()", "--no-cache"], cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "200"}, capture_output=True, text=True, timeout=120, check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_the_top_level_is_commands_and_what_everything_stands_on():
    assert {path.stem for path in PACKAGE.glob("*.py")} == TOP


def test_imports_follow_the_contracts():
    status, said = linted(ROOT)
    assert status == 0, said
    assert "0 broken" in said


@pytest.mark.parametrize("what", PLANTED)
def test_a_wrong_import_breaks_a_contract(tmp_path: Path, what: str):
    file, line, contract = PLANTED[what]
    shutil.copytree(PACKAGE, tmp_path / "fusionbench_lite", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    path = tmp_path / "fusionbench_lite" / file
    path.write_text(f"{path.read_text()}\nfrom typing import TYPE_CHECKING\n{line}\n")
    status, said = linted(tmp_path)
    assert status == 1, said
    broken = [one for one in said.splitlines() if "BROKEN" in one]
    assert any(contract in one for one in broken), said


def test_planning_and_tables_do_not_import_torch():
    code = (
        "import pkgutil, sys, importlib\n"
        "for room in ('planning', 'tables'):\n"
        "    package = importlib.import_module(f'fusionbench_lite.{room}')\n"
        "    for found in pkgutil.iter_modules(package.__path__):\n"
        "        if found.name != '__main__':\n"
        "            importlib.import_module(f'{package.__name__}.{found.name}')\n"
        "from fusionbench_lite.planning.command_line import plan_of\n"
        "plan_of(['model=vit_b32', 'method=adarank'])\n"
        "print('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["False"]
