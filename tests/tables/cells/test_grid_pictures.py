"""Grids as pictures: every number is on them, within the sheet and beside no other."""

import pytest
from matplotlib.collections import PathCollection
from matplotlib.lines import Line2D
from matplotlib.text import Text

from fusionbench_lite.tables.cells.formats.picture import draw, figure
from tests.support.grids import HARD, cell, grid, large, small


def texts(made):
    return [text.get_text() for text in figure(made).findobj(Text) if text.get_text()]


def test_panels_have_ours_with_intervals_and_the_published_marks():
    drawn = figure(small())
    panels = drawn.axes
    assert len(panels) == 2
    lines = [line for line in panels[0].findobj(Line2D) if line.get_marker() in ("o", "D", "x") and line in panels[0].lines]
    points = {marker: sorted(float(line.get_xdata()[0]) for line in lines if line.get_marker() == marker) for marker in "oDx"}
    assert points == {"o": [69.06, 79.4, 90.52], "D": [69.1, 80.7, 90.8], "x": [90.5]}
    shown = texts(small())
    assert "90.5 ◇⚑=" in shown
    assert "77.9 –" in shown, "what was not run shows the published number and says so"
    assert not drawn.findobj(PathCollection)


@pytest.mark.parametrize(("rows", "columns"), [(5, 4), (17, 30)])
def test_no_cell_is_lost(rows, columns):
    made = large(rows, columns)
    said = " ".join(texts(made)).replace(",", "")
    for of in made.cells.values():
        assert f"{of.ours}" in said
        assert columns <= 6 or f"{of.published}" in said


def test_a_twin_has_no_published_marks():
    drawn = figure(small(scale="mini"))
    assert not [line for axes in drawn.axes for line in axes.lines if line.get_marker() in ("D", "x")]
    assert any("embedded twin" in text for text in texts(small(scale="mini")))


def test_numbers_of_different_sizes_stand_on_a_logarithmic_axis():
    made = grid({("a", "b"): cell(8.0, unit="count"), ("c", "b"): cell(907589640.0, unit="count")})
    assert figure(made).axes[0].get_xscale() == "log"
    assert figure(grid({("a", "b"): cell(8.0), ("c", "b"): cell(9.0)})).axes[0].get_xscale() == "linear"


@pytest.mark.parametrize(
    "made",
    [small(), large(4, 12), large(30, 3), grid({("a", "b"): cell(2460000000.5, unit="count")})],
    ids=["small", "wide", "long", "one"],
)
def test_all_texts_are_within_the_sheet(made):
    drawn = figure(made)
    drawn.canvas.draw()
    renderer = drawn.canvas.get_renderer()
    width, height = drawn.canvas.get_width_height()
    ticks = [label for axes in drawn.axes for label in axes.xaxis.get_ticklabels(which="both")]  # some lie beyond the limits
    for text in drawn.findobj(Text):
        if text.get_text() and text not in ticks:
            box = text.get_window_extent(renderer)
            assert min(box.x0, box.y0, width - box.x1, height - box.y1) > -1, text.get_text()


def test_the_same_grid_has_the_same_bytes(tmp_path):
    for name in "ab":
        draw(small(), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.filterwarnings("ignore:Glyph")  # the font of matplotlib has no Chinese letters
def test_signs_in_names_are_no_formulas(tmp_path):
    made = grid({(name, "b$ar$"): cell(1.0, 2.0) for name in HARD})
    draw(made, tmp_path / "hard.png")
    assert r"b\$ar\$" in texts(made)
