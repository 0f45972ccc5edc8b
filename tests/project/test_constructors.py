"""Fields of a dataclass are passed by name where there are more than four: positions that nobody can read back get mixed up."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.conftest import ROOT

PACKAGE = "fusionbench_lite"
MOST = 4


def trees(folder: Path) -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.py"))}


def dataclass_names(modules: dict[Path, ast.Module]) -> set[str]:
    """Names of the classes that `dataclasses.dataclass` makes, with or without arguments."""
    classes = [node for tree in modules.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    return {node.name for node in classes if any(_is_dataclass(decorator) for decorator in node.decorator_list)}


def _is_dataclass(decorator: ast.expr) -> bool:
    maker = decorator.func if isinstance(decorator, ast.Call) else decorator
    return ast.unparse(maker) in ("dataclass", "dataclasses.dataclass")


def from_elsewhere(tree: ast.Module) -> set[str]:
    """Names that a module imports from other packages: rich's Table is no Table of this package."""
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    others = [node for node in imports if (node.module or "").split(".")[0] != PACKAGE]
    return {alias.asname or alias.name for node in others for alias in node.names}


def by_position(modules: dict[Path, ast.Module], names: set[str]) -> list[str]:
    """`FILE:LINE NAME` of each call of one of the names with more than four arguments by position."""
    calls = []
    for path, tree in modules.items():
        ours = names - from_elsewhere(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and len(node.args) > MOST:
                name = ast.unparse(node.func).rpartition(".")[2]
                if name in ours:
                    calls.append(f"{path}:{node.lineno} {name}")
    return calls


def test_more_than_four_fields_are_passed_by_name():
    modules = trees(ROOT / PACKAGE)
    names = dataclass_names(modules)
    assert {"Need", "Plan", "TaskData"} <= names
    assert by_position(modules, names) == []


def test_a_call_by_position_is_named(tmp_path):
    (tmp_path / "module.py").write_text(
        "import dataclasses\n"
        "from rich.table import Table\n"
        "@dataclasses.dataclass\n"
        "class Point: a: int\n"
        "@dataclasses.dataclass(frozen=True)\n"
        "class Table: a: int\n"
        "Point(1, 2, 3, 4), Point(a=1), Table(1, 2, 3, 4, 5), print(1, 2, 3, 4, 5)\n"
        "module.Point(1, 2, 3, 4, 5)\n"
    )
    modules = trees(tmp_path)
    assert by_position(modules, dataclass_names(modules)) == [f"{tmp_path / 'module.py'}:8 Point"]
