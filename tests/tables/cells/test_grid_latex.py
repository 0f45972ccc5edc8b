"""Grids of hard content through a real TeX engine, in a document that loads booktabs and siunitx and nothing else."""

import re
import shutil
import subprocess

import pytest

from fusionbench_lite.tables.cells.formats.latex import to_latex
from fusionbench_lite.tables.cells.grid import Line
from tests.support.grids import HARD, cell, grid, large, small

DOCUMENT = r"""\documentclass{article}
\usepackage{booktabs}
\usepackage{siunitx}
\begin{document}
%s
\end{document}
"""


def hard():
    """Names, groups and notes of every sign, units with numbers of every size."""
    rows = tuple(Line(name=name, group=HARD[place // 4], note=name) for place, name in enumerate(HARD))
    groups = [HARD[-1 - place // 2] for place in range(len(HARD))]
    columns = tuple(Line(name=f"{name} & a long name", group=group) for name, group in zip(HARD, groups, strict=True))
    values = {"percent": 12.3, "count": 907589640.0, "seconds": 57180.5, "normalized": -0.25, "fraction": 0.8123}
    cells = {}
    for number, row in enumerate(rows):
        for place, column in enumerate(columns):
            unit, value = list(values.items())[place % len(values)]
            given = {"unit": unit, "also": ("⚑", "◇", "†", "…"), "flags": (HARD[number],), "corrected": value / 3}
            cells[row.name, column.name] = cell(value, value * 1.01, sd=value / 7, seeds=3, **given)
    return grid(cells, rows=rows, columns=columns, notes=HARD, title=" ".join(HARD), question=HARD[0])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex: .ci/run says which packages of Debian have it")
def test_tables_compile(tmp_path):
    grids = [
        small(), small(scale="mini"), hard(), large(17, 102), large(60, 3), large(5, 20, records=False), grid({}),
        grid({}, columns=(Line(name="no row"),)), grid({("[a]", "b"): cell(1.0), ("*c", "b"): cell(2.0)}),
    ]  # fmt: skip
    for number, made in enumerate(grids):
        (tmp_path / "table.tex").write_text(DOCUMENT % to_latex(made), encoding="utf-8")
        command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "table.tex"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False, timeout=120)
        log = (tmp_path / "table.log").read_text(encoding="latin-1")
        assert done.returncode == 0, (number, re.findall(r"^!.*(?:\n.*){3}", log, re.MULTILINE))
        assert "Float too large" not in log, number
        wide = [float(points) for points in re.findall(r"Overfull \\hbox \(([\d.]+)pt", log)]
        assert made.title.startswith("R&D") or not wide, (number, wide)
        assert "Output written" in log
