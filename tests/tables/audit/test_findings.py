"""What the audit finds in the published numbers, and that the flags of the package say all of it."""

from __future__ import annotations

import collections

import pytest

from fusionbench_lite.tables import audit, published
from fusionbench_lite.tables.audit import averages, copies, displaced, fractions
from fusionbench_lite.tables.audit.quantities import every_number
from fusionbench_lite.tables.published.lines import KEY

FOUND = audit.findings()
FLAGS = [flag for table in published.tables() for flag in published.flags(table.paper, table.table)]
NUMBERS = every_number()


def on(paper: str, table: str, **fields: object) -> list[audit.Finding]:
    return [one for one in FOUND if (one.number.paper, one.number.table) == (paper, table) and one.number.matches(fields)]


def test_the_given_flags_on_averages_are_those_that_are_recomputed():
    """17 averages fail, by the means that the flags give: those of a row, and of AdaRank's table 1 in its tables 11 to 16."""
    mismatches = [flag for flag in FLAGS if flag.kind == "average_mismatch" and flag.origin == "given"]
    given = {flag.fields[:8]: float(flag.recomputed) for flag in mismatches}
    assert len(given) == 17
    compared = [
        one for one in averages.comparisons(NUMBERS)
        if one.average.key[:7] == one.row[0].key[:7] or (one.average.paper, one.average.table) == ("adarank", "table_1")
    ]  # fmt: skip
    failed = {one.average.key[:8]: one.mean for one in compared if one.gap > one.explained}
    assert len(compared) == 351
    assert set(failed) == set(given)
    for key, mean in failed.items():
        scale = 100 if given[key] < 1 else 1
        assert mean / scale == pytest.approx(given[key], abs=0.0051)
    # The averages that are off in the last digit by no more than the rounding of the numbers.
    assert sum(one.own < one.gap <= one.explained for one in compared) == 24


def test_every_finding_is_a_flag_and_every_found_flag_is_a_finding():
    assert [str(one.number) for one in FOUND if one.origin == "new"] == []
    entries = {tuple(one.entry()[name] for name in (*KEY, "kind", "note")): one for one in FOUND}
    ours = [flag for flag in FLAGS if flag.origin == "found"]
    assert len(ours) == 40
    for flag in ours:
        finding = entries[*flag.fields, flag.kind, flag.note]
        assert (flag.how, flag.severity, flag.likely) == (
            finding.check, finding.severity, None if finding.likely is None else float(finding.likely),
        )  # fmt: skip


def test_how_a_flag_was_found_is_the_check_that_finds_it():
    counted = collections.Counter(flag.how for flag in FLAGS if flag.origin == "given")
    assert counted == {
        "elsewhere": 265, "displaced": 60, "reading": 26, "plausible": 18, "averages": 17, "copies": 14, "gains": 5, "sizes": 5,
        "digits": 1,
    }  # fmt: skip
    finding = collections.defaultdict(set)
    for one in FOUND:
        for flag in one.flags:
            finding[id(flag)].add(one.check)
    for flag in FLAGS:
        assert flag.how == "reading" or flag.how in finding[id(flag)], flag


def test_likely_values_are_those_of_the_flags():
    """What the checks compute is what is shown beside a number, wherever both say something."""
    both = 0
    for one in FOUND:
        right = published.corrected(one.number)
        if one.likely is not None and right is not None:
            assert float(one.likely) == pytest.approx(right), str(one.number)
            both += 1
    assert both > 100


def test_labels_of_table_7_are_exchanged():
    moved = {one.number.key: one for one in displaced.check(NUMBERS) if one.kind == "mislabelled"}
    assert len(moved) == 28
    row = [one for one in moved.values() if one.number.num_tasks == 14 and one.number.method.endswith("cart")]
    assert {one.other for one in row} == {"8 tasks CART"}
    assert [one.likely for one in row] == ["79.5", "82.3", "82.8", "84.4", "85.3", "85.8", "86.2"]


def test_rows_in_another_order_and_exchanged_cells():
    shifted = [one for one in displaced.check(NUMBERS) if one.kind == "shifted_columns"]
    rows = collections.Counter((one.number.table, one.number.method) for one in shifted)
    assert rows == {
        ("table_2", "concrete_ta"): 8, ("table_15", "weight_averaging"): 20, ("table_13", "consensus_ties"): 2,
        ("table_15", "consensus_ties"): 2,
    }  # fmt: skip
    assert {one.number.column: one.likely for one in shifted if one.number.method == "concrete_ta"} == {
        "sun397": "74.6", "stanford_cars": "86.2", "resisc45": "89.0", "eurosat": "96.7", "svhn": "93.6", "gtsrb": "93.4",
        "mnist": "99.1", "dtd": "66.9",
    }  # fmt: skip


def test_copies():
    found = list(copies.check(NUMBERS))
    rows = {(one.number.table, one.number.method) for one in found if one.row}
    assert rows == {(table, method) for table in ("table_5", "table_6") for method in ("task_arithmetic", "adamerging_layerwise")}
    partly = [one for one in found if one.kind == "duplicate_row" and not one.row]
    parts = collections.Counter((one.number.table, one.number.method) for one in partly)
    assert parts == {("table_13", "adamerging_tsvm"): 7, ("table_16", "adamerging_tsvm"): 4}
    beside = [one for one in found if one.kind == "implausible"]
    assert {(one.number.table, one.number.column, one.likely) for one in beside} == {
        ("table_2", "eurosat", "99.6"), ("table_12", "eurosat", "99.6"),
    }  # fmt: skip


def test_impossible_fractions():
    found = {(one.number.table, one.number.method, one.number.column, one.number.written): one for one in fractions.check(NUMBERS)}
    assert len(found) == 12
    assert found["table_10", "task_arithmetic", "mbpp", "87.7"].likely == "87.6"
    assert found["table_18", "individual", "sst2", "0.9118"].likely == "0.9117"
    assert found["table_3", "metamerging", "rte", "66.2"].likely is None
    power = {(one.column, one.decimals): one for one in fractions.power(NUMBERS)}
    assert power["rte", 2].impossible == 0
    assert power["rte", 2].possible == pytest.approx(278 / 10001)


def test_averages_that_stand_alone_are_held_against_their_rows():
    alone = on("adarank", "table_3", method="individual", num_tasks=14)
    assert [(one.check, one.likely, one.origin) for one in alone] == [("averages", "89.6", "found")]
    quoted = next(one for one in on("adarank", "table_1", method="cart", setting="vit_l14_14tasks") if one.check == "averages")
    assert quoted.reason.endswith("88.0 is the mean of adamerging_layerwise.")
