"""`experiment=all scale=mini`: the twins of the 50 tables, each for one step on a few examples, in one folder of results."""

from __future__ import annotations

import csv
import dataclasses
import re

import pytest

from fusionbench_lite import registry
from fusionbench_lite.planning import experiments, presets
from fusionbench_lite.suites.embedded import loading
from fusionbench_lite.tables import records
from fusionbench_lite.tables.cells.output import SUFFIXES, WRITTEN

TRIAL = (
    "experiment=all", "scale=mini", "seed=0", "steps=1", "limit=4", "checkpoints.recipe={pretrain_steps: 1, finetune_steps: 1}",
)
DESCENDING = ("doge_ta", "awd_ta")
"""Methods without data that descend for some hundred steps."""
MODELS = ("vit_mini", "vit_mini_small", "text_mini_encoder", "text_mini_decoder", "text_mini_seq2seq", "text_mini_llama")

@pytest.fixture(scope="module")
def trial(module_command):
    """What the command said, what its plan said before and after, and the folder of results.

    One step also of what `steps` does not reach: adapters' bases, methods without data, the training on all tasks.
    """
    command, folder = module_command
    stepping = [name for name in registry.names() if registry.get(name).adaptive or name in DESCENDING]
    short = {"when": {"method": stepping, "model": list(MODELS)}, "set": {"steps": 1}, "source": "a test"}
    table = [*presets._table(), short]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(presets, "_table", lambda: table)
        patch.setattr(loading, "DRAWN", dataclasses.replace(loading.DRAWN, multitask_steps=1))
        before = command(*TRIAL, "plan=true")
        done = command(*TRIAL)
        after = command(*TRIAL, "plan=true")
    return done, before.stdout, after.stdout, folder / "results"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_run_is_refused(trial) -> None:
    done = trial[0]
    assert "Traceback" not in done.stderr
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_run_that_several_tables_ask_for_is_made_once(trial) -> None:
    _, before, after, results = trial
    distinct, missing = map(int, re.search(r"runs +([\d,]+) distinct, 0 with a record here, ([\d,]+) to be made", before).groups())
    bases = int((re.search(r"and (\d+) that adapters sit on", before) or [0, 0])[1])
    assert distinct == missing
    assert len(list(records.read_all(results))) == distinct + bases
    assert " 0 to be made" in after


@pytest.mark.slow
@pytest.mark.parametrize("name", experiments.names())
def test_every_cell_is_answered_in_all_formats(trial, name: str) -> None:
    folder = trial[-1] / "tables" / f"{name}-mini"
    assert {kind for kind in WRITTEN if (folder / f"table{SUFFIXES[kind]}").stat().st_size} == set(WRITTEN)
    with (folder / "table.csv").open(encoding="utf-8", newline="") as file:
        written = list(csv.DictReader(file))
    twin = experiments.scaled(experiments.read(name), "mini")
    asked = {(cell.row, cell.column) for cell in experiments.cells(twin) if cell.omitted is None}
    empty = {(row["row"], row["column"]) for row in written if row["ours"] == ""} & asked
    assert {(row["row"], row["column"]) for row in written} >= asked
    relative = {(row["row"], row["column"]) for row in written if row["statistic"].startswith("normalized:")}
    assert empty <= relative, "experts of one step may score 0, which nothing is relative to"
    if empty:
        assert "the specialist answers nothing of" in (folder / "table.md").read_text(encoding="utf-8")
