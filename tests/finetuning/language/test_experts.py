"""Experts of language models: trained, stored as their libraries load them, and the same bits after a stop."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fusionbench_lite.errors import InputError
from fusionbench_lite.finetuning.language import recipe
from fusionbench_lite.models.language import encoder_of, full_model
from fusionbench_lite.paths import file_sha256
from tests.conftest import ROOT
from tests.support.language_job import EVERY, RECIPE, RECIPES, kind_of, pretrained, task, train

KINDS = list(RECIPES)


class Stopped(Exception):
    """What stands for a failure."""


def outcome(path):
    """All that a training leaves, without times."""
    manifest = json.loads((path.parent / "manifest.json").read_text())
    for entry in manifest["files"].values():
        for name in ("seconds", "settings"):
            entry.pop(name, None)
    files = {file.name: file.read_bytes() for file in path.iterdir()}
    return manifest, files, (path.parent / f"history-{path.name}.csv").read_text()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    paths = {}

    def of(name):
        if name not in paths:
            paths[name] = train(tmp_path_factory.mktemp(name) / "own", name)
        return paths[name]

    return of


@pytest.mark.parametrize("name", KINDS)
def test_layout_and_manifest(undisturbed, name):
    path = undisturbed(name)
    weights = "adapter_model.safetensors" if name == "lora" else "model.safetensors"
    settings = "adapter_config.json" if name == "lora" else "config.json"
    assert {file.name for file in path.iterdir()} == {weights, settings}
    base = path.parent / "pretrained"
    assert {file.name for file in base.iterdir()} == {"config.json", "model.safetensors", "tokenizer.json"}
    manifest = json.loads((path.parent / "manifest.json").read_text())
    files = [file for folder in (base, path) for file in folder.iterdir()]
    assert {f"{file.parent.name}/{file.name}": file_sha256(file) for file in files} == {
        file: entry["sha256"] for file, entry in manifest["files"].items()
    }
    entry = manifest["files"][f"toy/{weights}"]
    held = 0 if name == "lora" else 12
    assert (entry["seed"], entry["texts"], entry["held_out"]["texts"]) == (4, 60 - held, held)
    assert entry["recipe"]["lr"] == 0.01
    assert {"torch", "transformers"} <= set(entry["versions"])
    assert ("peft" in entry["versions"]) == (name == "lora")
    assert not [*path.parent.glob(".*.ckpt"), *path.parent.glob(".*.tmp")]
    history = (path.parent / "history-toy.csv").read_text().splitlines()
    assert history[0] == "step,lr,loss/toy"
    losses = [float(line.split(",")[2]) for line in history[1:]]
    assert np.mean(losses[-4:]) < np.mean(losses[:4])


@pytest.mark.parametrize("name", ["gpt2", "roberta", "bert"])
def test_an_expert_is_a_model_of_its_library(undisturbed, name):
    import transformers

    path = undisturbed(name)
    theirs, note = transformers.AutoModelForSequenceClassification.from_pretrained(path, output_loading_info=True)
    assert not note["missing_keys"]
    assert not note["unexpected_keys"]
    assert theirs.config.id2label == {0: "without", 1: "with"}
    ours = full_model(path, 2)
    inputs = {key: torch.from_numpy(array) for key, array in task(name).test_images[:].items()}
    with torch.no_grad():
        encoder = encoder_of(ours)
        logits = encoder.head(ours.state_dict())(encoder(**inputs))
        torch.testing.assert_close(logits, theirs.eval()(**inputs).logits, rtol=1e-5, atol=1e-6)
    before, after = (load_file(folder / "model.safetensors") for folder in (path.parent / "pretrained", path))
    assert any(not torch.equal(after[key], tensor) for key, tensor in before.items())


def test_t5_keeps_its_lm_head_apart(undisturbed):
    import transformers

    path = undisturbed("t5")
    stored = load_file(path / "model.safetensors")
    assert not torch.equal(stored["lm_head.weight"], stored["shared.weight"])
    theirs = transformers.T5ForConditionalGeneration.from_pretrained(path)
    assert torch.equal(theirs.lm_head.weight, stored["lm_head.weight"])
    assert torch.equal(full_model(path).lm_head.weight, stored["lm_head.weight"])


def test_adapters_are_pefts(undisturbed, tmp_path):
    import peft

    path = undisturbed("lora")
    base = full_model(path.parent / "pretrained")
    wrapped = peft.PeftModel.from_pretrained(base, path)
    said = json.loads((path / "adapter_config.json").read_text())
    assert (said["r"], said["lora_alpha"], sorted(said["target_modules"])) == (2, 4, ["q", "v"])
    assert said["task_type"] == "SEQ_2_SEQ_LM"
    before = full_model(path.parent / "pretrained").state_dict()
    changed = {key for key, tensor in wrapped.merge_and_unload().state_dict().items() if not torch.equal(tensor, before[key])}
    assert changed
    assert all(key.endswith((".q.weight", ".v.weight")) for key in changed)


def test_scores_are_fitted_by_squares(tmp_path):
    path = train(tmp_path / "own", "bert", task=task("bert", scores=True))
    assert json.loads((path / "config.json").read_text())["id2label"] == {"0": "score"}
    losses = [float(line.split(",")[2]) for line in (path.parent / "history-toy.csv").read_text().splitlines()[1:]]
    assert losses[-1] < 0.7 < losses[0]
    manifest = json.loads((path.parent / "manifest.json").read_text())
    assert manifest["files"]["toy/model.safetensors"]["held_out"]["metric"] == "spearman"


@pytest.mark.parametrize("name", KINDS)
def test_stopped_and_started_again(undisturbed, tmp_path, name):
    stops = (1, EVERY, 2 * EVERY + 2, 15)
    for stop in stops:
        def report(what, done, total, stop=stop):
            if done == stop:
                raise Stopped

        with pytest.raises(Stopped):
            train(tmp_path / "own", name, report=report)
        assert not (tmp_path / "own" / "toy").exists()
    steps = []
    path = train(tmp_path / "own", name, report=lambda what, done, total: steps.append(done))
    assert outcome(path) == outcome(undisturbed(name))
    assert steps[0] == (stops[-1] - 1) // EVERY * EVERY + 1  # continued, not begun anew
    assert not [*path.parent.glob(".*.ckpt"), *path.parent.glob(".*.tmp")]


def test_killed_and_started_again(undisturbed, tmp_path):
    pretrained(tmp_path / "base-roberta", "roberta")
    job = [sys.executable, "-m", "tests.support.language_job", tmp_path / "own", "roberta", "11"]
    killed = subprocess.run(job, check=False, capture_output=True, cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    steps = []
    path = train(tmp_path / "own", "roberta", report=lambda what, done, total: steps.append(done))
    assert outcome(path) == outcome(undisturbed("roberta"))
    assert steps[0] == 10


def test_the_best_epoch_is_what_is_stored(undisturbed):
    path = undisturbed("roberta")
    held = json.loads((path.parent / "manifest.json").read_text())["files"]["toy/model.safetensors"]["held_out"]
    assert held["value"] == max(held["by_step"].values())
    assert held["by_step"][str(held["step"])] == held["value"]


def test_what_is_there_is_not_trained_again(tmp_path, caplog):
    steps = []

    def report(what, done, total):
        steps.append(done)

    path = train(tmp_path / "own", "bert", report=report)
    first = outcome(path)
    again = train(tmp_path / "own", "bert", report=report)
    assert len(steps) == 15
    assert outcome(again) == first
    with pytest.raises(InputError, match=r"trained otherwise \(lr 0.01, not 0.02\): overwrite it"):
        train(tmp_path / "own", "bert", recipe=dataclasses.replace(RECIPES["bert"], lr=0.02))
    with pytest.raises(InputError, match=r"trained otherwise \(seed 4, 15 steps"):
        train(tmp_path / "own", "bert", seed=5)
    other = train(tmp_path / "own", "bert", seed=5, overwrite=True)
    assert outcome(other)[1] != first[1]
    (path / "model.safetensors").write_bytes(b"damaged")
    assert outcome(train(tmp_path / "own", "bert")) == first
    assert "is damaged" in caplog.text


def test_parts_of_a_batch_and_frequent_measurements_change_little(tmp_path, undisturbed):
    path = train(tmp_path / "own", "bert", chunk=3, evaluate_every=2)
    whole = load_file(undisturbed("bert") / "model.safetensors")
    for name, tensor in load_file(path / "model.safetensors").items():
        torch.testing.assert_close(tensor, whole[name], rtol=1e-3, atol=1e-3)
    held = json.loads((path.parent / "manifest.json").read_text())["files"]["toy/model.safetensors"]["held_out"]
    assert list(held["by_step"]) == ["2", "4", "5", "6", "8", "10", "12", "14", "15"]


BAD = {
    "another base": ({"base": "roberta"}, "is another base model"),
    "class numbers alone": ({"task": task("gpt2"), "name": "t5"}, "class numbers alone, and the model in .* generates its answers"),
    "answers": ({"task": task("t5"), "name": "bert"}, "has answers, and the model in .* has a head of classes"),
    "no texts": ({"task": task("gpt2", texts=0)}, "has no training texts"),
    "all held out": ({"recipe": dataclasses.replace(RECIPE, held_out=0.01, select="best_epoch")}, "60 texts to train on and 0"),
    "the folder's own name": ({"task": task("gpt2", name="pretrained")}, "call the task otherwise"),
}


@pytest.mark.parametrize(("given", "message"), BAD.values(), ids=BAD)
def test_bad_input(tmp_path, given, message):
    given = dict(given)
    name, base = given.pop("name", "gpt2"), given.pop("base", None)
    if base is not None:
        train(tmp_path / "own", base, task=task(kind_of(base), name="before"))
    with pytest.raises(InputError, match=message):
        train(tmp_path / "own", name, **given)


def test_texts_that_do_not_fit_the_model(tmp_path):
    whole = task("gpt2")
    ids = whole.train_images.rows()
    for row, message in (
        (np.arange(10, 30), "its longest training text: Gpt2Encoder: input_ids have 20 positions, the model 12"),
        (np.array([3, 77]), "has token 77, the model's vocabulary ends at 49: read the task with the tokenizer of this model"),
    ):
        texts = type(whole.train_images)([*ids[:-1], row.astype(np.int32)], 49)
        with pytest.raises(InputError, match=message):
            train(tmp_path / "own", "gpt2", task=dataclasses.replace(whole, train_images=texts))


def test_labels_that_do_not_fit(tmp_path):
    whole = task("gpt2")
    for labels, message in ((whole.train_labels[:-1], "60 training texts and 59 labels"), (whole.train_labels + 1, "from 1 to 2")):
        with pytest.raises(InputError, match=message):
            train(tmp_path / "own", "gpt2", task=dataclasses.replace(whole, train_labels=labels))


def test_a_damaged_base_is_replaced_and_an_unknown_one_refused(tmp_path, caplog):
    path = train(tmp_path / "own", "bert")
    base = path.parent / "pretrained" / "model.safetensors"
    base.write_bytes(b"x")
    train(tmp_path / "own", "bert", task=task("bert", name="second"))
    assert base.read_bytes() == (tmp_path / "base-bert" / "model.safetensors").read_bytes()
    assert "it is replaced" in caplog.text
    (path.parent / "manifest.json").unlink()
    base.write_bytes(b"x")
    with pytest.raises(InputError, match="is another model's than"):
        train(tmp_path / "own", "bert", task=task("bert", name="third"))


def test_recipes():
    assert recipe("roberta").course("mrpc", 100).lr == 5e-5
    assert recipe("roberta").course("cola", 100).lr == 1e-5
    assert recipe("roberta", lr=2e-5).course("mrpc", 100).lr == 2e-5
    assert recipe("roberta").course("cola", 50).warmup == 3
    assert recipe("gpt2").steps_of(100) == 3 * 13
    changed = recipe("gpt2", steps=7)
    assert (changed.steps_of(100), changed.epochs) == (7, None)
    assert changed.source.endswith("; changed: steps=7")
    for name, given, message in (
        ("roberto", {}, "did you mean 'roberta'"), ("gpt2", {"lr": 0}, "lr"), ("gpt2", {"steps": 1, "epochs": 1}, "both given"),
        ("gpt2", {"select": "best_epoch"}, "needs held-out texts"), ("gpt2", {"batches": 1}, "batch"),
    ):
        with pytest.raises(InputError, match=message):
            recipe(name, **given)


