"""Every method's model on vit_mini leaves its record and comes back with the same predictions, example by example."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import fusionbench_lite as fbl
from fusionbench_lite import export as cli
from fusionbench_lite import registry
from fusionbench_lite.tables import records

SMALL = (
    "tasks=[digits,signs,land]", "limit=48",
    "checkpoints.recipe={pretrain_steps: 4, finetune_steps: 3, multitask_steps: 3}",
)
SHORT = ("steps=3", "method.adaptation.batch_size=4", "method.adaptation.eval_every=2")
PAIRS = ("slerp", "nuslerp")
PARTS = 6


def line_of(method: str) -> list[str]:
    adaptive = registry.get(method).adaptive
    concrete = ["method.mask_steps=2"] if method == "concrete_am" else []
    return [
        f"method={method}", *SMALL, *(SHORT if adaptive else ()), *(["checkpoints.experts=2"] if method in PAIRS else []), *concrete,
    ]


def exported(command, tmp_path: Path, capsys, line: list[str], *more: str) -> tuple[int, str, Path]:
    """Run a line, export its record, and return status, what was said, and the folder."""
    done = command(*line)
    assert done.returncode == 0, (line, done.stderr)
    method = line[0].removeprefix("method=")
    found = [record for record in records.read_all(tmp_path / "results") if record.method == method]
    out = tmp_path / f"out of [{method}]"
    status = cli.main([found[0].key[:12], f"out={out}", f"results_dir={tmp_path / 'results'}", *more])
    said = capsys.readouterr()
    return status, said.out + said.err, out


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_every_method_is_exported_with_all_predictions_equal(command, tmp_path, capsys, part):
    for method in registry.names()[part::PARTS]:
        status, said, out = exported(command, tmp_path, capsys, line_of(method))
        assert status == 0, (method, said)
        for task in ("digits", "signs", "land"):
            assert f"{task}: 48 of 48 predictions equal" in said, (method, said)
        assert (out / "README.md").is_file()
        assert (out / "heads.safetensors").is_file()


KINDS = {
    "ties_merging": "model", "emr_merging": "per_task", "surgery": "adapters", "wemoe": "routed_perceptrons",
    "twin_merging": "routed_components",
}


@pytest.mark.slow
@pytest.mark.parametrize("method", KINDS)
def test_each_form_is_loaded_by_the_api(command, tmp_path, capsys, method):
    status, said, out = exported(command, tmp_path, capsys, line_of(method))
    assert status == 0, said
    model = fbl.load_exported(out)
    assert (model.kind, model.method, model.tasks) == (KINDS[method], method, ("digits", "signs", "land"))
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    for task in model.tasks:
        logits = model.logits(images, task)
        assert logits.shape == (5, len(model.classes[task]))
        assert model.features(images, task).shape == (5, 64)
