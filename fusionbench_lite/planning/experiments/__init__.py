"""Published tables as experiments: a file of rows and columns becomes cells, and every cell a set of runs and a statistic.

    files.py        the file `experiments/PAPER/TABLE.yaml`, read and checked
    cells.py        its cells: overrides, statistic, published counterpart
    runs.py         what one run is known by before it is loaded, and the note that leads to its record
    statistics.py   what may be read off records
    scale.py        `scale=mini`: the same table on the embedded suites
"""

from fusionbench_lite.planning.experiments.cells import CellSpec, cells, distinct
from fusionbench_lite.planning.experiments.files import Experiment, Line, names, read
from fusionbench_lite.planning.experiments.runs import Run
from fusionbench_lite.planning.experiments.scale import scaled
from fusionbench_lite.planning.experiments.statistics import Statistic

ALL = "all"
"""`experiment=all`: every published table."""

__all__ = ["ALL", "CellSpec", "Experiment", "Line", "Run", "Statistic", "cells", "distinct", "names", "read", "scaled"]
