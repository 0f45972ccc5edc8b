"""Changes of the losses by single singular components: against finite differences, evaluation and the methods' own start."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import fusionbench_lite as fbl
from fusionbench_lite import components as command_line
from fusionbench_lite import registry
from fusionbench_lite.errors import MergeError
from fusionbench_lite.evaluation import component_changes
from fusionbench_lite.evaluation.component_changes import Start, changes, matrices, start_of
from fusionbench_lite.fields import describe
from fusionbench_lite.tables import component_pictures, style
from fusionbench_lite.weights.experts import Experts
from tests.support.helpers import distance, refused, same_bits, snapshot, touched
from tests.support.small_models import small_setting

MATRIX = "blocks.1.mlp.c_fc.weight"


def _case(method="task_arithmetic", objective="entropy", **given):
    s = small_setting(tasks=3)
    experts = Experts(s.pretrained, s.experts)
    values = describe(registry.get(method).configure(**given))
    labels = (lambda x: torch.arange(len(x)) % 3) if objective == "cross_entropy" else (lambda x: None)
    batches = {t: (torch.cat(b), labels(torch.cat(b))) for t, b in s.batches.items()}
    return s, experts, start_of(method, experts, values), batches


def _oracle_loss(s, weights, task, inputs, labels):
    """The mean loss of a copy of the model that holds these weights."""
    model = copy.deepcopy(s.model).eval()
    model.load_state_dict(weights)
    with torch.no_grad():
        probabilities = torch.softmax(s.heads[task](model(inputs)), -1).numpy()
    if labels is None:
        return float(-(probabilities * np.log(probabilities)).sum(1).mean())
    return float(-np.log(probabilities[np.arange(len(labels)), labels]).mean())


@pytest.mark.parametrize("objective", command_line.OBJECTIVES)
def test_first_order_is_the_slope_and_exact_the_difference(objective):
    s, experts, start, batches = _case(objective=objective, scaling=0.4)
    frame = changes(s.model, experts, start, s.heads, batches, [MATRIX], objective=objective, top=2)
    assert len(frame) == 3 * 6
    for task in experts.tasks:
        left, sizes, right = np.linalg.svd((s.experts[task][MATRIX] - s.pretrained[MATRIX]).numpy(), full_matrices=False)
        for index in (0, 1, 4):
            line = frame[(frame["task"] == task) & (frame["component"] == index)].iloc[0]
            assert line["singular_value"] == pytest.approx(sizes[index])
            added = torch.from_numpy(0.4 * sizes[index] * np.outer(left[:, index], right[index]))
            for other, (inputs, labels) in batches.items():

                def at(factor, other=other, inputs=inputs, labels=labels, added=added):
                    moved = {**start.weights, MATRIX: start.weights[MATRIX] + factor * added}
                    return _oracle_loss(s, moved, other, inputs, labels)

                assert line[f"first_order/{other}"] == pytest.approx((at(1e-4) - at(-1e-4)) / 2e-4, abs=1e-7)
                if index < 2:
                    assert line[f"exact/{other}"] == pytest.approx(at(1) - at(0), abs=1e-12)
                else:
                    assert np.isnan(line[f"exact/{other}"])


def test_components_add_up_to_the_slope_along_the_task_vector():
    s, experts, start, batches = _case(scaling=0.3)
    names = matrices(experts, "attn_mlp")
    assert len(names) == 8
    frame = changes(s.model, experts, start, s.heads, batches, names, top=0)
    slopes = component_changes.gradients(s.model, start.weights, names, s.heads, batches, "entropy")
    for (name, task), lines in frame.groupby(["matrix", "task"]):
        for other in batches:
            whole = 0.3 * float((slopes[other][name] * experts.task_vector(task, name)).sum())
            assert lines[f"first_order/{other}"].sum() == pytest.approx(whole, abs=1e-12)


@pytest.mark.parametrize(
    ("method", "given"),
    [
        ("adamerging_taskwise", {}), ("adamerging_layerwise", {"scaling": 1.4}), ("adarank_ta", {"rank_ratio": 0.5}),
        ("adarank_ta", {}), ("adarank_cart", {"rank_ratio": 0.5}), ("adarank_tsvm", {}), ("adamerging_cart", {"rank_ratio": 0.5}),
    ],
)
def test_starts_are_those_of_the_methods(method, given):
    s, _, start, _ = _case(method, **given)
    own = fbl.adapt(method, *s.arguments(), 0, **given).state_dict()
    assert set(start.weights) == set(own)
    for name in touched(own):
        assert distance(start.weights[name], own[name]) < 1e-9, name


def test_nothing_is_modified():
    s, experts, start, batches = _case()
    weights, before = snapshot(start.weights), snapshot(s.model.state_dict())
    s.model.train()
    changes(s.model, experts, start, s.heads, batches, [MATRIX], top=1)
    assert s.model.training
    assert same_bits(s.model.state_dict(), before)
    assert same_bits(start.weights, weights)
    assert all(parameter.grad is None for parameter in s.model.parameters())


def test_a_matrix_that_is_not_read_changes_nothing():
    s, _, start, batches = _case()
    frozen = Start({**start.weights, "extra": torch.eye(3, dtype=torch.float64)}, start.origin, start.scaling)
    slopes = component_changes.gradients(s.model, frozen.weights, ["extra"], s.heads, batches, "entropy")
    assert all(not slope["extra"].any() for slope in slopes.values())


def test_bad_input_is_refused_in_one_line(capsys):
    s, experts, start, batches = _case()
    with refused("blocks.1.mlp.c_fc.weight"):
        matrices(experts, "attn_mlp", "blocks.1.mlp.c_fc.weigt")
    with refused("encoder_linear"):
        matrices(experts, "encoder_linear")
    with refused("labels"):
        changes(s.model, experts, start, s.heads, batches, [MATRIX], objective="cross_entropy")
    for method in ("individual", "fisher_merging", "surgery"):
        with pytest.raises(MergeError, match="one merged model"):
            start_of(method, experts, {})
    for argument, word in (
        ("components.matrx=all", "matrix"), ("components.objective=entrpy", "entropy"), ("components.top=x", "integer"),
        ("components.examples=0", "at least 1"), ("methd=adarank", "method"),
    ):
        assert command_line.main([argument]) == 2
        error = capsys.readouterr().err
        assert word in error
        assert error.count("\n") == 1
    assert command_line.main(["--help"]) == 0


def test_the_picture_is_the_same_every_time_and_its_numbers_lie_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr(style, "DPI", 60)
    s, experts, start, batches = _case()
    frame = changes(s.model, experts, start, s.heads, batches, matrices(experts, "attn_mlp"), top=1)
    files = [component_pictures.draw(frame, experts.tasks, tmp_path / n / "x.png", "adarank_ta", "a test") for n in "ab"]
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]
    assert len(files[0][1].read_text().splitlines()) == len(frame) + 1
    sums = component_pictures.by_component(frame, experts.tasks)
    first = frame[(frame["task"] == "task1") & (frame["component"] == 2)]["first_order/task2"].sum()
    assert sums[1, 2, 2] == pytest.approx(first)
    own, others = component_pictures.own_and_others(frame, experts.tasks)
    line = frame.iloc[7]
    assert own[7] == line[f"first_order/{line['task']}"]
    assert own[7] + others[7] == pytest.approx(sum(line[f"first_order/{task}"] for task in experts.tasks))


@pytest.mark.slow
def test_command_line(command, tmp_path):
    done = command(
        "tasks=[digits,signs,land]", "checkpoints.recipe={pretrain_steps: 4, finetune_steps: 3, multitask_steps: 3}",
        "method=adarank", "components.matrix=transformer.resblocks.0.mlp.c_fc.weight", "components.examples=8",
        f"components.out={tmp_path / 'out'}", module="fusionbench_lite.components",
    )
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out").iterdir())) == 2
