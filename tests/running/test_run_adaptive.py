"""Adaptive runs through the command line: what records keep, adapters on recorded models, amounts of data, presets."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fusionbench_lite import registry
from fusionbench_lite.adaptation.streams import KINDS, subset
from fusionbench_lite.errors import InputError
from fusionbench_lite.evaluation.selection import RULES, choose
from fusionbench_lite.planning.command_line import plan_of
from fusionbench_lite.running import recording
from fusionbench_lite.running.adapting import Feed, procedure_of
from fusionbench_lite.running.loading import load
from fusionbench_lite.tables import frame, records

SMALL = (
    "tasks=[digits,signs,land]", "limit=48",
    "checkpoints.recipe={pretrain_steps: 4, finetune_steps: 3, multitask_steps: 3}",
)
SHORT = ("method.adaptation.eval_every=2", "method.adaptation.batch_size=4")


def of_method(folder, method) -> records.Record:
    (found,) = [record for record in records.read_all(folder / "results") if record.method == method]
    return found


@pytest.fixture(scope="module")
def adapted(module_command):
    """One AdaRank run with several evaluations, and the folder it ran in."""
    command, folder = module_command
    done = command("method=adarank", "steps=7", "method.lr=0.02", *SMALL, *SHORT)
    assert done.returncode == 0, done.stderr
    return of_method(folder, "adarank_cart")


def test_every_evaluation_is_kept(adapted):
    """A selection rule can be applied later: accuracies, held-out losses and predictions of every evaluation are there."""
    steps = [0, 2, 4, 6, 7]
    evaluations = adapted.data["evaluations"]
    assert [entry["step"] for entry in evaluations] == steps
    predictions = np.load(adapted.path / "evaluations.npz")
    samples = np.load(adapted.path / "samples.npz")
    assert set(predictions.files) == {f"{step}/{task}" for step in steps for task in adapted.tasks}
    averages = {entry["step"]: entry["average"] for entry in evaluations}
    held_out = {entry["step"]: entry["held_out_loss"] for entry in evaluations}
    assert all(np.isfinite(loss) and loss > 0 for loss in held_out.values())
    for rule in RULES:
        chosen = adapted.data["selections"][rule]
        assert chosen["step"] == choose(rule, averages, held_out)
        assert chosen["average"] == pytest.approx(averages[chosen["step"]])
        assert chosen["uses_test_labels"] == (rule == "best_test")
        for task in adapted.tasks:
            assert np.array_equal(predictions[f"{chosen['step']}/{task}"], samples[f"{rule}/{task}/predictions"])


def test_labels_of_training_examples_are_no_test_labels(command, tmp_path):
    done = command("method=map", "steps=3", *SMALL, *SHORT)
    assert done.returncode == 0, done.stderr
    chosen = of_method(tmp_path, "map").data["selections"]
    assert {rule for rule, selection in chosen.items() if selection["uses_test_labels"]} == {"best_test"}


def test_what_was_learned_is_kept_for_every_rule(adapted):
    last = load_file(adapted.path / "learned.safetensors")
    assert any(name.startswith("spectrum/") for name in last)
    for rule in RULES:
        own = adapted.path / f"learned-{rule}.safetensors"
        assert own.exists() == (adapted.data["selections"][rule]["step"] != 7)
        if own.exists():
            state = load_file(own)
            assert set(state) == {name for name in last if name.startswith("state/")}
            assert any(not np.array_equal(state[name], last[name]) for name in state)
    course = np.load(adapted.path / "trajectory.npz")
    assert course["steps"].tolist() == list(range(8))
    assert np.allclose(course["coefficients"][0], 2.3)
    named = {str(name): row for name, row in zip(course["names"], course["coefficients"][-1], strict=True)}
    assert np.allclose(named["conv1.weight"], last["coefficients/conv1.weight"])


def test_adapters_sit_on_a_recorded_adaptation(command, tmp_path):
    """The base is a run of its own, found again; its weights are rebuilt from what it learned."""
    base = ("method=adamerging_layerwise", "steps=3", *SMALL)
    own = ("method.adaptation.base_steps=3", "steps=0")
    surgery = ("method=surgery", "method.base=adamerging_layerwise", *own, *SMALL, *SHORT)
    done = command(*surgery)
    assert done.returncode == 0, done.stderr
    first = of_method(tmp_path, "adamerging_layerwise")
    record = of_method(tmp_path, "surgery")
    for task in record.tasks:  # no step was taken, so the adapters are the identity
        chosen = "last"
        assert record.data["selections"][chosen]["per_task"][task] == first.data["selections"][chosen]["per_task"][task]
    assert "found in" in command(*base).stdout
    assert "found in" in command(*surgery).stdout


def test_a_base_chosen_on_test_labels_marks_the_row(command, tmp_path):
    base = ("method.base=adarank_ta", "method.adaptation.base_steps=2", "method.adaptation.base_select=best_test")
    arguments = ("method=surgery", *base, "steps=1")
    assert command(*arguments, *SMALL, *SHORT).returncode == 0
    record = of_method(tmp_path, "surgery")
    assert all(chosen["uses_test_labels"] for chosen in record.data["selections"].values())
    assert frame.from_records([record]).frame["uses_test_labels"].all()


def test_the_supervised_oracle_marks_the_row(command, tmp_path):
    done = command("method=adarank_cart", "method.objective=cross_entropy", "steps=1", *SMALL, *SHORT)
    assert done.returncode == 0, done.stderr
    record = of_method(tmp_path, "adarank_cart")
    assert all(chosen["uses_test_labels"] for chosen in record.data["selections"].values())
    assert "†" in done.stdout


def test_a_part_of_the_data(command, tmp_path):
    """With one example left every batch is that example: the loss falls on it whatever the stream says."""
    arguments = ("method=adamerging_layerwise", "steps=2", "method.adaptation.fraction=0.001", *SMALL, *SHORT)
    assert command(*arguments).returncode == 0
    record = of_method(tmp_path, "adamerging_layerwise")
    assert record.data["hyperparameters"]["fraction"] == {"value": 0.001, "source": "given"}
    assert record.data["selections"]["last"]["per_task"]["digits"]["examples"] == 48  # evaluation is on all


def test_subsets_are_nested_sorted_and_seeded():
    small, large = subset(100, 10, 3, "digits"), subset(100, 50, 3, "digits")
    assert set(small) < set(large)
    assert (np.diff(small) > 0).all()
    assert not np.array_equal(small, subset(100, 10, 4, "digits"))
    assert subset(100, 100, 3, "digits").tolist() == list(range(100))


def test_a_named_preset_is_recorded(command, tmp_path):
    arguments = ("method=adamerging_layerwise", "preset=fusionbench", "steps=1", *SMALL)
    assert command(*arguments, "method.adaptation.batch_size=4").returncode == 0
    found = of_method(tmp_path, "adamerging_layerwise").data["hyperparameters"]
    assert found["clamp"]["value"] is False
    assert found["clamp"]["source"].startswith("preset: FusionBench")
    assert found["stream"]["value"] == "epoch"


REFUSALS = [
    (["method=adarank", "method.adaptation.fraction=0"], "method.adaptation.fraction must be a finite number in (0, 1], got 0"),
    (["method=adarank", "method.adaptation.held_out=-1"], "held_out must be an integer of at least 0, got -1"),
    (["method=adarank", "preset=fusionbenc"], "method 'adarank_cart' has no preset 'fusionbenc': it has none"),
    (["method=adamerging_layerwise", "preset=fusionbenc"], "did you mean 'fusionbench'"),
    (["method=surgery", "method.base=task_arithmetik"], "did you mean 'task_arithmetic'"),
    (["method=surgery", "method.base=tall_masks"], "needs one merged model as its base, which 'tall_masks' is not"),
    (["method=surgery", "method.base=wemoe"], "needs one merged model as its base, which 'wemoe' is not"),
    (["method=surgery", "method.base=surgery_v2"], "needs one merged model as its base, which 'surgery_v2' is not"),
    (["method=surgery", "method.adaptation.base_select=first"], "base_select must be one of last, best_test, best_unsup"),
    (["method=adarank", "method.adaptation.base_select=last"], "unknown key 'method.adaptation.base_select'"),
    (["method=adarank", "method.adaptation.batch_size=0"], "batch_size must be an integer of at least 1, got 0"),
]


@pytest.mark.parametrize(("arguments", "said"), REFUSALS, ids=lambda value: value[-1] if isinstance(value, list) else "")
def test_refusals(command, arguments, said):
    done = command(*arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert said in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1, json.dumps(done.stderr)


def test_the_stages_of_metamerging_read_batches_of_their_own_sizes(shared_cache, tmp_path):
    line = [*SMALL, f"cache_dir={shared_cache}", f"results_dir={tmp_path}", "steps=3", "method.adaptation.batch_size=6"]
    sizes = ["method.outer_batch_size=2", "method.adapter_batch_size=9", "method.adapter_steps=1", "method.inner_steps=2"]
    plan = plan_of(["method=metamerging", *line, *sizes])
    suite = load(plan, lambda *said: None)
    feed = Feed(plan, suite, procedure_of(plan, suite))
    read = [[len(draw["signs"]) for draw in feed.batches_of(step, ["signs"])] for step in range(3)]
    assert read == [[6, 6, 2], [6, 6, 2], [9]]


def test_batch_sizes_that_are_left_out_leave_keys_alone():
    plain = plan_of(["method=metamerging", *SMALL])
    chosen = plan_of(["method=metamerging", "method.outer_batch_size=2", *SMALL])
    known_by = registry.get("metamerging").known_by
    assert {"outer_batch_size", "adapter_batch_size"}.isdisjoint(known_by(plain.values))
    assert known_by(chosen.values)["outer_batch_size"] == 2
    published = plan_of(["method=metamerging", "model=vit_b32", "tasks=8"])
    assert (published.values["outer_batch_size"], published.values["adapter_batch_size"]) == (4, 128)


@pytest.mark.parametrize("stream", KINDS)
@pytest.mark.parametrize(("fraction", "count"), [(0.1, 4), (0.5, 24), (0.001, 1)])
def test_every_stream_reads_the_part_alone(shared_cache, tmp_path, stream, fraction, count):
    """⌊p N⌋ of 48 examples, at least one; all of them are read, whatever the stream; more of them contain fewer."""
    line = [*SMALL, f"cache_dir={shared_cache}", f"results_dir={tmp_path}", "steps=60", "method=adamerging_layerwise"]
    chosen = (f"method.adaptation.fraction={fraction}", f"method.adaptation.stream={stream}", "method.adaptation.batch_size=4")
    plan = plan_of([*line, *chosen])
    suite = load(plan, lambda *said: None)
    feed = Feed(plan, suite, procedure_of(plan, suite))
    (draw,) = feed.procedure.draws(0)
    read = {row for step in range(60) for row in feed.pools["signs"][feed._stream("signs", draw).indices(step)].tolist()}
    assert len(read) == count
    assert read == set(subset(48, count, 0, "signs", "fraction").tolist())
    assert set(subset(48, 24, 0, "signs", "fraction").tolist()) >= read


def test_another_device_is_another_run_of_a_method_whose_steps_draw_there(shared_cache, tmp_path):
    line = [*SMALL, f"cache_dir={shared_cache}", f"results_dir={tmp_path}"]
    noise = {}
    for method in ("concrete_ta", "concrete_am", "adamerging_layerwise"):
        plan = plan_of([*line, f"method={method}"])
        suite = load(plan, lambda *said: None)
        for device in ("cpu", "cuda"):
            there = dataclasses.replace(suite, device=torch.device(device))
            noise[method, device] = recording.identity(plan, there).get("noise")
    assert {key for key, value in noise.items() if value is not None} == {("concrete_ta", "cuda"), ("concrete_am", "cuda")}
    assert noise["concrete_ta", "cuda"] == "cuda"


def test_a_batch_without_examples_is_no_update(command, tmp_path):
    """Of 16 images a step's second batch of 16 is empty: its mean is no number, and momentum alone would move an adapter."""
    sizes = ("method.adaptation.batch_size=16", "limit=16", "steps=2")
    for batches in (1, 2):
        done = command("method=surgery", f"method.adaptation.batches={batches}", *SMALL, *sizes, f"results_dir=r{batches}")
        assert done.returncode == 0, done.stderr
    one, two = (records.read_all(tmp_path / f"r{batches}")[0] for batches in (1, 2))
    assert one.data["selections"]["last"]["per_task"] == two.data["selections"]["last"]["per_task"]
    courses = [(record.path / "history.csv").read_text() for record in (one, two)]
    assert courses[0] == courses[1]


def test_a_batch_that_some_tasks_have_no_examples_for_is_refused(shared_cache, tmp_path):
    line = [*SMALL, f"cache_dir={shared_cache}", f"results_dir={tmp_path}", "steps=1", "method=surgery"]
    plan = plan_of([*line, "method.adaptation.batch_size=16", "method.adaptation.batches=2"])
    suite = load(plan, lambda *said: None)
    feed = Feed(plan, suite, procedure_of(plan, suite))
    feed.pools["land"] = feed.pools["land"][:16]
    with pytest.raises(InputError, match="task 'land' has 16 examples, and a step takes 2 batches of 16, the last"):
        feed.batches_of(0, ["digits"])
