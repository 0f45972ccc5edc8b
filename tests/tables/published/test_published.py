"""The papers' numbers: all there, described, flagged, and read without what is slow to import."""

from __future__ import annotations

import collections
import subprocess
import sys

import pytest

from fusionbench_lite.errors import InputError
from fusionbench_lite.tables import published
from tests.conftest import ROOT

PAPERS = {"doge": (16, 964), "adamerging": (4, 21), "metamerging": (11, 768), "adarank": (19, 1815)}
EVERY = [number for table in published.tables() for number in published.numbers(table.paper, table.table)]


def one(paper: str, table: str, **fields: object) -> published.Number:
    found = [number for number in published.numbers(paper, table) if number.matches(fields)]
    assert len(found) == 1, found
    return found[0]


def test_all_numbers_and_tables_are_there():
    assert collections.Counter(table.paper for table in published.tables()) == {paper: n for paper, (n, _) in PAPERS.items()}
    assert collections.Counter(number.paper for number in EVERY) == {paper: n for paper, (_, n) in PAPERS.items()}
    given = [flag for table in published.tables() for flag in published.flags(table.paper, table.table) if flag.origin == "given"]
    assert len(given) == 411
    assert collections.Counter(flag.severity for flag in given) == {"high": 182, "medium": 110, "low": 119}


def test_a_number_has_its_value_and_the_paper_s_token():
    taken = one("metamerging", "table_8", variant="beta=0.01", column="runtime_s")
    assert (taken.value, taken.value_as_printed, taken.unit, taken.num_tasks) == (5014, "1h 23m 34s", "seconds", 8)
    short = one("adarank", "table_17", method="individual", column="mnli")
    assert (short.value, short.written, short.decimals, short.half_unit) == (0.872, "0.872", 4, 0.5e-4)
    hundred = one("doge", "table_2", method="individual", column="eurosat")
    assert (hundred.written, hundred.half_unit) == ("100", 0.05)
    assert one("metamerging", "table_4", method="base_model", model="vit_b32").num_tasks is None


@pytest.mark.parametrize(
    ("paper", "table", "fields", "family", "selection"),
    [
        ("doge", "table_1", {"method": "doge_am", "column": "average"}, "fusionbench", "last"),
        ("doge", "table_1", {"method": "adamerging_layerwise", "column": "average"}, "ta", "last"),
        ("doge", "table_14", {"method": "ties_merging", "setting": "vit_b32_8tasks"}, "tall", "last"),
        ("doge", "table_13", {"variant": "+ layer-wise coefficient", "column": "average"}, "fusionbench", "last"),
        ("doge", "table_10", {"method": "doge", "column": "math"}, "llama2", "last"),
        ("doge", "table_15", {"method": "twin_merging"}, "ta", "best_test"),
        ("metamerging", "table_9", {"variant": "inner_steps=0", "column": "rte"}, "fusionbench", "last"),
        ("metamerging", "table_1", {"method": "pareto_merging", "column": "dtd"}, "ta", "unstated"),
        ("metamerging", "table_10", {"column": "dtd", "metric": "num_test"}, "none", "none"),
        ("adarank", "table_1", {"method": "adarank_ta", "setting": "vit_l14_20tasks"}, "ta_tall", "best_test"),
        ("adarank", "table_1", {"method": "adamerging_layerwise", "setting": "vit_b32_8tasks"}, "ta", "last"),
        ("adarank", "table_2", {"method": "adarank_cart", "model": "roberta"}, "mergelm", "last"),
        ("adarank", "table_2", {"method": "adarank_cart", "model": "gpt2"}, "fusionbench", "last"),
    ],
)
def test_family_and_selection_are_those_of_the_paper_s_code(paper, table, fields, family, selection):
    number = one(paper, table, **fields)
    assert (number.family, number.selection) == (family, selection)


def test_flags_are_on_the_numbers_they_mean():
    slip = one("adarank", "table_18", method="individual", column="qqp")
    assert published.flags_of(slip)[0].severity == "high"
    assert published.corrected(slip) == 0.8964
    # The row of table 7 that is labelled CART at 8 tasks holds Task Arithmetic at 14; what belongs there stands at CART, 14.
    assert published.corrected(one("adarank", "table_7", num_tasks=8, variant="data=0%", method="cart")) == 84.7
    assert published.flags_of(one("doge", "table_8", variant="global_scale=0.03")) == ()
    # A flag on the default row of a table is not one on its ablations.
    assert not any(flag.printed == "74.2" for flag in published.flags_of(
        one("metamerging", "table_5", method="metamerging", variant="w/o adapters", column="sun397")
    ))  # fmt: skip


def test_an_unknown_table_is_refused_with_the_nearest():
    with pytest.raises(InputError, match=r"unknown published table 'doge/table_66': did you mean 'doge/table_6'"):
        published.numbers("doge", "table_66")


def test_reading_imports_nothing_slow():
    code = (
        "import sys\nfrom fusionbench_lite.tables import published\npublished.load()\n"
        "print([name for name in ('torch', 'pandas', 'numpy', 'yaml') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
