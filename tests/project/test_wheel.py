"""What a wheel and a source distribution hold beside the package, and that the package finds it there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from tests.conftest import ROOT

BUILD = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]
DATA = ("conf", "experiments", "results/published")


def test_data_is_in_both_distributions():
    assert BUILD["wheel"]["force-include"] == {name: f"fusionbench_lite/_data/{name}" for name in DATA}
    assert set(DATA) <= set(BUILD["sdist"]["include"])


def test_an_installed_package_lists_the_published_tables(tmp_path: Path):
    """Laid out as the wheel is, away from the checkout."""
    shutil.copytree(ROOT / "fusionbench_lite", tmp_path / "fusionbench_lite", ignore=shutil.ignore_patterns("__pycache__"))
    for source, target in BUILD["wheel"]["force-include"].items():
        shutil.copytree(ROOT / source, tmp_path / target)
    done = subprocess.run(
        [sys.executable, "-m", "fusionbench_lite.tables", "--list"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert len(done.stdout.splitlines()) == 50
