"""Some experts merged, all tasks evaluated: adaptations read the examples of the merged tasks alone."""

from __future__ import annotations

import csv
import json

import pytest
import torch
from safetensors.torch import load_file

from fusionbench_lite.errors import InputError
from fusionbench_lite.planning.command_line import plan_of
from fusionbench_lite.resources import planned
from fusionbench_lite.running import run
from fusionbench_lite.running.adapting import Feed, procedure_of
from fusionbench_lite.running.loading import load
from fusionbench_lite.tables import records

SMALL = [
    "tasks=[digits,signs,land]", "limit=48", "checkpoints.recipe={pretrain_steps: 4, finetune_steps: 3, multitask_steps: 3}",
    "method.adaptation.batch_size=4", "method.adaptation.eval_every=2", "checkpoints.experts=[signs,digits]",
]


def suite_of(plan):
    return run._with_chosen_experts(load(plan, lambda *said: None), plan.experts)


def test_an_adapted_model_is_judged_on_tasks_without_an_expert(command, tmp_path, shared_cache):
    """Every number of the record is that of θ0 + Σ clamp(λ) τ over the chosen experts, with the λ that were kept."""
    line = ["method=adamerging_layerwise", "method.lr=0.05", "steps=3", *SMALL]
    done = command(*line)
    assert done.returncode == 0, done.stderr
    (record,) = records.read_all(tmp_path / "results")
    assert record.data["config"]["checkpoints"]["experts"] == ["signs", "digits"]
    learned = load_file(record.path / "learned.safetensors")
    suite = suite_of(plan_of([*line, f"cache_dir={shared_cache}", f"results_dir={tmp_path}"]))
    weights = {}
    for name, base in suite.pretrained.items():
        values = learned[f"coefficients/{name}"].clamp(0, 1)
        assert values.shape == (2,)
        weights[name] = base + sum(values[i] * (suite.experts[t][name] - base) for i, t in enumerate(("signs", "digits")))
    expected = suite.evaluate(suite.encoder(weights))
    found = record.data["selections"]["last"]["per_task"]
    assert {task: found[task]["value"] for task in found} == pytest.approx({task: expected[task].value for task in suite.tasks})
    with (record.path / "history.csv").open() as file:
        head = next(csv.reader(file))
    assert [name for name in head if name.startswith("loss/")] == ["loss/signs", "loss/digits"]
    assert [name for name in head if name.startswith("accuracy/")] == ["accuracy/digits", "accuracy/signs", "accuracy/land"]


def test_steps_read_the_merged_tasks_alone(shared_cache, tmp_path):
    plan = plan_of(["method=adarank", "steps=2", *SMALL, f"cache_dir={shared_cache}", f"results_dir={tmp_path}"])
    suite = suite_of(plan)
    feed = Feed(plan, suite, procedure_of(plan, suite))
    assert set(feed.pools) == set(feed.held_out_rows) == {"digits", "signs"}
    whole = plan_of(["method=adarank", "steps=2", *SMALL[:-1], f"cache_dir={shared_cache}", f"results_dir={tmp_path}"])
    other = load(whole, lambda *said: None)
    read = Feed(whole, other, procedure_of(whole, other))
    for step in range(2):  # of the same streams as in a run on all tasks
        ours, theirs = (f.batches_of(step, ["signs"])[0]["signs"].inputs for f in (feed, read))
        assert torch.equal(ours, theirs)


def test_the_plan_counts_the_experts_that_are_merged():
    def tasks(line: str) -> int:
        plan = plan_of(["method=adarank", "model=vit_b32", "tasks=8", *line.split()])
        encoder, extent = plan.kind.architecture(plan.wanted), plan.kind.extent(plan.wanted)
        return planned.inputs_of(plan, encoder, extent, torch.device("cpu")).tasks

    assert (tasks("checkpoints.experts=[dtd,svhn,mnist]"), tasks("")) == (3, 8)


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("surgery", "knows no task without an expert"), ("wemoe", "knows no task without an expert"),
        ("individual", "has no model for a task without an expert"), ("metamerging", "choose tasks=['signs', 'digits']"),
    ],
)
def test_methods_that_need_every_expert_say_so(method, said):
    line = [one for one in SMALL if not one.startswith("method.adaptation") or method != "individual"]
    with pytest.raises(InputError) as refused:
        plan_of([f"method={method}", *line])
    assert said in str(refused.value)


def test_a_model_of_every_task_is_refused_before_steps(command):
    done = command("method=pareto_merging", "method.preference=task", "steps=1", *SMALL)
    assert done.returncode == 2
    assert "leave checkpoints.experts out" in done.stderr
    assert len(done.stderr.splitlines()) == 1, json.dumps(done.stderr)
