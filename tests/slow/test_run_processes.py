"""Runs of several processes, as Lightning and torchrun start them: their records are those of a process alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

from fusionbench_lite.tables import records
from tests.conftest import ROOT

pytestmark = pytest.mark.timeout(600)
SMALL = (
    "tasks=[digits,signs,land]", "limit=48", "device=cpu",
    "checkpoints.recipe={pretrain_steps: 4, finetune_steps: 3, multitask_steps: 3}",
)
SURGERY = (
    "method=surgery", "method.base=adamerging_layerwise", "method.adaptation.base_steps=3", "steps=3", *SMALL,
    "method.adaptation.eval_every=2", "method.adaptation.batch_size=4",
)
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


def launched(folder, cache, launcher, *arguments, module="fusionbench_lite") -> str:
    """Return what a command says; both of its processes write to the same output."""
    environment = {
        **os.environ, "FUSIONBENCH_LITE_CACHE": str(cache), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
        "COMPUTED": str(folder / "computed"),
    }
    folder.mkdir(exist_ok=True)
    line = [*launcher, "-m", module, *arguments]
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def of(folder, method) -> records.Record:
    (found,) = [record for record in records.read_all(folder / "results") if record.method == method]
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory, shared_cache):
    """A folder with what one process records: adapters on an adaptive base."""
    folder = tmp_path_factory.mktemp("alone")
    launched(folder, shared_cache, [sys.executable], *SURGERY)
    return folder


def check_equal(folder, alone) -> None:
    """Fail unless both folders hold the same two records, up to the order in which gradients are added."""
    for method in ("adamerging_layerwise", "surgery"):
        one, two = of(alone, method), of(folder, method)
        assert one.key == two.key
        first, second = (load_file(record.path / "learned.safetensors") for record in (one, two))
        assert first.keys() == second.keys()
        for name, values in first.items():
            np.testing.assert_allclose(second[name], values, rtol=0, atol=1e-5, err_msg=name)
        first, second = (np.load(record.path / "samples.npz") for record in (one, two))
        for name, values in first.items():
            np.testing.assert_array_equal(second[name], values, err_msg=name)


@pytest.mark.parametrize(("launcher", "setting"), [([sys.executable], ["trainer.devices=2"]), (TORCHRUN, [])])
@pytest.mark.parametrize("base_is_there", [False, True])
def test_two_processes_adapt_on_an_adaptive_base(tmp_path, shared_cache, alone, launcher, setting, base_is_there):
    """All processes need the base's record: made in this run, or found before any of them was started."""
    folder = tmp_path / "two"
    if base_is_there:
        base = of(alone, "adamerging_layerwise").path
        shutil.copytree(base, folder / "results" / "records" / base.name)
    said = launched(folder, shared_cache, launcher, *SURGERY, *setting)
    assert said.count("recorded in") == 1
    check_equal(folder, alone)
    if base_is_there:
        assert launched(folder, shared_cache, launcher, *SURGERY, *setting).count("found in") == 1


@pytest.mark.parametrize(("launcher", "setting"), [([sys.executable], ["trainer.devices=2"]), (TORCHRUN, [])])
def test_two_processes_run_an_experiment(tmp_path, shared_cache, launcher, setting):
    line = ("experiment=mini/first_look", "seed=0", "steps=2", *SMALL)
    said = launched(tmp_path / "two", shared_cache, launcher, *line, *setting)
    alone = launched(tmp_path / "one", shared_cache, [sys.executable], *line)
    assert said.count("written") == alone.count("written") > 0
    one, two = (
        {record.key: record.data["selections"]["last"]["average"] for record in records.read_all(tmp_path / name / "results")}
        for name in ("one", "two")
    )
    assert one == two


def test_a_second_process_repeats_nothing_that_the_first_has_behind_it(tmp_path, shared_cache):
    """Lightning starts it in the last row, the only one that adapts; with overwrite=true it has to skip the others, too."""
    line = ("experiment=mini/first_look", "seed=0", "steps=2", *SMALL)
    launched(tmp_path, shared_cache, [sys.executable], *line)
    given = ("overwrite=true", "trainer.devices=2")
    launched(tmp_path, shared_cache, [sys.executable], *line, *given, module="tests.support.counting_job")
    computed = (tmp_path / "computed").read_text().splitlines()
    assert sorted(one for one in computed if one.startswith("1")) == ["1 adamerging_layerwise"]
    assert len([one for one in computed if one.startswith("0")]) == 5


def test_processes_that_do_not_share_results(tmp_path, shared_cache):
    """The second one only needs a record where adapters sit on it."""
    apart = [*TORCHRUN, "--no-python", "bash", "-c"]
    results = 'exec "$0" -m fusionbench_lite results_dir=results$LOCAL_RANK "$@"'
    environment = {**os.environ, "FUSIONBENCH_LITE_CACHE": str(shared_cache), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def done(*line):
        return subprocess.run(
            [*apart, results, sys.executable, *line], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280,
            check=False,
        )

    alone = done("method=adamerging_layerwise", "steps=2", "method.adaptation.batch_size=4", *SMALL)
    assert alone.returncode == 0, alone.stderr[-2000:]
    assert alone.stdout.count("recorded in") == 1
    refused = done(*SURGERY)
    assert refused.returncode != 0
    assert "give all processes of a run one results_dir" in refused.stderr
