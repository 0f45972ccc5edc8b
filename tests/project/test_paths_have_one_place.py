"""What users write is expanded in one place."""

from __future__ import annotations

import re

from tests.conftest import ROOT

PACKAGE = ROOT / "fusionbench_lite"


def test_only_paths_expands():
    for path in PACKAGE.rglob("*.py"):
        found = re.findall(r"expanduser|expandvars|Path\.home\(", path.read_text())
        assert bool(found) == (path == PACKAGE / "paths.py"), (path, found)
