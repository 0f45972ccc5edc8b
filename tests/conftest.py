"""Shared by all tests: few threads, a cache of the test session's own, a command line that is run in a subprocess."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest

# The same examples every time, so that a change is judged by itself; `--hypothesis-profile=explore` draws new ones. A law takes as
# long as the machine lets it: time limits of single examples would fail on a busy one.
hypothesis.settings.register_profile("suite", deadline=None, derandomize=True)
hypothesis.settings.register_profile("explore", deadline=None)
hypothesis.settings.load_profile("suite")
os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache directory that all workers of a test session share, so that small experts are trained once."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    cache = root / "cache"
    cache.mkdir(exist_ok=True)
    return cache


Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def command(tmp_path: Path, shared_cache: Path) -> Command:
    """Run `python -m fusionbench_lite ...` with results in a fresh folder; `module` chooses another module."""
    return _command_in(tmp_path, shared_cache)


@pytest.fixture(scope="module")
def module_command(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> tuple[Command, Path]:
    """As `command`, in one folder for a module of tests, which comes with it."""
    folder = tmp_path_factory.mktemp("module")
    return _command_in(folder, shared_cache), folder


def _command_in(folder: Path, cache: Path) -> Command:
    def run(*arguments: str, module: str = "fusionbench_lite", env: dict[str, str] | None = None, timeout: float = 240):
        environment = {**os.environ, "FUSIONBENCH_LITE_CACHE": str(cache), "COLUMNS": "200", **(env or {})}
        return subprocess.run(
            [sys.executable, "-m", module, *arguments], cwd=folder, env={**environment, "PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, timeout=timeout, check=False,
        )

    return run
