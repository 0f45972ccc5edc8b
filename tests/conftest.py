"""Shared by all tests: few threads, a cache of the test session's own, the command line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.support.commands import ROOT, Command, in_its_own_process, in_this_process

# The usual run draws the same examples every time, so that a change is judged by itself; `make test-slow` draws new ones. A law
# takes as long as the machine lets it: time limits of single examples would fail on a busy one.
hypothesis.settings.register_profile("suite", deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.register_profile("slow", deadline=None, max_examples=200, print_blob=True)
hypothesis.settings.load_profile("suite")
os.environ.setdefault("OMP_NUM_THREADS", "1")
__all__ = ["ROOT", "Command"]


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    """Leave the environment as it was: a command that finds no hub says so to the rest of its process (HF_HUB_OFFLINE)."""
    before = dict(os.environ)
    yield
    for name in set(os.environ) - set(before):
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache directory that all workers of a test session share, so that small experts are trained once."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    cache = root / "cache"
    cache.mkdir(exist_ok=True)
    return cache


@pytest.fixture
def command(tmp_path: Path, shared_cache: Path) -> Command:
    """Run `python -m fusionbench_lite ...` with results in a fresh folder; `module` chooses another module.

    It is called in this process: importing torch takes longer than most runs of the tests. `process` is for what needs its own.
    """
    return in_this_process(tmp_path, shared_cache)


@pytest.fixture
def process(tmp_path: Path, shared_cache: Path) -> Command:
    """As `command`, in a process of its own."""
    return in_its_own_process(tmp_path, shared_cache)


@pytest.fixture(scope="module")
def module_command(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> tuple[Command, Path]:
    """As `command`, in one folder for a module of tests, which comes with it."""
    folder = tmp_path_factory.mktemp("module")
    return in_this_process(folder, shared_cache), folder
