"""Configurations that are put together quickly are those that Hydra composes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fusionbench_lite.paths import config_dir
from fusionbench_lite.planning import config as configuration
from fusionbench_lite.planning import experiments
from fusionbench_lite.planning.arguments import prepared
from fusionbench_lite.planning.composing import composed_for
from fusionbench_lite.running.experiment import plan_of

LISTS = (
    [],
    ["method=tsv_m", "model=vit_l14", "tasks=20", "checkpoints=tall", "seed=3"],
    ["method.scaling=0.1", "method=ties_merging", "method.keep=0.5"],
    ["method=adarank", "method=doge_am", "method.adaptation.steps=7"],  # the later choice counts
    ["model=gpt2", "tasks=glue7", "checkpoints=fusionbench", "checkpoints.experts=[cola,mnli]", "checkpoints.tensors=blocks"],
    ["checkpoints.seed=4", "checkpoints=own", "checkpoints.dir=/tmp/there", "checkpoints.recipe={finetune_steps: 3}"],
    ["logger=wandb", "logger.offline=false", "+logger.entity=me"], ["logger=csv", "results_dir=/elsewhere"],
    ["++method.unheard_of=[1,2,{a: b}]", "~method.scaling"], ["method={id: tsv_m}", "method=awd_ta"],
    ["trainer.chunk=3", "trainer={eval_batch: 5}"], ["select=best_test", "precision=bf16", "overwrite=true", "limit=null"],
    ["data.corruption=fog", "data.severity=2"], ["model=vit_b32", "model.layout=separate"], ["+model.layout=packed"],
    ["steps=1", "device=cpu", "experiment=mini/demo"], ["model=text_mini_encoder"], ["method=wudi", "preset=null"],
    ["hydra/job_logging=plain", "seed=1"], ["~logger"],
)
WRONG = (
    ["method=no_such"], ["method.no_such.key=1"], ["no_such=1"], ["+seed=1"], ["seed=half"], ["method=1"], ["seed=1,2"],
    ["~seed=5"], ["++method=tsv_m"], ["method={id: adarank, ranks: 3}"], ["select=worst"], ["method@elsewhere=tsv_m"],
    ["checkpoints={famly: ta}"], ["seed"], ["tasks=[a"],
)


@pytest.fixture(autouse=True, scope="module")
def initialized() -> Iterator[None]:
    configuration.register()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        yield


def same(one: DictConfig, other: DictConfig) -> None:
    assert OmegaConf.to_yaml(one) == OmegaConf.to_yaml(other)  # with the order of keys, and interpolations as they are written
    assert one == other
    for name in [None, *other]:
        node, expected = (one, other) if name is None else (one._get_node(name), other._get_node(name))
        assert _said_of(node) == _said_of(expected)


def _said_of(node: Any) -> dict[str, Any]:
    """Types and flags of a node, without the time of day that Hydra's own part was composed at."""
    return {name: value for name, value in vars(node._metadata).items() if name != "resolver_cache"}


@pytest.mark.parametrize("overrides", LISTS, ids=" ".join)
def test_a_configuration_is_that_of_hydra(overrides: list[str]):
    same(composed_for(overrides), compose("config", overrides=overrides))


def test_the_files_of_every_group_stand_where_hydra_puts_them():
    """One list names a file of every group at once, so that all files are compared in as many lists as the longest group has."""
    names = ("method", "model", "checkpoints")
    groups = {name: sorted(path.stem for path in (config_dir() / name).glob("*.yaml")) for name in names}
    for number in range(0, len(groups["method"]), 3):
        overrides = [f"{name}={files[number % len(files)]}" for name, files in groups.items()]
        same(composed_for(overrides), compose("config", overrides=overrides))


@pytest.mark.parametrize("overrides", WRONG, ids=" ".join)
def test_a_mistake_is_the_one_that_hydra_finds(overrides: list[str]):
    errors = (HydraException, OmegaConfBaseException, ValueError)
    with pytest.raises(errors) as expected:
        compose("config", overrides=overrides)
    with pytest.raises(errors) as found:
        composed_for(overrides)
    assert (type(found.value), str(found.value)) == (type(expected.value), str(expected.value))


def test_what_a_caller_changes_stays_with_the_caller():
    changed = composed_for(["method=ties_merging", "seed=3"])
    changed.method.scaling, changed.seed = 17.0, 4
    same(composed_for(["method=ties_merging", "seed=3"]), compose("config", overrides=["method=ties_merging", "seed=3"]))


def test_a_file_that_says_more_than_its_group_is_left_to_hydra(tmp_path: Path):
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "broad.yaml").write_text("# @package _global_\nseed: 11\nmethod: {id: tsv_m}\n")
    (tmp_path / "method" / "above.yaml").write_text("defaults: [ties_merging, _self_]\nid: mine\n")
    for overrides in (["method=broad"], ["method=above", "method.keep=0.5"]):
        overrides = [f"hydra.searchpath=[file://{tmp_path}]", *overrides]
        same(composed_for(overrides), compose("config", overrides=overrides))


def test_hundreds_of_plans_are_made_in_seconds(tmp_path: Path):
    """1,500 runs of all tables within half a minute; composing each with Hydra takes a tenth of a second alone."""
    runs = experiments.distinct(experiments.cells(experiments.read("doge/table_14"), []))
    lines = [[*prepared(run.arguments), f"cache_dir={tmp_path}"] for run in runs]
    plan_of(lines[0])
    start = time.process_time()
    for line in lines:
        plan_of(line)
    assert (time.process_time() - start) / len(lines) < 0.02
