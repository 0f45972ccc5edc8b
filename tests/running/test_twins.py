"""`experiment=all scale=mini`: the twins of the 50 tables, each for one step on a few examples, in one folder of results."""

from __future__ import annotations

import csv
import dataclasses
import re
from pathlib import Path

import pytest

from fusionbench_lite import registry
from fusionbench_lite.finetuning import embedded
from fusionbench_lite.planning import experiments, presets
from fusionbench_lite.tables import records
from fusionbench_lite.tables.cells.output import SUFFIXES, WRITTEN

TRIAL = (
    "experiment=all", "scale=mini", "seed=0", "steps=1", "limit=4", "checkpoints.recipe={pretrain_steps: 1, finetune_steps: 1}",
)
DESCENDING = ("doge_ta", "awd_ta")
"""Methods without data that descend for some hundred steps."""
MODELS = ("vit_mini", "vit_mini_small", "text_mini_encoder", "text_mini_decoder", "text_mini_seq2seq", "text_mini_llama")


@pytest.fixture
def trial(command, tmp_path):
    """What the command said, what its plan said before and after, and the folder of results.

    One step also of what `steps` does not reach: adapters' bases, methods without data, the training on all tasks.
    """
    stepping = [name for name in registry.names() if registry.get(name).adaptive or name in DESCENDING]
    short = {"when": {"method": stepping, "model": list(MODELS)}, "set": {"steps": 1}, "source": "a test"}
    table = [*presets._table(), short]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(presets, "_table", lambda: table)
        patch.setattr(embedded, "DRAWN", dataclasses.replace(embedded.DRAWN, multitask_steps=1))
        before = command(*TRIAL, "plan=true")
        done = command(*TRIAL)
        after = command(*TRIAL, "plan=true")
    return done, before.stdout, after.stdout, tmp_path / "results"


@pytest.mark.slow
@pytest.mark.timeout(1200)  # four minutes beside another process
def test_every_twin_runs_for_one_step_and_answers_its_cells_in_all_formats(trial) -> None:
    """One test, so that one process makes the runs."""
    done, before, after, results = trial
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    distinct, missing = map(int, re.search(r"runs +([\d,]+) distinct, 0 with a record here, ([\d,]+) to be made", before).groups())
    bases = int((re.search(r"and (\d+) that adapters sit on", before) or [0, 0])[1])
    assert distinct == missing
    assert len(list(records.read_all(results))) == distinct + bases, "a run that several tables ask for is made once"
    assert " 0 to be made" in after
    for name in experiments.names():
        _check_table(name, results / "tables" / f"{name}-mini")


def _check_table(name: str, folder: Path) -> None:
    assert {kind for kind in WRITTEN if (folder / f"table{SUFFIXES[kind]}").stat().st_size} == set(WRITTEN), name
    with (folder / "table.csv").open(encoding="utf-8", newline="") as file:
        written = list(csv.DictReader(file))
    twin = experiments.scaled(experiments.read(name), "mini")
    asked = {(cell.row, cell.column) for cell in experiments.cells(twin) if cell.omitted is None}
    empty = {(row["row"], row["column"]) for row in written if row["ours"] == ""} & asked
    assert {(row["row"], row["column"]) for row in written} >= asked, name
    relative = {(row["row"], row["column"]) for row in written if row["statistic"].startswith("normalized:")}
    assert empty <= relative, f"{name}: experts of one step may score 0, which nothing is relative to"
    if empty:
        assert "the specialist answers nothing of" in (folder / "table.md").read_text(encoding="utf-8")
