"""Each check finds an error that is put into sound numbers, and leaves sound ones alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import pytest

from fusionbench_lite.tables.audit import (
    averages,
    copies,
    digits,
    displaced,
    elsewhere,
    fractions,
    gains,
    plausible,
    sizes,
)  # fmt: skip
from fusionbench_lite.tables.audit.findings import Finding, severity_of
from fusionbench_lite.tables.audit.quantities import every_number, in_points, quantity
from fusionbench_lite.tables.published import Number

NUMBERS = every_number()


def with_values(values: dict[str, str], **fields: object) -> list[Number]:
    """Return all numbers, those of one row (`fields`) with other values, {column: text}."""
    changed = []
    count = 0
    for number in NUMBERS:
        if number.matches(fields) and number.column in values:
            text = values[number.column]
            number = dataclasses.replace(number, value=float(text), written=text, value_as_printed=text)
            count += 1
        changed.append(number)
    assert count == len(values)
    return changed


def row(**fields: object) -> dict[str, str]:
    return {number.column: number.written for number in NUMBERS if number.matches(fields)}


def new(check: Callable[[Iterable[Number]], Iterable[Finding]], numbers: Iterable[Number]) -> list[Finding]:
    """Return what a check finds beyond what it finds in the numbers as they are."""
    known = {(one.number.key, one.kind) for one in check(NUMBERS)}
    return [one for one in check(numbers) if (one.number.key, one.kind) not in known]


SOUND = {"paper": "adarank", "table": "table_11", "method": "cart"}
DEEP = {"paper": "adarank", "table": "table_14", "method": "tsv_m"}
GLUE = {"paper": "adarank", "table": "table_17", "method": "tsv_m"}


def test_an_average_that_is_off_by_more_than_rounding():
    assert row(**SOUND)["sun397"] == "68.5"
    # 84.73 is printed 84.7: half a point more in one of eight numbers stays within what rounding explains.
    assert new(averages.check, with_values({"sun397": "68.9"}, **SOUND)) == []
    # The average stands in tables 1, 5, 6 and 7 too, the last under another row's label.
    found = new(averages.check, with_values({"sun397": "70.5"}, **SOUND))
    assert {one.number.table for one in found} == {"table_1", "table_5", "table_6", "table_11"}
    assert {one.likely for one in found if one.number.table == "table_11"} == {"85.0"}


def test_an_average_whose_row_is_doubted_is_not_corrected():
    changed = with_values({"sun397": "70.5"}, **SOUND)
    wrong = next(number.key for number in changed if number.matches({**SOUND, "column": "sun397"}))
    own = [one for one in averages.check(changed, {wrong: 68.5}) if one.number.matches(SOUND)]
    assert [one.likely for one in own] == [None]
    assert own[0].reason.endswith("The average is right, the row is not.")
    own = [one for one in averages.check(changed, {wrong: None}) if one.number.matches(SOUND)]
    assert [one.likely for one in own] == [None]


def test_two_cells_exchanged():
    there = row(**DEEP)
    found = new(displaced.check, with_values({"fer2013": there["stl10"], "stl10": there["fer2013"]}, **DEEP))
    assert {one.number.column: one.likely for one in found} == {"fer2013": there["fer2013"], "stl10": there["stl10"]}


def test_a_row_in_alphabetical_order():
    fields = {"paper": "metamerging", "table": "table_1", "method": "regmean"}
    there = row(**fields)
    order = ["stanford_cars", "dtd", "eurosat", "gtsrb", "mnist", "resisc45", "sun397", "svhn"]
    columns = ["sun397", "stanford_cars", "resisc45", "eurosat", "svhn", "gtsrb", "mnist", "dtd"]
    found = new(displaced.check, with_values({at: there[task] for at, task in zip(columns, order, strict=True)}, **fields))
    assert {one.number.column: one.likely for one in found} == {column: there[column] for column in columns}


def test_a_block_copied_to_other_columns():
    there = row(**DEEP)
    source = [there[name] for name in ("sun397", "stanford_cars", "resisc45", "eurosat")]
    other = {**DEEP, "method": "cart"}
    places = ("cifar100", "fer2013", "flowers102", "oxford_iiit_pet")
    found = new(copies.check, with_values(dict(zip(places, source, strict=True)), **other))
    assert [(one.number.method, one.number.column, one.other) for one in found] == [
        ("cart", name, value) for name, value in zip(places, source, strict=True)
    ]


def test_a_slip_of_one_digit_that_another_table_contradicts():
    fields = {"paper": "metamerging", "table": "table_5", "method": "adamerging_layerwise", "variant": "w/o adapters"}
    found = new(digits.check, with_values({"resisc45": "29.2"}, **fields))
    assert [(one.number.column, one.likely) for one in found] == [("resisc45", "79.2")]


def test_the_value_of_most_papers_stands():
    found = new(elsewhere.check, with_values({"dtd": "58.1"}, paper="doge", table="table_1", method="adamerging_layerwise"))
    assert [(one.number.paper, one.number.column, one.other) for one in found] == [("doge", "dtd", "59.1")]
    # Between two tables of one paper none leads.
    found = new(elsewhere.check, with_values({"average": "57.0"}, paper="adarank", table="table_8", method="adarank_ta",
                                             model="vit_l14", variant=""))  # fmt: skip
    assert [one.number.table for one in found] == ["table_8"]


@pytest.mark.parametrize(("of", "decimals"), [(277, 1), (408, 2), (872, 2), (60, 1)])
def test_every_count_is_possible_and_few_other_values(of: int, decimals: int):
    for count in range(of + 1):
        assert count in fractions.counts(round(100 * count / of, decimals), of, decimals)
    possible = sum(bool(fractions.counts(value / 10**decimals, of, decimals)) for value in range(100 * 10**decimals + 1))
    assert possible == of + 1


def test_digits_that_are_cut_off():
    assert fractions.counts(84.4, 277, 1) == []
    assert fractions.counts(84.4, 277, 1, cut=True) == [234]


def test_an_impossible_fraction():
    assert row(**GLUE)["rte"] == "0.4657"
    found = new(fractions.check, with_values({"rte": "0.4658"}, **GLUE))
    assert [(one.likely, one.reason) for one in found] == [
        ("0.4657", "No count of 277 gives these digits; 129 of them is 0.4657.")
    ]  # fmt: skip


def test_sizes_of_encoders_are_those_of_their_tensors():
    """CLIP's towers as transformers and open_clip have them."""
    assert list(sizes.parameters("vit_b32").values()) == [87_456_000, 87_849_216, 113_448_705]
    assert list(sizes.parameters("vit_l14").values()) == [303_179_776, 303_966_208, 342_562_049]
    assert list(sizes.tensors("vit_b32").values()) == [152, 158, 199, 302]
    assert list(sizes.tensors("vit_l14").values()) == [296, 302, 391, 446]


def test_the_size_of_a_split():
    changed = [
        dataclasses.replace(number, value=8040.0) if number.metric == "num_test" and number.column == "stanford_cars" else number
        for number in NUMBERS
    ]
    assert [(one.number.column, one.likely) for one in new(sizes.check, changed)] == [("stanford_cars", "8041")]


def test_a_gain_that_is_no_difference():
    fields = {"paper": "adarank", "table": "table_8", "model": "vit_b32", "method": "adarank_ta", "variant": "+surgery"}
    found = new(gains.check, with_values({"gain": "1.2"}, **fields))
    assert [(one.number.written, one.likely) for one in found] == [("1.2", "0.9")]


def test_implausible_values():
    tsv = {"paper": "adarank", "table": "table_11", "method": "tsv_m"}
    above = new(plausible.check, with_values({"eurosat": "99.9", "dtd": "80.4"}, **tsv))
    assert [one.number.column for one in above] == ["dtd"]
    below = new(plausible.check, with_values({"sun397": "42.3"}, **tsv))
    assert [one.number.column for one in below] == ["sun397"]
    low = new(plausible.check, with_values({"gtsrb": "30.0"}, paper="metamerging", table="table_1", method="individual"))
    assert ("gtsrb", "individual") in {(one.number.column, one.number.method) for one in low}


def test_one_thing_has_one_name():
    def of(**fields: object) -> set[tuple[object, ...]]:
        found = {quantity(number)[:4] for number in NUMBERS if number.matches(fields)}
        assert len(found) == 1, found
        return found

    same = of(paper="adarank", table="table_1", setting="vit_b32_8tasks", method="consensus_merging")
    assert same == of(paper="adarank", table="table_11", method="consensus_ta", column="average")
    doge = of(paper="doge", table="table_1", method="surgery", column="average")
    assert doge != of(paper="metamerging", table="table_1", method="surgery", column="average")


def test_severity_and_digits():
    assert [severity_of(gap) for gap in (0.1, 0.3, 0.99, 1.0)] == ["low", "medium", "medium", "high"]
    fraction = next(number for number in NUMBERS if number.unit == "fraction")
    assert in_points(89.64, fraction) == "0.8964"
