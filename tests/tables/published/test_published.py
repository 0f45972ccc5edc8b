"""The published numbers as data of the package: complete, and refused where a file was edited by hand."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fusionbench_lite.errors import InputError
from fusionbench_lite.paths import published_dir
from fusionbench_lite.tables import published
from fusionbench_lite.tables.published import reading, schema


def everything() -> list[published.Number]:
    return [number for table in published.tables() for number in published.numbers(table.paper, table.table)]


def test_all_numbers_tables_and_flags_are_there() -> None:
    assert len(everything()) == 3568
    assert len(published.tables()) == 50
    assert [sum(t.paper == paper for t in published.tables()) for paper in schema.PAPERS] == [16, 4, 11, 19]
    assert sum(flag.origin == "given" for flag in published.flags()) == 411
    assert all(flag.found_by for flag in published.flags() if flag.origin == "found")


def test_every_flag_is_about_a_number() -> None:
    assert [flag for flag in published.flags() if not published.number_of(flag)] == []


def test_the_likely_value_stands_beside_the_printed_one() -> None:
    (number,) = [n for n in published.numbers("adarank", "table_18") if n.value == 0.3964]
    assert [flag.likely for flag in published.flags_of(number) if flag.likely] == [0.8964]
    assert number.value_as_printed == "0.3964"


@pytest.mark.parametrize(
    ("printed", "unit", "value", "half"),
    [("80.7 (+5.7%)", "percent", 80.7, 0.05), ("87.03", "percent", 87.03, 0.005), ("81", "percent", 81.0, 0.05),
     ("0.872", "fraction", 0.872, 0.5e-4), ("907.6M", "count", 907.6e6, 5e4), ("2.46B", "count", 2.46e9, 5e6),
     ("1,248", "count", 1248.0, 0.5), ("1 h 43 min", "seconds", 6180.0, 0.5)],
)
def test_what_rounding_may_have_taken(printed: str, unit: str, value: float, half: float) -> None:
    fields = dict.fromkeys(schema.COLUMNS["results.csv"], "") | {"value_as_printed": printed, "unit": unit, "value": value}
    assert published.Number(**fields).half_unit == pytest.approx(half)  # type: ignore[arg-type]


def test_an_unknown_table_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"no published table 'adarank/table_l': did you mean"):
        published.numbers("adarank", "table_l")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(published_dir(), tmp_path / "published")
    return tmp_path / "published"


def edit(root: Path, name: str, line: int, change: Callable[[list[str]], list[str]]) -> None:
    with (root / name).open(newline="", encoding="utf-8") as file:
        lines = list(csv.reader(file))
    lines[line - 1] = change(lines[line - 1])
    with (root / name).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(lines)


def cell(place: int, value: str) -> Callable[[list[str]], list[str]]:
    return lambda line: [*line[:place], value, *line[place + 1 :]]


@pytest.mark.parametrize(
    ("name", "line", "change", "said"),
    [
        ("results.csv", 5, cell(9, "62,3"), "results.csv, line 5: value '62,3' is no number"),
        ("results.csv", 5, cell(9, "162.3"), "results.csv, line 5: value 162.3 is outside 0 to 100, the range of percent"),
        ("results.csv", 5, cell(9, "nan"), "results.csv, line 5: value nan is outside"),
        ("results.csv", 5, cell(10, "percnt"), "results.csv, line 5: unit 'percnt': did you mean 'percent'?"),
        ("results.csv", 5, cell(11, "matthews"), "results.csv, line 5: metric of percent 'matthews'"),
        ("results.csv", 5, cell(0, "dogo"), "results.csv, line 5: paper 'dogo': did you mean 'doge'?"),
        ("results.csv", 5, cell(12, "talls"), "results.csv, line 5: family 'talls'"),
        ("results.csv", 6, cell(8, "resisc45"), "the number of line"),
        ("results.csv", 7, cell(9, "45.6"), "the lines of doge/table_1 are not those of digests.json"),
        ("results.csv", 5, lambda line: line[:-1], "results.csv, line 5: it has not 15 cells"),
        ("results.csv", 1, cell(0, "papers"), "results.csv, line 1: its columns are papers,"),
        ("tables.csv", 2, cell(8, "143"), "tables.csv, line 2: doge/table_1 has 143 numbers, results.csv has 144"),
        ("flags.csv", 3, cell(5, "typo"), "flags.csv, line 3: kind 'typo'"),
        ("flags.csv", 3, cell(3, "no_method"), "flags.csv, line 3: no number of doge/table_1 has"),
        ("flags.csv", 3, cell(8, "another remark"), "are not those of digests.json"),
    ],
)
def test_a_file_edited_by_hand_is_refused(
    copy: Path, name: str, line: int, change: Callable[[list[str]], list[str]], said: str
) -> None:
    edit(copy, name, line, change)
    with pytest.raises(InputError) as refused:
        reading._content(copy)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_lines_that_are_gone_are_noticed(copy: Path) -> None:
    path = copy / "flags.csv"
    path.write_text(path.read_text(encoding="utf-8").rsplit("\n", 3)[0] + "\n", encoding="utf-8")
    with pytest.raises(InputError, match="digests"):
        reading._content(copy)


def test_missing_digests_are_refused(copy: Path) -> None:
    (copy / schema.DIGESTS).unlink()
    with pytest.raises(InputError, match=r"digests\.json: cannot be read"):
        reading._content(copy)
    (copy / schema.DIGESTS).write_text(json.dumps({}))
    with pytest.raises(InputError, match=r"digests\.json"):
        reading._content(copy)
