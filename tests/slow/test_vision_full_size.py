"""ViT-B/32 at full size, from files as each family publishes them, through a hub, to records: the product's own path."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from safetensors import safe_open

from fusionbench_lite.models import clip
from fusionbench_lite.running import loading
from fusionbench_lite.tables import records
from tests.conftest import ROOT
from tests.support.mirror import UNSET, Mirror
from tests.support.vision_suite import Suite, fill

pytestmark = pytest.mark.timeout(1500)

SIZES = {"mnist": (60, 130), "dtd": (94, 141)}
"""Training and test images by task: a few hundred that an adaptation evaluates."""
METHODS = (
    "weight_averaging", "task_arithmetic", "ties_merging", "ta_dare", "magmax", "breadcrumbs", "emr_merging", "consensus_ta",
    "tsv_m", "iso_c", "pcb_merging",
)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    """A hub with base models and two experts of every family, of ViT-B/32's own shapes, and two data sets."""
    folder = tmp_path_factory.mktemp("full")
    served = Mirror(folder / "mirror")
    fill(served, clip.SIZES["vit_b32"], sizes=SIZES)
    with pytest.MonkeyPatch.context() as patch:
        for name in UNSET:
            patch.delenv(name, raising=False)
        for name, value in served.environment(folder / "hf_home").items():
            patch.setenv(name, value)
        huggingface_hub.close_session()
        yield Suite(served, folder, SIZES)
        served.close()
        loading._latest.clear()
    huggingface_hub.close_session()


def test_families_are_read_as_published(full: Suite):
    """158 tensors of a pickled module, a plain state dict of 158, 199 of transformers: merged in the layout of each."""
    tensors = {"ta": 152, "tall": 152, "fusionbench": 199}
    for family, count in tensors.items():
        record = full.run(f"checkpoints={family} method=task_arithmetic limit=4")
        assert record.data["checkpoints"]["layout"] == ("separate" if family == "fusionbench" else "packed")
        converted = sorted((full.cache / "checkpoints" / family).rglob("*.safetensors"))
        experts = [file for file in converted if "head" not in file.name]
        assert len(experts) == 2, converted
        for file in experts:
            with safe_open(file, framework="pt") as opened:
                assert len(opened.keys()) == count
    packed = full.run("checkpoints=ta method=pretrained limit=4")
    separate = full.run("checkpoints=ta method=pretrained limit=4 model.layout=separate")
    with np.load(packed.path / "samples.npz") as first, np.load(separate.path / "samples.npz") as second:
        for name in first:
            np.testing.assert_array_equal(first[name], second[name])


@pytest.mark.parametrize("method", METHODS)
def test_ten_methods_merge_and_are_evaluated(full: Suite, method: str):
    record = full.run(f"checkpoints=ta method={method} limit=5")
    cells = record.data["selections"]["last"]["per_task"]
    assert {task: cell["examples"] for task, cell in cells.items()} == {"mnist": 5, "dtd": 5}


def test_an_adaptation_that_is_killed_goes_on_from_where_it_was(full: Suite):
    """Two tasks, five steps, on the images of both test splits: the whole line in processes of their own."""
    line = full.line(
        "checkpoints=ta method=adamerging_layerwise steps=5 method.adaptation.batch_size=2 method.adaptation.batches=1 "
        "method.adaptation.eval_every=5 trainer.checkpoint_every=1"
    )
    command = [sys.executable, "-m", "fusionbench_lite", *line]
    running = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    partial, deadline = full.results / "partial", time.monotonic() + 600
    while not list(partial.glob("*/last.ckpt")):
        assert running.poll() is None, running.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    assert not [record for record in records.read_all(full.results) if record.method == "adamerging_layerwise"]
    (checkpoint,) = partial.glob("*/last.ckpt")
    assert checkpoint.stat().st_size > 0
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    resumed = records.read(done.stdout.splitlines()[-1].removeprefix("recorded in").strip())
    elsewhere = [one for one in line if not one.startswith("results_dir=")]
    whole = full.run(shlex.join([*elsewhere, f"results_dir={full.folder / 'whole'}"]))
    for name in ("learned.safetensors", "history.csv", "samples.npz"):
        assert (resumed.path / name).read_bytes() == (whole.path / name).read_bytes(), name
    assert resumed.data["selections"]["last"]["step"] == 5
    assert Path(resumed.path).name == Path(whole.path).name
