"""Statistics of training images for a run: settings and their sources, what is computed from what, and whole runs."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fusionbench_lite import __main__ as cli
from fusionbench_lite import models, statistics
from fusionbench_lite.base.progress import Progress
from fusionbench_lite.errors import InputError, MergeError
from fusionbench_lite.evaluation.suite import Suite
from fusionbench_lite.finetuning import zoo
from fusionbench_lite.models.heads import ZeroShotHead
from fusionbench_lite.paths import config_dir
from fusionbench_lite.planning import config as configuration
from fusionbench_lite.planning import plan
from fusionbench_lite.planning.settings import Sourced
from fusionbench_lite.running import loading, method_inputs, recording
from fusionbench_lite.tables import records

SMALL = (
    "tasks=[digits,signs,land]", "limit=48",
    "checkpoints.recipe={pretrain_steps: 4, finetune_steps: 3, multitask_steps: 3}",
)
FEW = ("method.statistics.examples=10", "method.statistics.batch_size=4")
METHODS = ("fisher_merging", "regmean")
SOURCE = "preset: MergeLM / FusionBench"


@pytest.fixture
def resolve():
    """Return the plan of some overrides."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    def run(*overrides: str) -> plan.Plan:
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            return plan.resolve(compose("config", overrides=list(overrides)), overrides)

    configuration.register()
    yield run
    GlobalHydra.instance().clear()


@pytest.fixture
def loaded(resolve, shared_cache):
    """Return plan and suite of some overrides, on the small experts of the test session."""

    def run(*overrides: str) -> tuple[plan.Plan, Suite]:
        resolved = resolve(*SMALL, "device=cpu", f"cache_dir={shared_cache}", *overrides)
        with Progress() as progress:
            return resolved, loading.load(resolved, progress)

    return run


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(("method", "order"), [("fisher_merging", "stored"), ("regmean", "shuffled")])
def test_settings_come_from_the_preset(resolve, method, order):
    settings = resolve(f"method={method}").settings
    assert {name: (setting.value, setting.source) for name, setting in settings.items()} == {
        "examples": (256, SOURCE), "batch_size": (32, SOURCE), "order": (order, SOURCE),
    }


def test_the_settings_of_tatr_are_those_of_fusionbench(resolve):
    source = "preset: FusionBench, fusion_bench/method/trust_region: the mean of 128 examples' absolute gradients"
    assert {name: (setting.value, setting.source) for name, setting in resolve("method=tatr").settings.items()} == {
        "examples": (128, source), "batch_size": (1, source), "order": ("shuffled", source),
    }


@pytest.mark.parametrize("method", METHODS)
def test_what_is_given_wins(resolve, method):
    settings = resolve(f"method={method}", "method.statistics.examples=64", "method.statistics.order=shuffled").settings
    assert settings["examples"] == Sourced(64, "given")
    assert settings["order"] == Sourced("shuffled", "given")
    assert settings["batch_size"] == Sourced(32, SOURCE)


def test_other_methods_have_no_such_settings(resolve):
    assert resolve("method=task_arithmetic").settings == {}
    assert set(resolve("method=adarank").settings) == {
        "steps", "batch_size", "batches", "stream", "eval_every", "fraction", "held_out", "dropout",
    }
    with pytest.raises(MergeError, match="has no hyperparameter 'statistics'"):
        resolve("method=task_arithmetic", "+method.statistics.examples=3")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method.statistics.batch_size=0", "batch_size must be an integer of at least 1, got 0"),
        ("method.statistics.examples=-1", "examples must be an integer of at least 1, got -1"),
        ("method.statistics.examples=2.5", "examples must be an integer of at least 1, got 2.5"),
        ("method.statistics.examples=true", "examples must be an integer of at least 1, got True"),
        ("method.statistics.order=shufled", "order must be one of stored, shuffled (did you mean 'shuffled'?), got 'shufled'"),
        ("method.statistics.order=3", "order must be one of stored, shuffled, got 3"),
        ("+method.statistics.exmples=3", "unknown key 'method.statistics.exmples': did you mean 'examples'?"),
        ("steps=5", "has no meaning for method"),
        ("method.statistics=5", "method.statistics must map examples, batch_size and order, got 5"),
    ],
)
def test_bad_settings_are_refused_in_one_line(resolve, method, override, message):
    with pytest.raises(InputError) as refusal:
        resolve(f"method={method}", override)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_misspelt_key_names_the_nearest(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fusionbench_lite", "method=regmean", "method.statistics.exmples=3"])
    assert cli.main() == 2
    assert "did you mean 'method.statistics.examples'?" in capsys.readouterr().err


def test_settings_are_checked_without_torch():
    code = "import sys, fusionbench_lite.planning.plan, fusionbench_lite.running.method_inputs; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def _cached_in(resolved: plan.Plan, folder) -> plan.Plan:
    return dataclasses.replace(resolved, wanted=dataclasses.replace(resolved.wanted, cache=folder))


# ---------------------------------------------------------------- what is computed


def _images(data, indices) -> torch.Tensor:
    return torch.from_numpy((data.train_images[indices].astype(np.float32) / 255 - 0.5) / 0.25).permute(0, 3, 1, 2)


def _expert(loaded_suite: Suite, task: str) -> torch.nn.Module:
    model = models.build("vit_mini")
    model.load_state_dict(load_file(loaded_suite.folder / zoo.expert_file(task)))
    return model.eval()


def test_fisher_is_that_of_each_expert_on_its_first_training_images(loaded):
    resolved, found = loaded("method=fisher_merging", *FEW)
    fisher = method_inputs.inputs(resolved, found)["fisher"]
    assert list(fisher) == ["digits", "signs", "land"]
    for task in fisher:
        head = ZeroShotHead(load_file(found.folder / "heads.safetensors")[task], 20.0)
        model, x = _expert(found, task), _images(found.tasks[task], np.arange(10))
        expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
        for batch in (x[:4], x[4:8], x[8:]):
            log_p = head(model(batch)).log_softmax(-1)
            model.zero_grad()
            (log_p.detach().exp().sqrt() * log_p).sum().backward()
            for name, parameter in model.named_parameters():
                expected[name] += parameter.grad**2 / 10
        assert set(fisher[task]) == set(found.pretrained)
        for name, values in expected.items():
            torch.testing.assert_close(fisher[task][name], values, rtol=1e-3, atol=1e-4 * float(values.max()))


def test_gram_is_that_of_each_expert_on_shuffled_training_images(loaded):
    resolved, found = loaded("method=regmean", *FEW)
    gram = method_inputs.inputs(resolved, found)["gram"]
    for task in ("digits", "signs", "land"):
        indices = method_inputs.chosen(task, found.size(task, "train"), "shuffled", 10, resolved.seed)
        assert len(set(indices)) == 10
        assert indices.max() > 10
        model, rows = _expert(found, task), []
        model.transformer.resblocks[3].mlp.c_proj.register_forward_hook(lambda m, args, out, rows=rows: rows.append(args[0]))
        with torch.no_grad():
            model(_images(found.tasks[task], indices))
        x = rows[0].reshape(-1, 512).double()
        torch.testing.assert_close(
            gram[task]["transformer.resblocks.3.mlp.c_proj.weight"], (x.T @ x / len(x)).float(), rtol=1e-4, atol=1e-6
        )


def _tiny(loaded):
    return loaded("method=tatr", "method.statistics.examples=10")


def test_gradients_are_those_of_the_pretrained_model_on_shuffled_training_images_with_labels(loaded):
    resolved, found = _tiny(loaded)
    gradients = method_inputs.inputs(resolved, found)["gradients"]
    assert list(gradients) == ["digits", "signs", "land"]
    for task in gradients:
        head = ZeroShotHead(load_file(found.folder / "heads.safetensors")[task], 20.0)
        rows = method_inputs.chosen(task, found.size(task, "train"), "shuffled", 10, resolved.seed)
        model = models.build("vit_mini")
        model.load_state_dict(found.pretrained)
        x, labels = _images(found.tasks[task], rows), torch.from_numpy(found.tasks[task].train_labels[rows]).long()
        expected = {name: torch.zeros_like(p) for name, p in model.eval().named_parameters()}
        for number in range(10):
            model.zero_grad()
            torch.nn.functional.cross_entropy(head(model(x[number : number + 1])), labels[number : number + 1]).backward()
            for name, parameter in model.named_parameters():
                expected[name] += parameter.grad.abs() / 10
        assert set(gradients[task]) == set(found.pretrained)
        for name, values in expected.items():
            torch.testing.assert_close(gradients[task][name], values, rtol=1e-3, atol=1e-4 * float(values.max()))


def test_gradients_are_found_again_by_labels_seed_and_pretrained_weights(loaded, tmp_path):
    resolved, found = _tiny(loaded)
    resolved = _cached_in(resolved, tmp_path)

    def entries(suite: Suite, plan_: plan.Plan = resolved) -> int:
        method_inputs.inputs(plan_, suite)
        return len(list((tmp_path / "statistics").glob("*.safetensors")))

    assert [entries(found), entries(found)] == [3, 3]
    assert entries(dataclasses.replace(found, expert_hashes=dict.fromkeys(found.expert_hashes, "another"))) == 3
    shifted = {task: dataclasses.replace(data, train_labels=data.train_labels[::-1].copy()) for task, data in found.tasks.items()}
    assert entries(dataclasses.replace(found, tasks=shifted)) == 6
    assert entries(dataclasses.replace(found, files={"another": "file"})) == 9
    seeded, again = loaded("method=tatr", "method.statistics.examples=10", "seed=1", "checkpoints.seed=0")
    assert entries(again, _cached_in(seeded, tmp_path)) == 12


@pytest.mark.parametrize("method", METHODS)
def test_test_images_and_labels_are_not_read(loaded, tmp_path, method):
    resolved, found = loaded(f"method={method}", *FEW)
    before = {name: tensor.clone() for name, tensor in found.model.state_dict().items()}
    expected = method_inputs.inputs(resolved, found)
    hidden = {
        task: dataclasses.replace(data, test_images=None, test_labels=None, train_labels=np.full_like(data.train_labels, -1))
        for task, data in found.tasks.items()
    }
    blind = dataclasses.replace(found, tasks=hidden)
    again = method_inputs.inputs(_cached_in(resolved, tmp_path), blind)
    assert len(list((tmp_path / "statistics").glob("*.safetensors"))) == 3
    for name, tasks in expected.items():
        for task, tensors in tasks.items():
            assert all(torch.equal(again[name][task][key], tensor) for key, tensor in tensors.items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in found.model.state_dict().items())


@pytest.mark.parametrize("method", METHODS)
def test_an_entry_is_found_again_by_what_decides_it(loaded, tmp_path, monkeypatch, method):
    def inputs(*overrides: str) -> dict:
        resolved, found = loaded(f"method={method}", *FEW, *overrides)
        return method_inputs.inputs(_cached_in(resolved, tmp_path), found)

    def entries() -> int:
        return len(list((tmp_path / "statistics").glob("*.safetensors")))

    first = inputs()
    assert entries() == 3
    inputs("limit=7", "tasks=[land,digits,signs]")
    assert entries() == 3
    seeded = inputs("seed=1", "checkpoints.seed=0")
    assert entries() == (6 if method == "regmean" else 3)
    name = "gram" if method == "regmean" else "fisher"
    weight = "transformer.resblocks.0.mlp.c_fc.weight"
    assert torch.equal(first[name]["land"][weight], seeded[name]["land"][weight]) == (method == "fisher_merging")
    count = entries()
    for override in ("examples=11", "batch_size=5", f"order={'shuffled' if method == 'fisher_merging' else 'stored'}"):
        inputs(f"method.statistics.{override}")
        count += 3
        assert entries() == count
    monkeypatch.setattr(statistics, "diagonal_fisher", None)
    monkeypatch.setattr(statistics, "gram_matrices", None)
    again = inputs()
    assert all(torch.equal(again[name]["land"][key], tensor) for key, tensor in first[name]["land"].items())


@pytest.mark.parametrize("method", METHODS)
def test_settings_are_part_of_the_record(loaded, method):
    keys = {
        records.key(recording.identity(*loaded(f"method={method}", *FEW, *more)))
        for more in ([], ["method.statistics.examples=11"], ["method.statistics.batch_size=5"], ["method.statistics.order=stored"],
                     ["method.statistics.order=shuffled"])
    }
    assert len(keys) == 4  # one of the two orders is the preset


@pytest.mark.parametrize("method", METHODS)
def test_more_examples_than_there_are_is_one_line(loaded, method):
    resolved, found = loaded(f"method={method}", "method.statistics.examples=3001")
    with pytest.raises(InputError, match="^examples=3001, but task 'digits' has 3000 training examples: set method") as refusal:
        method_inputs.inputs(resolved, found)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("method", METHODS)
def test_a_bad_expert_is_one_line(loaded, tmp_path, method):
    resolved, found = loaded(f"method={method}", *FEW)
    resolved = _cached_in(resolved, tmp_path)
    broken = {name: tensor.clone() for name, tensor in found.experts["signs"].items()}
    broken["conv1.weight"][0] = torch.nan
    with pytest.raises(MergeError, match="expert 'signs': 'conv1.weight' has .* non-finite of"):
        method_inputs.inputs(resolved, dataclasses.replace(found, experts={**found.experts, "signs": broken}))
    assert not (tmp_path / "statistics").exists()
    large = {name: tensor * 1e30 for name, tensor in found.experts["signs"].items()}
    with pytest.raises(MergeError, match="^task 'signs': .* not finite") as refusal:
        method_inputs.inputs(resolved, dataclasses.replace(found, experts={**found.experts, "signs": large}))
    assert "\n" not in str(refusal.value)
    names = {name: tensor for name, tensor in found.pretrained.items() if name != "proj"}
    with pytest.raises(InputError, match="the expert of task 'signs' does not fit the model: Missing key.*proj") as refusal:
        method_inputs.inputs(resolved, dataclasses.replace(
            found, pretrained=names, experts={t: {n: w[n] for n in names} for t, w in found.experts.items()}
        ))
    assert "\n" not in str(refusal.value)


# ---------------------------------------------------------------- whole runs


@pytest.mark.parametrize("method", METHODS)
def test_a_whole_run(command, tmp_path, method):
    done = command(f"method={method}", *SMALL, *FEW)
    assert done.returncode == 0, done.stderr
    (record,) = records.read_all(tmp_path / "results")
    assert record.data["hyperparameters"]["examples"] == {"value": 10, "source": "given"}
    assert record.data["hyperparameters"]["order"]["source"] == SOURCE
    assert "found in" in command(f"method={method}", *SMALL, *FEW).stdout
    assert len(records.read_all(tmp_path / "results")) == 1
