"""Records of earlier versions are found: the keys of their runs are still those."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import identities

OLD = yaml.safe_load(Path(__file__).with_name("identities_0_4.yaml").read_text())


def test_the_ten_lines_are_those_of_the_file():
    assert [entry["line"] for entry in OLD] == list(identities.LINES)
    assert len({entry["key"] for entry in OLD}) == 10


@pytest.mark.parametrize("old", OLD, ids=lambda old: " ".join(old["line"]))
def test_the_key_of_a_run_is_that_of_version_0_4(old: dict[str, Any]):
    assert identities.entry(old["line"]) == old
