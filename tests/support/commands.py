"""The commands of the package, called in this process or in one of their own."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

ROOT = Path(__file__).resolve().parents[2]
Command = Callable[..., subprocess.CompletedProcess[str]]


def in_this_process(folder: Path, cache: Path) -> Command:
    """Return what runs `python -m fusionbench_lite ...` in `folder` and returns what subprocess.run would, without an import."""

    def run(*arguments: str, module: str = "fusionbench_lite", env: dict[str, str] | None = None):
        name = f"{module}.__main__" if module in ("fusionbench_lite", "fusionbench_lite.tables") else module
        out, error = io.StringIO(), io.StringIO()
        environment = _environment(cache) | (env or {})
        with _as_a_process(folder, [module, *arguments], environment), contextlib.redirect_stdout(out):
            with contextlib.redirect_stderr(error):
                status = _status(importlib.import_module(name).main)
        return subprocess.CompletedProcess([module, *arguments], status, out.getvalue(), error.getvalue())

    return run


def in_its_own_process(folder: Path, cache: Path) -> Command:
    """Return what runs `python -m fusionbench_lite ...` in `folder` as users do: for signals, launchers and what is imported."""

    def run(*arguments: str, module: str = "fusionbench_lite", env: dict[str, str] | None = None, timeout: float = 240):
        environment = {**os.environ, **_environment(cache), "PYTHONPATH": str(ROOT), **(env or {})}
        return subprocess.run(
            [sys.executable, "-m", module, *arguments], cwd=folder, env=environment, capture_output=True, text=True,
            timeout=timeout, check=False,
        )

    return run


def _environment(cache: Path) -> dict[str, str]:
    return {"FUSIONBENCH_LITE_CACHE": str(cache), "COLUMNS": "200"}


def _status(main: Callable[[], int]) -> int:
    """Return the exit status that the interpreter would have, after printing the traceback that it would print."""
    try:
        return main() or 0
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else int(left.code is not None)
    except Exception:
        traceback.print_exc()
        return 1


@contextlib.contextmanager
def _as_a_process(folder: Path, line: list[str], environment: dict[str, str]) -> Iterator[None]:
    """Start from what a new process finds, and leave folder, environment, logging and Hydra as they were."""
    root, before = logging.getLogger(), (Path.cwd(), dict(os.environ), sys.argv)
    handlers, level = list(root.handlers), root.level
    GlobalHydra.instance().clear()
    _forget_loaded_suite()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = line
    try:
        yield
    finally:
        os.chdir(before[0])
        for name in set(os.environ) - set(before[1]):
            del os.environ[name]
        os.environ.update(before[1])
        sys.argv = before[2]
        root.handlers, root.level = handlers, level
        GlobalHydra.instance().clear()
        HydraConfig.instance().cfg = None
        _forget_loaded_suite()


def _forget_loaded_suite() -> None:
    if loaded := sys.modules.get("fusionbench_lite.running.loading"):
        loaded._latest.clear()
