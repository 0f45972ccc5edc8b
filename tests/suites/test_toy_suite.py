"""A modality of one's own is one file: tokens instead of images, a metric that is not accuracy, heads of its own.

The file is put where suites are found; nothing else is changed, and methods of every kind run on it from the command line.
"""

from __future__ import annotations

import importlib
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from fusionbench_lite import suites
from fusionbench_lite.__main__ import main
from fusionbench_lite.planning import config
from fusionbench_lite.planning.command_line import plan_of
from fusionbench_lite.running import loading
from fusionbench_lite.tables import records
from fusionbench_lite.tables.__main__ import main as tables
from tests.support.lines import called

TOY = '''
"""Sequences of tokens, of which a classifier tells which of two halves of the vocabulary is seen more often."""

from __future__ import annotations

import dataclasses

from fusionbench_lite.errors import InputError
from fusionbench_lite.suites import SuiteKind

TASKS = ("first", "second")


class Toy(SuiteKind):
    models = {"toy": list(TASKS)}

    def tasks(self, data_dir):
        return TASKS

    def check(self, wanted):
        if wanted.layout is not None:
            raise InputError("model toy has one layout: leave model.layout out")
        return dataclasses.replace(wanted, family="toy")

    def load(self, wanted, progress):
        import numpy as np
        import torch
        from torch import nn

        from fusionbench_lite.base.devices import device_of
        from fusionbench_lite.data import Columns, TaskData
        from fusionbench_lite.evaluation.evaluator import Evaluator
        from fusionbench_lite.evaluation.suite import Suite

        class Encoder(nn.Module):
            def __init__(self):
                super().__init__()
                self.embedding = nn.Embedding(8, 6)
                self.mlp = nn.Linear(6, 6)

            def forward(self, input_ids, mask):
                states = self.embedding(input_ids) + torch.tanh(self.mlp(self.embedding(input_ids)))  # [B, L, 6]
                return (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)  # [B, 6]

        def split(number, count):
            draws = np.random.default_rng(number)
            tokens, mask = draws.integers(0, 8, (count, 5)), np.ones((count, 5), dtype=np.int64)
            mask[::2, 4] = 0
            labels = ((tokens >= 4) * mask).sum(1) * 2 > mask.sum(1)
            return Columns({"input_ids": tokens, "mask": mask}), labels.astype(np.int64)

        def drawn(seed, size):
            generator = torch.Generator().manual_seed(seed)
            return {n: size * torch.randn(t.shape, generator=generator) for n, t in Encoder().state_dict().items()}

        device, data, heads = device_of(wanted.device), {}, {}
        for number, task in enumerate(wanted.tasks):
            train, test = split(number, 80), split(10 + number, wanted.limit or 40)
            data[task] = TaskData(
                name=task, classes=("low", "high"), train_images=train[0], train_labels=train[1], test_images=test[0],
                test_labels=test[1], metric="matthews",
            )
            head = nn.Linear(6, 2, bias=False).requires_grad_(False)
            head.weight.copy_(drawn(20 + number, 1.0)["mlp.weight"][:2])
            heads[task] = head
        pretrained = drawn(1, 0.5)
        experts = {t: {n: w + drawn(2 + k, 0.2)[n] for n, w in pretrained.items()} for k, t in enumerate(wanted.tasks)}
        return Suite(
            family="toy", tasks=data, data_hashes={t: entry.sha256 for t, entry in data.items()}, files={"toy": "0"},
            expert_hashes=dict.fromkeys(wanted.tasks, "1"), head_hashes=dict.fromkeys(wanted.tasks, "2"),
            pretrained=pretrained, experts=experts, multitask=None, model=Encoder().eval(),
            evaluator=Evaluator(data=data, heads=heads, device=device, batch_size=wanted.eval_batch, prepare=dict), device=device,
        )


KIND = Toy()
'''

ADAPTATION = ["method.adaptation.steps=3", "method.adaptation.batch_size=4"]
LINES = {
    "task_arithmetic": [],
    "fisher_merging": ["method.statistics.examples=20", "method.statistics.batch_size=8"],
    "tatr": ["method.statistics.examples=20"],
    "adamerging_layerwise": ADAPTATION,
    "adarank_cart": ADAPTATION,
    "surgery": ADAPTATION,
}


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A folder in which the toy suite is a module of fusionbench_lite.suites."""
    folder = tmp_path / "place"
    folder.mkdir()
    (folder / "toy.py").write_text(textwrap.dedent(TOY))
    monkeypatch.setattr(suites, "__path__", [*suites.__path__, str(folder)])
    suites.kinds.cache_clear()
    config.register()
    yield tmp_path
    suites.kinds.cache_clear()
    loading._latest.clear()
    sys.modules.pop("fusionbench_lite.suites.toy", None)
    importlib.invalidate_caches()


def line(folder: Path, method: str) -> list[str]:
    folders = [f"results_dir={folder / 'results'}", f"cache_dir={folder / 'cache'}"]
    return ["model=toy", f"method={method}", "device=cpu", *folders, *LINES[method]]


def test_methods_of_every_kind_run_from_the_command_line(toy: Path):
    for method in LINES:
        status, said = called(main, line(toy, method))
        assert status == 0, said
        assert "recorded in" in said
        assert "ccuracy" not in said
        assert "Matthews" in said
    found = {record.data["method"]: record for record in records.read_all(toy / "results")}
    assert set(found) == set(LINES)
    for record in found.values():
        assert record.data["tasks"] == ["first", "second"]
        for entry in record.data["selections"]["last"]["per_task"].values():
            assert entry["metric"] == "matthews"
            assert -1 <= entry["interval"][0] <= entry["value"] <= entry["interval"][1] <= 1
    arithmetic = found["task_arithmetic"].data["selections"]["last"]["per_task"]
    assert any(entry["value"] != 0 for entry in arithmetic.values())


def test_a_record_is_found_again_and_holds_what_the_metric_needs(toy: Path):
    status, said = called(main, line(toy, "task_arithmetic"))
    assert status == 0, said
    status, said = called(main, line(toy, "task_arithmetic"))
    assert status == 0, said
    assert "found in" in said
    (record,) = records.read_all(toy / "results")
    with np.load(record.path / "samples.npz") as samples:
        assert samples["last/first/predictions"].shape == samples["last/first/labels"].shape == (40,)


def test_a_table_of_such_records_names_their_metric(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    experiments = tmp_path / "experiments"
    experiments.mkdir()
    rows = "".join(f"  - {{name: {name}, overrides: [{', '.join([f'method={name}', *LINES[name]])}]}}\n" for name in LINES)
    (experiments / "toy.yaml").write_text(f"title: Toy\ndefaults: [model=toy]\nrows:\n{rows}")
    for module in ("fusionbench_lite.paths", "fusionbench_lite.running.experiment", "fusionbench_lite.tables.rows"):
        monkeypatch.setattr(f"{module}.experiments_dir", lambda: experiments)
    folders = [f"results_dir={toy / 'results'}", f"cache_dir={toy / 'cache'}", "device=cpu"]
    status, said = called(main, ["experiment=toy", *folders])
    assert status == 0, said
    assert "Matthews" in said
    latex = next((toy / "results" / "tables").rglob("table.tex")).read_text()
    assert "ccuracy" not in latex
    assert "Matthews" in latex
    status, said = called(lambda: tables(["toy", "--results", str(toy / "results"), "--format", "csv"]), [])
    assert status == 0, said


def test_help_offers_its_model(toy: Path):
    status, said = called(main, ["--help"])
    assert status == 0, said
    listed = " ".join(said.partition("\nmodel: ")[2].split()).split(", ")
    assert {"toy", "vit_b16", "vit_mini", "gpt2"} <= {name.split()[0] for name in listed}


def test_a_kind_with_an_extent_and_no_architecture_makes_no_plan(toy: Path):
    from fusionbench_lite.resources import planned

    kind = suites.kind_of("toy")
    kind.extent = lambda wanted: suites.Extent(classes=(2, 2), test_examples=(40, 40))
    plan = plan_of(line(toy, "adarank_cart"))
    assert planned.decided(plan, torch.device("cpu")) == ("device", None)


def test_what_the_toy_lacks_is_refused_in_one_line(toy: Path):
    from fusionbench_lite.finetune import main as finetune

    status, said = called(lambda: finetune(["model=toy", "tasks=[first]", f"cache_dir={toy / 'cache'}"]), [])
    assert (status, said.count("\n")) == (2, 1)
    assert "cannot be trained here" in said
    status, said = called(main, ["model=toy", "+model.layout=packed"])
    assert (status, said.count("\n")) == (2, 1)
