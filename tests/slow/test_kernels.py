"""The numeric tests on the kernels of another processor: plain SSE in torch, MKL's compatible branch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

KERNELS = {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "OMP_NUM_THREADS": "1"}

FILES = {
    "test_optimised_against_oracles.py": "wudi or one_expert or other_models or zero",
    "test_optimised_laws.py": "wudi or orthogonal_tasks or collinear",
    "test_spectral_against_oracles.py": "key_sets_of_other_models",
    "test_adapt_oracles.py": "",
}
"""Test files, wherever they are under tests/, and what of them runs: a minute and a half of one core."""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_numeric_tests_pass_on_other_kernels():
    """One process per file would import torch again each time: a selection of them all has to fit them all."""
    paths = [next((ROOT / "tests").rglob(name)) for name in FILES]
    wanted = " or ".join(
        f"({path.name} and ({chosen}))" if chosen else path.name for path, chosen in zip(paths, FILES.values(), strict=True)
    )
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", wanted, *map(str, paths)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **KERNELS}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert " passed" in done.stdout
