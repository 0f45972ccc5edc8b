"""An adaptive method of somebody else is one Python file and one YAML, and everything that lists methods knows it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT

METHOD = '''"""Toy: halved task vectors (Nobody et al. 2031)."""

from __future__ import annotations

import dataclasses
import math

from fusionbench_lite.fields import integer, real
from fusionbench_lite.registry import method
from fusionbench_lite.weights import costs


@dataclasses.dataclass(frozen=True)
class Toy:
    """`scaling`: λ at the start. `lr`: Adam's learning rate. `spares`: copies of the model that are kept for nothing."""

    scaling: float = real(0.25)
    lr: float = real(0.01, low=0, open_low=True)
    spares: int = integer(3, low=0)


def _learned(of, tasks, h):
    return costs.Learned({"coefficients": tasks}, extra=h.spares * of.parameters)


def _cost(s):
    own = (math.prod(shape) * costs.WORK for shape in s.architecture.tensors.values())
    return costs.Cost(tuple(costs.Tensors(vectors=s.tasks * size, own=s.h.spares * size) for size in own))


@method("toy_am", Toy, adaptive=True, label="Toy Æ", learned=_learned, cost=_cost)
def toy_am(experts, h):
    """θ_l = θ0_l + Σ_t λ_t τ_tl / 2.

    λ minimises the entropy of predictions. Cost: spares.
    """
    from fusionbench_lite.adaptation.engine.descent import descend
    from fusionbench_lite.adaptation.engine.parametrisation import Parametrisation
    from fusionbench_lite.adaptation.engine.parts import Vectors

    parts = {name: Vectors(experts.base(name), experts.task_vectors(name).div_(2)) for name in experts.names}
    return descend(Parametrisation(experts, parts, h.scaling, lr=h.lr, shared=True))
'''

CONFIG = """# python -m fusionbench_lite method=toy_am
# Halved task vectors.
id: toy_am
scaling: 0.25
lr: 0.01
spares: 3
adaptation:
  steps: null
  batch_size: null
  batches: null
  stream: null
  eval_every: null
  fraction: null
  held_out: null
"""

BARE = METHOD.replace('"toy_am"', '"toy_bare"').replace(', label="Toy Æ", learned=_learned, cost=_cost', "")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the package and what lies beside it, with the two files, and a method that declares nothing."""
    folder = tmp_path_factory.mktemp("tree")
    for name in ("fusionbench_lite", "conf", "experiments", "docs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.png"))
    (folder / "fusionbench_lite" / "adaptation" / "toy.py").write_text(METHOD, encoding="utf-8")
    (folder / "conf" / "method" / "toy_am.yaml").write_text(CONFIG, encoding="utf-8")
    return folder


def python(tree, *arguments):
    """Run the interpreter on the copy; `tests` are the checkout's own."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=tree, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tree), str(tree / "docs"), str(ROOT)]), "COLUMNS": "160"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_help_offers_it(tree):
    shown = python(tree, "-m", "fusionbench_lite", "method=toy_am", "--help")
    options, _, configuration = shown.partition("== Configuration")
    assert " toy_am," in options
    assert "spares: 3" in configuration


def test_sizes_count_it(tree):
    lines = python(tree, "-m", "fusionbench_lite.sizes", "model=vit_mini", "toy_am.spares=2", "format=csv").splitlines()
    (line,) = (line for line in lines if line.startswith("toy_am,"))
    assert line.split(",")[1:5] == ["Toy Æ", "8", "coefficients 8", str(2 * 828_672)]


def test_plans_count_it(tree):
    code = """
from fusionbench_lite.resources import Inputs, encoder, estimate, lines
found = estimate(Inputs(encoder=encoder("vit_mini"), method="toy_am", tasks=8, values={"spares": 5}))
print({entry.what: entry.nbytes for entry in found.entries if entry.phases[0] == "build"})
print(*lines(found), sep="\\n")
"""
    first, *shown = python(tree, "-c", code).splitlines()
    own = 4 * 828_672
    assert first == str({"pretrained weights": own, "task vectors": 8 * own, "masks and experts' parts": 5 * own, "learnables": 32})
    assert shown[0].startswith("toy_am on vit_mini with 8 tasks")


def test_tables_and_the_pages_of_methods_name_it(tree):
    code = """
from pathlib import Path
from method_page import pages
from fusionbench_lite.running.experiment import Experiment
from fusionbench_lite.tables.frame import build, from_records
from fusionbench_lite.tables.records import read_all
from fusionbench_lite.tables.rows import Row, Rows
from tests.support.record_factory import TASKS, store
plan = Experiment(
    name="mini/toy", title="Toys", question="", seeds=(0,), defaults=("model=vit_mini", "tasks=mini8"),
    rows={"Ours": ("method=toy_am",)},
)
extra = {"config": {"method": {}, "checkpoints": {}}, "precision": "fp32"}
keys = [store(Path("results"), method, dict.fromkeys(TASKS, 0.75), **extra) for method in ("toy_am", "somebody_elses")]
rows = Rows(plan.name, plan.title, (Row("Ours", "toy_am", (keys[0],)), Row("Theirs", "somebody_elses", (keys[1],))))
records = read_all("results")
table = build(rows, records)
print(dict(table.frame["family"]))
print(sorted(from_records(records).frame.index))
print(*pages(plan, rows, records, table).values())
"""
    families, names, *shown = python(tree, "-c", code).splitlines()
    assert families == str({"Ours": "Test-time adaptive", "Theirs": "Data-free"})
    assert names == str(["Toy Æ", "somebody_elses"])
    (line,) = (line for line in shown if line.startswith("| [`toy_am`]"))
    cells = [cell.strip() for cell in line.split("|")[1:-1]]
    assert cells[1:5] == ["Toy Æ", "Halved task vectors.", "Nobody et al. 2031", "Test-time adaptive"]
    assert cells[7] == "75.0"
    assert "## toy_am" in shown
    assert "| `spares` | `3` | an integer of at least 0 | copies of the model that are kept for nothing |" in shown


def test_it_runs_and_one_that_declares_nothing_has_a_place_too(tree):
    (tree / "fusionbench_lite" / "adaptation" / "bare.py").write_text(BARE, encoding="utf-8")
    code = """
import torch, fusionbench_lite as fbl
from fusionbench_lite import registry
from fusionbench_lite.models.architectures import encoder
from fusionbench_lite.resources import Inputs, estimate
from fusionbench_lite.resources.sizes import table
from tests.support.small_models import small_setting
s = small_setting(steps=2)
for id in ("toy_am", "toy_bare"):
    adapted = fbl.adapt(id, s.model, s.pretrained, s.experts, s.heads, s.batches, 2, lr=0.5)
    assert float(next(iter(adapted.coefficients.values()))[0]) != 0.25
bare, of = registry.get("toy_bare"), encoder("vit_mini")
print(bare.label, bare.family)
print(table(of, 8).set_index("method").loc["toy_bare", "note"])
plans = [estimate(Inputs(encoder=of, method=id, tasks=8)) for id in ("toy_bare", "adamerging_layerwise")]
print(plans[0].entries == plans[1].entries)
"""
    try:
        assert python(tree, "-c", code).splitlines()[-3:] == [
            "toy_bare Test-time adaptive", "it does not say what it learns", "True",
        ]
    finally:
        (tree / "fusionbench_lite" / "adaptation" / "bare.py").unlink()
