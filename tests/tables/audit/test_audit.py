"""The audit: what it recomputes agrees with the flags, and it finds what is put there to be found."""

import csv
import dataclasses
import io
import math

import pytest

from fusionbench_lite.errors import InputError
from fusionbench_lite.tables import published
from fusionbench_lite.tables.audit import audit, averages, covered, elsewhere, examples, report, rows
from fusionbench_lite.tables.published import Number

EVERY = tuple(number for table in published.tables() for number in published.numbers(table.paper, table.table))


def table(paper: str, name: str) -> tuple[Number, ...]:
    return published.numbers(paper, name)


def changed(numbers: tuple[Number, ...], value: float, **where: str) -> tuple[Number, ...]:
    """Return numbers of which the one at `where` has another value."""
    found = [all(getattr(number, field) == text for field, text in where.items()) for number in numbers]
    assert sum(found) == 1
    return tuple(dataclasses.replace(n, value=value) if here else n for n, here in zip(numbers, found, strict=True))


def test_every_finding_has_its_flag() -> None:
    assert [(one.number.where, one.check, one.reason) for one in audit() if not covered(one)] == []


def test_the_given_flags_of_averages_are_those_that_recomputing_finds() -> None:
    given = {n for flag in published.flags() if flag.kind == "average_mismatch" for n in published.number_of(flag)}
    found = {one.number: one for one in audit() if one.check.startswith("averages")}
    assert len([flag for flag in published.flags() if flag.kind == "average_mismatch"]) == 17
    assert given - set(found) <= {n for n in given if n.where == "adarank/table_1"}, "explained by a misprint of a detail"
    assert len(found) == 16
    checked = averages.checked(EVERY)
    assert len(checked) == 267


def test_averages_are_recomputed_from_their_row() -> None:
    numbers = table("adamerging", "table_1") + table("doge", "table_13")
    assert list(averages.of_rows(numbers)) == []
    (found,) = averages.of_rows(changed(numbers, 70.0, method="task_arithmetic", variant="+ layer-wise coefficient", column="dtd"))
    tasks = [n.value for n in numbers if n.variant == "+ layer-wise coefficient" and n.column not in ("dtd", "average")]
    assert found.likely == pytest.approx(math.fsum([*tasks, 70.0]) / 8, abs=0.006)


def test_gains_are_differences() -> None:
    numbers = table("doge", "table_14")
    assert list(averages.of_gains(numbers)) == []
    wrong = changed(numbers, 3.3, method="doge_ta", column="gain", setting="vit_b32_8tasks")
    (found,) = averages.of_gains(wrong)
    assert found.number.value == 3.3


def test_copied_cells_are_found_where_they_are_later() -> None:
    found = [one for one in audit("adarank/table_13") if one.check == "copies"]
    assert {one.number.method for one in found} == {"adamerging_tsvm"}
    assert len(found) == 7


def test_a_row_in_alphabetical_order_is_found_and_put_right() -> None:
    found = {one.number.column: one.likely for one in rows.permutations(EVERY) if one.number.where == "doge/table_2"}
    assert found == {
        "sun397": 74.6, "stanford_cars": 86.2, "resisc45": 89.0, "eurosat": 96.7, "svhn": 93.6, "gtsrb": 93.4, "mnist": 99.1,
        "dtd": 66.9,
    }


def test_merged_models_above_their_experts() -> None:
    found = {(one.number.method, one.number.value) for one in rows.above_experts(table("adarank", "table_1"))}
    assert ("adarank_iso_cts", 95.5) in found
    assert all(method.endswith("iso_cts") for method, _ in found)


def test_accuracies_that_no_count_gives() -> None:
    """Of RTE's 277 examples 183 are 66.06 %, 184 are 66.43 %: 66.2 is neither, rounded or cut off."""
    numbers = table("metamerging", "table_3")
    found = {one.number.value for one in examples.fractions(numbers) if one.number.column == "rte"}
    assert found == {52.1, 66.2}
    right = changed(numbers, 66.1, method="metamerging", column="rte")
    assert {one.number.value for one in examples.fractions(right)} == {52.1}


def test_sizes_are_those_of_the_packaged_data_sets() -> None:
    found = {(one.number.column, one.number.metric, one.likely) for one in examples.sizes(EVERY)}
    assert ("sun397", "num_test", 19850.0) in found
    assert ("qqp", "num_train", 363846.0) in found
    assert ("mnist", "num_train", 60000.0) not in found


def test_the_value_that_fewer_papers_print_is_named() -> None:
    found = [one for one in elsewhere.disagreements(EVERY) if one.number.column == "sun397" and one.number.method == "individual"]
    assert {(one.number.paper, one.number.value) for one in found if one.number.model == "vit_b32"} == {("doge", 79.2)}


def test_unrelated_quantities_are_not_compared() -> None:
    found = [one.number for one in elsewhere.disagreements(EVERY)]
    assert [number for number in found if number.method == "surgery"] == []
    assert [number for number in found if number.variant == "w/o adapters" and number.method == "metamerging"] == []


def test_reports_name_every_finding_and_every_flag() -> None:
    lines = list(csv.DictReader(io.StringIO(report.to_csv(None))))
    assert tuple(lines[0]) == report.COLUMNS
    assert sum(line["check"] != "given" for line in lines) == len(audit())
    text = report.to_text("metamerging/table_3")
    assert "66.2. no number of correct examples of 277 gives it; 66.065 comes nearest. [fractions, medium]" in text
    assert report.to_markdown("doge/table_3").strip() == ""
    assert report.to_text("doge/table_3") == "\nNothing stands against its numbers.\n"


def test_an_unknown_table_is_refused() -> None:
    with pytest.raises(InputError, match="no published table 'doge/table_99'"):
        audit("doge/table_99")
