"""What a line on a language model is set to by default and by name, and where it says that this is from."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from fusionbench_lite import registry, suites
from fusionbench_lite.paths import config_dir
from fusionbench_lite.planning import presets
from fusionbench_lite.planning.command_line import plan_of
from fusionbench_lite.planning.counts import learned
from fusionbench_lite.planning.given import Section
from fusionbench_lite.planning.settings import hyperparameters, reads_statistics, settings
from fusionbench_lite.suites import Wanted

LM = {"steps": 5000, "batch_size": 8, "batches": 1, "stream": "epoch", "eval_every": 500, "dropout": False}
T5 = {"steps": 1000, "batch_size": 8, "stream": "cycle", "lr": 1e-4}
CASES = {
    "method=adarank model=gpt2 tasks=glue7": (
        {**LM, "lr": 5e-5, "scaling": 1.3, "rank_ratio": 0.01, "matrices": "block_linear"}, "blocks_on_mean", (),
    ),
    "method=adarank model=roberta tasks=glue7": (
        {**LM, "lr": 1e-4, "scaling": 1.6, "rank_ratio": 0.04, "matrices": "block_linear"}, "blocks_on_mean", (),
    ),
    "method=adarank method.base=ta model=roberta tasks=glue7": (
        {**LM, "lr": 5e-5, "scaling": 0.3, "rank_ratio": 1.0}, "blocks", (),
    ),
    "method=adamerging_layerwise model=gpt2 tasks=glue7": (
        {**LM, "lr": 5e-5, "clamp": False, "objective": "entropy"}, "blocks", (),
    ),
    "method=adamerging_layerwise model=gpt2 tasks=glue7 preset=fusionbench": (
        {"lr": 1e-4, "clamp": False, "objective": "entropy_of_mean", "dropout": True, "steps": 1000, "batch_size": 16}, "all", (),
    ),
    "method=adamerging_layerwise model=gpt2 checkpoints.tensors=all": ({"steps": 5000}, "all", ()),
    "method=adamerging_layerwise model=flan_t5_base tasks=glue8": (
        {**T5, "clamp": True, "objective": "entropy", "dropout": False}, "auto", (),
    ),
    "method=adamerging_layerwise model=flan_t5_large tasks=glue8 preset=fusionbench": (
        {"lr": 1e-3, "clamp": False, "objective": "entropy_of_mean", "dropout": True, "batch_size": 4, "stream": "epoch"}, "auto",
        (("first_token", 1),),
    ),
    "method=doge_ta model=flan_t5_base tasks=glue8": ({"eta": 0.15, "matrices": "query_value", "rank": "numerical"}, "auto", ()),
    "method=doge_ta model=flan_t5_base tasks=glue8 preset=released": ({"eta": 0.15, "rank": "fixed"}, "auto", ()),
    "method=doge_ta model=gpt2 tasks=glue7": ({"eta": 0.15, "matrices": "block_linear", "rank": "fixed"}, "auto", ()),
    "method=concrete_am model=flan_t5_base tasks=glue8": (
        {"mask_lr": 1e-4, "inner_lr": 0.1, "lr": 1e-4, "batch_size": 8, "steps": 3000}, "auto", (),
    ),
    "method=metamerging model=gpt2 tasks=glue7": (
        {
            "raw": -1.872, "order": "first", "steps": 1050, "adapter_steps": 750, "batch_size": 8, "features": "positions",
            "length": 512, "updates": "task", "split": "train", "inner_steps": 1,
        }, "auto", (),
    ),
    "method=regmean model=gpt2 tasks=glue7": ({"off_diagonal": 0.6, "examples": 256, "order": "shuffled"}, "auto", ()),
    "method=regmean model=roberta tasks=glue7": ({"off_diagonal": 0.95}, "auto", ()),
    "method=fisher_merging model=gpt2 tasks=glue7": ({"examples": 256, "batch_size": 32, "order": "shuffled"}, "auto", ()),
    "method=task_arithmetic model=gpt2 tasks=glue7": ({"scaling": 0.5}, "auto", ()),
    "method=ties_merging model=gpt2 tasks=glue7": ({"scaling": 0.6, "keep": 0.2, "reduce": "sum"}, "auto", ()),
    "method=cart model=roberta tasks=glue7": ({"scaling": 1.6, "rank_ratio": 0.04, "matrices": "block_linear"}, "auto", ()),
    "method=tsv_m model=gpt2 tasks=glue7": ({"matrices": "block_linear", "rank": "fixed"}, "auto", ()),
    "method=tsv_m model=gpt2 tasks=glue7 preset=fusionbench": ({"matrices": "all_2d"}, "auto", ()),
    "method=tsv_m model=flan_t5_base tasks=glue8": ({"rank": "numerical"}, "auto", ()),
    "method=adarank model=text_mini_decoder": ({"steps": 300, "batch_size": 8, "matrices": "block_linear"}, "auto", ()),
    "method=metamerging model=text_mini_decoder": ({"features": "positions", "length": None, "updates": "task"}, "auto", ()),
    "method=metamerging model=text_mini_encoder": ({"features": "final", "split": "test", "adapter_steps": 225}, "auto", ()),
}


@pytest.mark.parametrize("line", CASES)
def test_settings(line: str):
    values, tensors, options = CASES[line]
    plan = plan_of(line.split())
    chosen = {**plan.hyperparameters, **plan.settings}
    assert {name: chosen[name].value for name in values} == values
    assert (plan.wanted.tensors, plan.wanted.options) == (tensors, options)
    assert all(setting.source.split(":")[0] in ("default", "preset") for setting in chosen.values())


@pytest.mark.parametrize(("model", "coefficients", "logits"), [("gpt2", 1_022, 258_048), ("roberta", 1_344, 387_072)])
def test_adarank_learns_as_many_numbers_as_its_released_code(model, coefficients, logits):
    plan = plan_of([f"model={model}", "method=adarank", "tasks=glue7"])
    of = plan.kind.architecture(plan.wanted)
    assert of is not None
    assert learned(of, 7, plan.method, plan.values).counts == {"coefficients": coefficients, "mask logits": logits}


LANGUAGE = [
    "gpt2", "roberta", "flan_t5_base", "flan_t5_large", "minilm", "text_mini_encoder", "text_mini_decoder", "text_mini_seq2seq",
    "text_mini_llama", "llama2_13b",
]


@pytest.mark.parametrize("model", LANGUAGE)
def test_every_method_has_settings_for_every_language_model(model: str, tmp_path: Path):
    for id in registry.names():
        method = registry.get(id)
        preset = presets.lookup(id, Wanted(model=model, tasks=("a", "b"), cache=tmp_path), "own")
        found = settings(method, Section(), Section(), preset)
        assert bool(found) == (method.adaptive or reads_statistics(method))
        assert hyperparameters(method, Section(), preset).keys() == method.defaults.keys()
        unread = preset.keys() - found.keys() - method.defaults.keys() - {"held_out"}
        assert not unread, (id, unread)
        if "mini" in model and "steps" in found and id != "traditional_mtl":
            assert found["steps"].value <= 500


def test_models_of_the_table_are_models_of_the_package():
    known = set(suites.model_names())
    for entry in yaml.safe_load((config_dir() / "presets.yaml").read_text()):
        models = entry["when"].get("model", [])
        assert set([models] if isinstance(models, str) else models) <= known, entry
        assert set(entry) <= {"when", "name", "set", "suite", "source"}
