"""The page of the audit is what the program says of the numbers as they are."""

from __future__ import annotations

import pytest

from tests.conftest import ROOT


def test_the_page_is_up_to_date(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import audit_page

    assert audit_page.page() == (ROOT / "docs" / "audit.md").read_text(), "write it anew: make docs"
