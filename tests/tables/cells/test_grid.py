"""What a grid refuses, and the texts that all formats show."""

import dataclasses

import pytest

from fusionbench_lite.errors import InputError
from fusionbench_lite.tables.cells.blocks import blocks
from fusionbench_lite.tables.cells.grid import Line
from fusionbench_lite.tables.cells.shown import view
from fusionbench_lite.tables.ranking import BEST, SECOND
from tests.support.grids import cell, grid, small


def test_names_that_are_given_twice_are_refused():
    with pytest.raises(InputError, match=r"doge/table_6: two columns are called 'a'; give each its own name"):
        grid({}, columns=(Line(name="a"), Line(name="a")))


def test_a_cell_outside_the_grid_is_refused():
    with pytest.raises(InputError, match="row 'TA' and column 'x'"):
        grid({("TA", "x"): cell(1.0)}, columns=())


def ranks(**columns):
    """The ranks of each column, whose rows are called 0, 1, 2."""
    made = grid({(str(row), name): of for name, cells in columns.items() for row, of in enumerate(cells)})
    return {name: [row[place].rank for row in view(made).cells] for place, name in enumerate(columns)}


def test_ranks_compare_ours_as_printed_among_comparable_cells():
    found = ranks(
        shared=[cell(80.04), cell(80.01), cell(79.0)],
        apart=[cell(99.0, comparable=False), cell(70.0), cell(60.0)],
        lower=[cell(3.0, higher=False), cell(2.0, higher=False), cell(1.0, higher=False)],
        alone=[cell(50.0), cell(None, 90.0), cell(60.0, comparable=False)],
        published=[cell(10.0, 99.0), cell(20.0, 1.0), cell(15.0, 50.0)],
    )
    assert found == {
        "shared": [BEST, BEST, SECOND],
        "apart": [0, BEST, SECOND],
        "lower": [0, SECOND, BEST],
        "alone": [0, 0, 0],
        "published": [0, BEST, SECOND],
    }


def test_a_gain_is_not_ranked_among_averages():
    assert ranks(a=[cell(80.0), cell(70.0), cell(5.0, statistic="gain")]) == {"a": [BEST, SECOND, 0]}


@pytest.mark.parametrize(
    ("unit", "value", "printed", "shown"),
    [
        ("percent", 81.0, "81.0 (11.6)", "81.0"),
        ("percent", 11.6, "81.0 (11.6)", "11.6"),
        ("percent", 5.7, "80.7 (+5.7%)", "5.7"),
        ("percent", 0.032, "0.032%", "0.032"),
        ("count", 907589640.0, "907,589,640", "907,589,640"),
        ("count", 2.46e9, "2.46B", "2,460,000,000"),
        ("seconds", 7500.0, "2h 5m", "7,500"),
        ("normalized", 8.0, "8×", "8"),
        ("fraction", 0.87, "0.8700", "0.8700"),
    ],
)
def test_published_numbers_have_the_digits_of_the_paper(unit, value, printed, shown):
    made = grid({("a", "b"): cell(None, value, unit=unit, printed=printed)})
    assert view(made).cells[0][0].published == shown


@pytest.mark.parametrize(("unit", "ours"), [("percent", "12.3"), ("fraction", "12.3457"), ("count", "12"), ("seconds", "12.3")])
def test_ours_have_the_decimals_of_the_unit_or_of_the_paper(unit, ours):
    made = grid({("a", "b"): cell(12.34567, unit=unit), ("a", "c"): cell(12.34567, 12.3457, unit=unit)})
    assert [shown.ours for shown in view(made).cells[0]] == [ours, "12.3457"]


def test_the_legend_has_the_marks_that_occur_and_no_other():
    remarks = "\n".join(view(small()).remarks())
    assert [mark for mark in "=≠⚑◇†…" if f"{mark} " in remarks] == ["=", "≠", "⚑", "◇"]
    assert "◇ ours is from another checkpoint family (ta)" in remarks
    assert "⚑ Individual × 8 tasks: The mean is 90.5." in remarks
    assert "No cell for Individual × 14 tasks: the paper leaves it out" in remarks
    clean = view(grid({("a", "b"): cell(1.0, 1.0)})).remarks()
    assert not any(mark in line for line in clean for mark in "≠⚑◇†…–")


def test_a_flag_shows_even_where_its_mark_was_forgotten():
    shown = view(grid({("a", "b"): cell(1.0, 3.0, flags=("a copy of the line above",))}))
    assert shown.cells[0][0].flag == "⚑"
    assert any("⚑ published number flagged" in line for line in shown.remarks())


def test_a_twin_shows_nothing_that_was_published():
    twin = view(small(scale="mini"))
    assert "embedded twin" in twin.heading
    assert not any(twin.paired)
    shown = [of for row in twin.cells for of in row]
    assert not any(of.published or of.corrected or of.difference or of.verdict or of.flag for of in shown)
    assert [of.ours for of in shown] == ["90.5", "", "69.1", "65.2", "79.4", "–"]
    assert not any("90.5." in line for line in twin.remarks())


def test_a_table_of_trials_says_so_first():
    trial = grid({("a", "b"): cell(1.0, also=("…",)), ("a", "c"): cell(None, 2.0)})
    assert view(trial).heading.startswith("TRIAL: ")
    mixed = dataclasses.replace(trial, cells={**trial.cells, ("a", "c"): cell(2.0)})
    assert not view(mixed).heading.startswith("TRIAL: ")


def test_blocks_keep_groups_together_where_they_fit():
    assert blocks([range(2), range(2, 5)], [2, 2, 2, 2, 2], 6) == [[0, 1], [2, 3, 4]]
    assert blocks([range(5)], [2, 2, 2, 2, 9], 6) == [[0, 1, 2], [3], [4]]
    assert blocks([range(1), range(1, 3)], [1, 2, 2], 6) == [[0, 1, 2]]
    assert blocks([], [], 6) == []
