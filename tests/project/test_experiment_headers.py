"""The headers of published tables' files say what their plans cost."""

from __future__ import annotations

from fusionbench_lite.planning.experiments.files import paths
from tests.conftest import ROOT


def test_headers_say_what_the_plans_cost(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import experiment_headers

    for name in ("adamerging/table_1", "metamerging/table_10", "doge/table_8"):
        text = paths()[name].read_text(encoding="utf-8")
        assert text == experiment_headers.with_cost(text, experiment_headers.cost(name)), "make docs"
