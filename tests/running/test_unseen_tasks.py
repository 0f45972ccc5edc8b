"""Adaptations on the tasks of some of the experts, evaluated on all: what they read, learn, record and show."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from fusionbench_lite import registry
from fusionbench_lite.base.progress import Progress
from fusionbench_lite.errors import InputError
from fusionbench_lite.planning.command_line import plan_of
from fusionbench_lite.running import adapting, run
from fusionbench_lite.running.loading import load
from fusionbench_lite.tables import frame
from fusionbench_lite.tables.learned import read_learned

SEEN, UNSEEN = ("digits", "signs"), "land"
ALL = f"tasks=[digits,{UNSEEN},signs]"
SMALL = ("limit=48", "checkpoints.recipe={pretrain_steps: 4, finetune_steps: 3, multitask_steps: 3}")
SHORT = ("steps=3", "method.adaptation.eval_every=2", "method.adaptation.batch_size=4", "method.adaptation.held_out=8")
ONE_MODEL = [
    id for id in registry.names()
    if registry.get(id).adaptive and registry.get(id).needs_expert(registry.get(id).defaults) is None
]


@pytest.fixture(scope="module")
def zoo(shared_cache):
    """The folder of experts of all three tasks."""
    return load(plan_of([ALL, *SMALL, f"cache_dir={shared_cache}"]), lambda *said: None).folder


@pytest.fixture(scope="module")
def executed(shared_cache, zoo, tmp_path_factory):
    """Return the record of a line and its plan."""
    results = tmp_path_factory.mktemp("results")

    def execute(method, *line):
        words = [f"method={method}", *line, f"checkpoints.dir={zoo}", f"cache_dir={shared_cache}", f"results_dir={results}"]
        plan = plan_of([*words, SMALL[0], *SHORT])
        with Progress() as progress:
            record, _ = run.execute(plan, progress)
        assert record is not None
        return record, plan

    return execute


def test_which_methods_make_one_model():
    assert {"adamerging_layerwise", "adarank_cart", "doge_am", "concrete_am", "awd_am", "pareto_merging"} <= set(ONE_MODEL)
    assert not {"surgery", "metamerging", "wemoe", "twin_merging"} & set(ONE_MODEL)


@pytest.mark.parametrize(
    "line", ["adamerging_layerwise", "adarank_tsvm", "concrete_am", "doge_am method.delta_steps=2", "awd_am method.awd_steps=2"]
)
def test_the_unseen_task_changes_nothing_that_is_learned(executed, line):
    """The run whose tasks are those of the experts alone is the oracle: no example of another task was read in a step."""
    some, plan = executed(*line.split(), ALL, f"checkpoints.experts=[{','.join(SEEN)}]")
    alone, _ = executed(*line.split(), f"tasks=[{','.join(SEEN)}]")
    assert (some.path / "learned.safetensors").read_bytes() == (alone.path / "learned.safetensors").read_bytes()
    evaluations = [[entry["held_out_loss"] for entry in record.data["evaluations"]] for record in (some, alone)]
    assert evaluations[0] == evaluations[1]
    with np.load(some.path / "samples.npz") as ours, np.load(alone.path / "samples.npz") as theirs:
        for task in SEEN:
            assert np.array_equal(ours[f"last/{task}/predictions"], theirs[f"last/{task}/predictions"])
        suite = run.with_chosen_experts(load(plan, lambda *said: None), plan.experts)
        merged = adapting.restore(plan, suite, some.path, "last", 3)
        judged = suite.judge(UNSEEN, suite.encoder(merged))
        assert np.array_equal(ours[f"last/{UNSEEN}/predictions"], judged.predictions)


def test_the_record_says_which_tasks_were_seen(executed):
    record, _ = executed("adamerging_layerwise", ALL, f"checkpoints.experts=[{','.join(SEEN)}]")
    assert record.data["experts"] == list(SEEN)
    assert record.data["tasks"] == ["digits", UNSEEN, "signs"]
    with (record.path / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {name for name in rows[0] if name.startswith("loss/")} == {f"loss/{task}" for task in SEEN}
    assert all(rows[-1][f"accuracy/{task}"] for task in record.tasks)
    learned = read_learned(record)
    assert learned is not None
    assert learned.tasks == SEEN
    assert learned.coefficients["conv1.weight"].shape == (2,)
    table = frame.from_records([record])
    assert table.frame["family"].tolist() == [registry.SOME]
    assert any("land unseen" in note for note in table.notes)
    assert "Adaptations read examples of digits, signs alone." in table.notes
    whole, _ = executed("adamerging_layerwise", ALL)
    assert "experts" not in whole.data
    assert whole.key != record.key


def test_an_interrupted_one_ends_as_an_undisturbed_one(executed, monkeypatch, zoo, shared_cache, tmp_path):
    undisturbed, _ = executed("adamerging_layerwise", ALL, f"checkpoints.experts=[{','.join(SEEN)}]")
    plan = plan_of([
        "method=adamerging_layerwise", ALL, f"checkpoints.experts=[{','.join(SEEN)}]", SMALL[0], *SHORT, f"checkpoints.dir={zoo}",
        f"cache_dir={shared_cache}", f"results_dir={tmp_path}", "trainer.checkpoint_every=1",
    ])
    read = adapting.Feed.batches_of

    def stop(feed, step, tasks):
        if step == 2:
            raise KeyboardInterrupt
        return read(feed, step, tasks)

    with monkeypatch.context() as patched, Progress() as progress:
        patched.setattr(adapting.Feed, "batches_of", stop)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            run.execute(plan, progress)
    assert list(tmp_path.glob("partial/*/last.ckpt"))
    with Progress() as progress:
        resumed, fresh = run.execute(plan, progress)
    assert fresh
    assert resumed is not None
    assert resumed.key == undisturbed.key
    assert resumed.data["selections"] == undisturbed.data["selections"]
    assert json.dumps(resumed.data["evaluations"]) == json.dumps(undisturbed.data["evaluations"])
    ours, theirs = (load_file(record.path / "learned.safetensors") for record in (resumed, undisturbed))
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("method=tall_masks", "has no model for a task without an expert"),
        ("method=pareto_merging method.preference=task", "has no model for a task without an expert"),
        ("method=surgery", "has no adapter for a task without an expert"),
        ("method=metamerging model=vit_b32 tasks=8", "has no adapter for a task without an expert"),
        ("method=wemoe", "learns to tell the tasks of its experts apart"),
        ("method=twin_merging model=vit_b32 tasks=8", "learns to tell the tasks of its experts apart"),
    ],
)
def test_methods_that_need_every_expert_refuse_with_the_reason(line, reason):
    with pytest.raises(InputError, match=reason):
        plan_of([*line.split(), "checkpoints.experts=2"])


def test_published_models_take_some_of_the_experts_too():
    plan = plan_of(["method=adamerging_layerwise", "model=vit_b32", "tasks=8", "checkpoints.experts=[svhn,sun397]"])
    assert plan.seen == ("sun397", "svhn")  # in order of the tasks
    assert plan_of(["method=doge_am", "model=flan_t5_base", "checkpoints.experts=3"]).seen == ("cola", "mnli", "mrpc")
