"""The fifty tables: every published number is answered by one cell or listed with a reason, and every run can be composed."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fusionbench_lite.errors import InputError
from fusionbench_lite.planning import experiments
from fusionbench_lite.planning.experiments import runs
from fusionbench_lite.planning.experiments.files import parse
from fusionbench_lite.tables import published, records
from fusionbench_lite.tables.cells import listing
from fusionbench_lite.tables.cells.build import answered, grid
from tests.support.record_factory import store

NAMES = experiments.names()


def test_there_are_fifty() -> None:
    papers = [name.partition("/")[0] for name in NAMES]
    assert [papers.count(paper) for paper in ("doge", "adamerging", "metamerging", "adarank")] == [16, 4, 11, 19]
    assert [table.name for table in sorted(published.tables(), key=lambda table: NAMES.index(table.name))] == NAMES


def test_every_number_is_answered_once_or_listed() -> None:
    total = 0
    for name in NAMES:
        experiment = experiments.read(name)
        every = published.numbers(*name.partition("/")[::2])
        by_cell = list(answered(experiment, experiments.cells(experiment)).values())
        listed = [number for number in every if any(number.matches(fields) for fields, _ in experiment.unanswered)]
        assert len(by_cell) == len(set(by_cell))
        assert not set(by_cell) & set(listed), name
        assert set(by_cell) | set(listed) == set(every), name
        total += len(by_cell) + len(listed)
    assert total == 3568


@pytest.mark.parametrize("name", NAMES)
def test_rows_and_columns_stand_in_the_order_of_print(name: str) -> None:
    experiment = experiments.read(name)
    every = published.numbers(*name.partition("/")[::2])
    places = {number: place for place, number in enumerate(every)}
    found = answered(experiment, experiments.cells(experiment))
    first = [min((places[n] for (r, _), n in found.items() if r == row.name), default=None) for row in experiment.rows]
    known = [place for place in first if place is not None]
    assert known == sorted(known)


@pytest.mark.parametrize("name", NAMES)
def test_a_table_answers_without_records(name: str, tmp_path: Path) -> None:
    table = grid(experiments.read(name), tmp_path)
    for spec in experiments.cells(experiments.read(name)):
        cell = table.cells[spec.row, spec.column]
        if spec.omitted is None and spec.statistic.needs_run:
            assert cell.ours is None
            assert "–" in cell.marks
        elif spec.omitted is None:
            assert cell.ours is not None
    assert not any("did not measure" in note for note in table.notes)


@pytest.mark.parametrize("name", NAMES)
def test_a_twin_has_the_rows_and_no_published_number(name: str, tmp_path: Path) -> None:
    experiment = experiments.read(name)
    twin = experiments.scaled(experiment, "mini")
    assert [row.name for row in twin.rows] == [row.name for row in experiment.rows]
    assert {line.name for line in twin.columns} <= {line.name for line in experiment.columns}
    table = grid(twin, tmp_path)
    assert {cell.published for cell in table.cells.values()} == {None}
    models = {run.values["model"] for run in experiments.distinct(experiments.cells(twin))}
    assert all(model.startswith(("vit_mini", "text_mini")) for model in models)


def test_cells_with_equal_overrides_share_a_run_between_tables() -> None:
    tables = (experiments.read(f"adarank/{name}") for name in ("table_1", "table_11"))
    one, eleven = (set(experiments.distinct(experiments.cells(table))) for table in tables)
    assert len(one & eleven) >= 13


def test_a_number_that_two_cells_answer_is_refused() -> None:
    text = """
title: t
published: adamerging/table_1
columns: [average]
rows:
  - {name: a, overrides: [method=task_arithmetic, model=vit_b32], published: {method: task_arithmetic}}
  - {name: b, overrides: [method=task_arithmetic, model=vit_b32], published: {method: task_arithmetic}}
"""
    experiment = parse(text, "adamerging/table_1", "f")
    with pytest.raises(InputError, match="cell of 'b' and 'average' answers the number that the cell of 'a' and 'average' answers"):
        answered(experiment, experiments.cells(experiment))
    unclear = parse(text.replace("published: {method: task_arithmetic}", "published: {model: vit_b32}"), "n", "f")
    with pytest.raises(InputError, match="answers 11 published numbers"):
        answered(unclear, experiments.cells(unclear))


ACCURACIES = {"counts": 0.7, "house_numbers": 0.8, "signs": 0.6, "digits": 0.9}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Records and notes of two rows of a table, with a value that the paper prints and one that it does not."""
    experiment = experiments.read("adamerging/table_1")
    for spec in experiments.cells(experiment):
        if spec.row not in ("Task Arithmetic", "Layer-wise AdaMerging"):
            continue
        mean = {"Task Arithmetic": 0.691, "Layer-wise AdaMerging": 0.9}[spec.row]
        for run in spec.all_runs:
            key = store(tmp_path, run.values["method"], dict.fromkeys(ACCURACIES, mean), size=1000)
            runs.write_note(tmp_path, run, key)
    return tmp_path


def test_cells_find_records_by_their_notes_and_carry_their_marks(results: Path) -> None:
    table = grid(experiments.read("adamerging/table_1"), results)
    inside, outside = (table.cells[row, "average"] for row in ("Task Arithmetic", "Layer-wise AdaMerging"))
    assert (inside.published, inside.marks) == (69.1, ("=", "◇", "⚑"))
    assert outside.marks == ("≠", "◇", "⚑")
    assert outside.difference == pytest.approx(9.9)
    assert any("Layer-wise AdaMerging better than Task Arithmetic, average: holds, +20.90 points" in note for note in table.notes)


def test_a_note_of_other_presets_still_counts_and_is_told(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "rules", lambda: "0" * 16)
    table = grid(experiments.read("adamerging/table_1"), results)
    assert table.cells["Task Arithmetic", "average"].ours is not None
    assert any("2 runs were made under other presets" in note for note in table.notes)


def test_a_record_that_is_gone_leaves_its_cell_empty(results: Path) -> None:
    for record in records.read_all(results):
        if record.method == "task_arithmetic":
            (record.path / "samples.npz").unlink()
    table = grid(experiments.read("adamerging/table_1"), results)
    assert table.cells["Task Arithmetic", "average"].ours is None
    assert table.cells["Layer-wise AdaMerging", "average"].ours is not None


def test_a_note_that_cannot_be_read_is_none(results: Path) -> None:
    for path in (results / runs.NOTES).glob("*.json"):
        path.write_text("{")
    table = grid(experiments.read("adamerging/table_1"), results)
    assert not any(cell.keys for cell in table.cells.values())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["adarank/table_1"], "AdaRank, Table 1"), (["--list"], "adarank/text_1"),
        (["audit", "doge/table_2"], "alphabetical order"),
        (["doge/table_6", "--scale", "mini"], "embedded twin: doGe, Table 6"),
        (["adarank/table_1", "--format", "csv"], "row,column,statistic"),
    ],
)
def test_the_command_answers_within_two_seconds_and_without_torch(arguments: list[str], said: str, tmp_path: Path) -> None:
    program = f"import sys; sys.argv[1:] = {[*arguments, '--results-dir', str(tmp_path)]!r}\n"
    program += "from fusionbench_lite.tables.__main__ import main\nassert main() == 0\nassert 'torch' not in sys.modules\n"
    times = []
    for _ in range(2):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        times.append(time.perf_counter() - start)
        assert done.returncode == 0, done.stderr
        assert said in done.stdout
    assert min(times) < 4, "two seconds on a quiet machine"


def test_the_list_has_fifty_lines(tmp_path: Path) -> None:
    lines = listing.text(tmp_path).splitlines()
    assert len(lines) == 50
    assert all(re.match(r"\w+/\w+ +\S.* +0/\d+ cells +\d+ flags$", line) for line in lines)
