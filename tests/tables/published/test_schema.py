"""A file of published numbers that was edited by hand is refused with its line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fusionbench_lite.errors import InputError
from fusionbench_lite.paths import published_dir
from fusionbench_lite.tables.published import digests, read

FIRST = "doge,table_1,vit_b32_8tasks,vit_b32,8,pretrained,Pre-trained,,sun397,accuracy,62.3,percent,62.3,ta,last"
FLAG = "doge,table_1,vit_b32_8tasks,vit_b32,8,individual,,average,"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(published_dir(), tmp_path / "published"))


def replaced(file: str, old: str, new: str) -> Callable[[Path], None]:
    """Return an edit of the first place where a text stands."""

    def edit(folder: Path) -> None:
        text = (folder / file).read_text()
        assert old in text
        (folder / file).write_text(text.replace(old, new, 1))

    return edit


def in_first(old: str, new: str) -> Callable[[Path], None]:
    """Return an edit of the first line of results.csv."""
    return replaced("results.csv", FIRST, FIRST[::-1].replace(old[::-1], new[::-1], 1)[::-1])


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (in_first("62.3,percent", "6a.3,percent"), "results.csv, line 2, column value: '6a.3' is no number"),
        (in_first("62.3,percent", "nan,percent"), "results.csv, line 2, column value: 'nan' is no number"),
        (in_first("62.3,percent,62.3", "162.3,percent,162.3"), "column value: 162.3 is not between 0 and 100"),
        (in_first("62.3,percent", "62.4,percent"), "column value: 62.4 is not what value_as_printed says: '62.3'"),
        (in_first("62.3,percent,62.3", "62.4,percent,62.4"), "results.csv, line 2 to 145, edited: what doge/table_1 has there"),
        (in_first("percent", "percents"), "results.csv, line 2, column unit: unknown unit 'percents': did you mean 'percent'?"),
        (in_first("accuracy", "acuracy"), "results.csv, line 2, column metric: unknown metric 'acuracy': did you mean 'accuracy'?"),
        (in_first("accuracy", "wall_clock"), "results.csv, line 2, column metric: wall_clock has no unit 'percent'"),
        (in_first("doge", "dogee"), "results.csv, line 2, column paper: unknown paper 'dogee': did you mean 'doge'?"),
        (in_first("table_1", "table_19"), "results.csv, line 2, column table: unknown table 'table_19'"),
        (in_first("vit_b32_8tasks", "vit_b32_9tasks"), "results.csv, line 2, column setting: unknown setting 'vit_b32_9tasks'"),
        (in_first(",ta,", ",taa,"), "results.csv, line 2, column family: unknown family 'taa': did you mean 'ta'?"),
        (in_first("last", "best"), "results.csv, line 2, column selection: unknown selection 'best'"),
        (in_first(",8,", ",eight,"), "results.csv, line 2, column num_tasks: 'eight' is no whole number"),
        (in_first("sun397", "sun379"), "results.csv, line 2, column column: unknown column 'sun379': did you mean 'sun397'?"),
        (in_first("Pre-trained,", "Pre-trained,a,"), "results.csv, line 2, 16 fields, not 15"),
        (replaced("results.csv", FIRST, f"{FIRST}\n{FIRST}"), "results.csv, line 3, column metric: line 2 has the same"),
        (replaced("results.csv", f"{FIRST}\n", ""), "tables.csv, line 2, column numbers: 144 of doge/table_1, but"),
        (replaced("results.csv", "variant,column", "column,variant"), "results.csv, line 1, the columns have to be"),
        (replaced("results.csv", "Pre-trained", '"Pre-trained'), "not comma-separated values"),
        (replaced("tables.csv", ",16,8 fine", ",17,8 fine"), "tables.csv, line 2, column methods_count: 17 of doge/table_1"),
        (replaced("tables.csv", "main comparison", "comparison"), "tables.csv, line 2, edited: what doge/table_1 has there"),
        (replaced("flags.csv", FLAG, FLAG.replace("individual", "single")), "flags.csv, line 2, column method: no number"),
        (replaced("flags.csv", "average_mismatch", "average_mismach"), "flags.csv, line 2, column kind: unknown kind"),
        (replaced("flags.csv", ",90.8,", ",90.9,"), "column printed: '90.9', but results.csv has '90.8'"),
        (replaced("flags.csv", "medium,90.8,91.00,90.5", "medium,90.8,91.00,x"), "flags.csv, line 2, column likely: 'x'"),
        (replaced("flags.csv", "medium", "low"), "flags.csv, line 2 to"),
        (lambda folder: (folder / "flags.csv").unlink(), "flags.csv: cannot be read"),
        (lambda folder: (folder / "results.csv").write_bytes(b"\xff\xfe"), "results.csv: cannot be read"),
        (lambda folder: (folder / digests.NAME).unlink(), "SHA256SUMS: cannot be read"),
        (replaced(digests.NAME, "  results.csv", ""), "SHA256SUMS, line 1,"),
    ],
)  # fmt: skip
def test_an_edit_is_refused_with_file_line_column_and_reason(edit: Callable[[Path], None], said: str, folder: Path):
    edit(folder)
    with pytest.raises(InputError) as refused:
        read(folder)
    assert said in str(refused.value)
    assert str(folder) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_line_endings_and_a_mark_of_the_encoding_are_no_edit(folder: Path):
    for name in ("results.csv", "flags.csv", "tables.csv"):
        (folder / name).write_bytes(b"\xef\xbb\xbf" + (folder / name).read_bytes().replace(b"\n", b"\r\n"))
    assert sum(map(len, read(folder).numbers.values())) == 3568


def test_an_edit_that_is_meant_is_taken_once_its_digests_are_written(folder: Path):
    in_first("62.3,percent,62.3", "62.4,percent,62.4")(folder)
    digests.write(folder)
    assert read(folder).numbers["doge/table_1"][0].value == 62.4
