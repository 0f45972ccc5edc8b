"""torchvision beside a CPU-only torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

RUN = "import fusionbench_lite.base.torchvision_ops as ops, torch, torchvision, lightning;"


def _python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_torchvision_and_lightning_import_after_it():
    assert _python(RUN + "print(torch.ops.torchvision.nms.default._schema)").startswith("torchvision::nms(")


@pytest.mark.slow
def test_it_does_nothing_where_the_operators_are_defined():
    assert _python(RUN + "print(ops.define_missing_operators())") == "None"


@pytest.mark.slow
def test_the_library_outlives_a_collection():
    code = RUN + "import gc; gc.collect(); print(hasattr(torch.ops.torchvision, 'nms'), hasattr(torch.ops.torchvision, 'qnms'))"
    assert _python(code) in ("True True", "True False")  # torchvision's own library has no qnms in every version
