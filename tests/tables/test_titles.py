"""Titles of runs: what tells two runs of one method apart."""

from __future__ import annotations

import pytest

from fusionbench_lite.tables import frame, records

SMALL = (
    "tasks=[digits,signs]", "limit=24", "checkpoints.recipe={pretrain_steps: 4, finetune_steps: 3, multitask_steps: 3}",
)


@pytest.fixture(scope="module")
def titles(module_command):
    """The titles that a sweep and single runs print, and the folder of their records."""
    command, folder = module_command
    lines = (
        [*SMALL, "method=task_arithmetic", "-m", "method.scaling=0.2,0.4"],  # -m between keys, too
        [*SMALL, "method=task_arithmetic", "method.scaling=0.4", "checkpoints.experts=[signs]"],
        [*SMALL, "method=task_arithmetic", "seed=3"],
    )
    said = []
    for line in lines:
        done = command(*line)
        assert done.returncode == 0, done.stderr
        said += [text.strip() for text in done.stdout.splitlines() if "vit_mini, tasks=digits+signs" in text]
    return said, folder


def test_every_run_has_a_title_of_its_own(titles):
    said, _ = titles
    start = "TRIAL: vit_mini, tasks=digits+signs"
    assert said == [
        f"{start}, scaling=0.2", f"{start}, scaling=0.4", f"{start}, experts=[signs], scaling=0.4", f"{start}, seed 3",
    ]


def test_only_seeds_are_pooled(titles):
    """Three settings make three rows, though two of them share all hyperparameters."""
    _, folder = titles
    found = [record for record in records.read_all(folder / "results") if record.seeds["seed"] == 0]
    table = frame.from_records(found)
    assert len(table.frame) == len(found) == 3
    assert set(table.frame["seeds"]) == {1}
