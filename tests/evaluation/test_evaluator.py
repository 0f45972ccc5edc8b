"""Predictions do not depend on how the examples are divided: batch sizes, passes that tasks share, processes, precision."""

from __future__ import annotations

import dataclasses
import json
import logging
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from fusionbench_lite.data import TaskData
from fusionbench_lite.errors import InputError
from fusionbench_lite.evaluation import passes
from fusionbench_lite.evaluation.evaluator import Evaluator, average
from fusionbench_lite.models import clip
from fusionbench_lite.models.heads import ZeroShotHead
from tests.conftest import ROOT

SIZE = clip.ClipSize(image=32, patch=8, width=64, layers=2, heads=2, output=32, text_width=32, text_layers=2, text_heads=2)
CLASSES = {"dtd": 7, "svhn": 10, "mnist": 10}


def make(
    layout: str = "packed", batch_size: int | None = None, *, bf16: bool = False, shared: bool = False
) -> tuple[Evaluator, Callable[[Tensor], Tensor]]:
    """An evaluator of three random tasks and a random encoder; with `shared` two tasks are about the same images."""
    torch.manual_seed(0)
    encoder = clip.build(SIZE, layout).eval()
    numbers = np.random.default_rng(0)
    data, heads = {}, {}
    for count, (task, classes) in zip((23, 40, 31), CLASSES.items(), strict=True):
        images = numbers.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        labels = numbers.integers(0, classes, count)
        data[task] = TaskData(
            name=task, classes=tuple(map(str, range(classes))), train_images=images, train_labels=labels, test_images=images,
            test_labels=labels,
        )
        heads[task] = ZeroShotHead(torch.randn(classes, SIZE.output), 100.0)
    if shared:
        data["mnist"] = dataclasses.replace(data["svhn"], name="mnist", test_labels=data["svhn"].test_labels[::-1].copy())
    evaluator = Evaluator(
        data=data, heads=heads, device=torch.device("cpu"), batch_size=batch_size, prepare=clip.normalise, bf16=bf16
    )
    return evaluator, encoder


@pytest.mark.parametrize("layout", clip.LAYOUTS)
def test_predictions_are_those_of_one_example_after_another(layout: str):
    evaluator, encode = make(layout)
    found = evaluator.evaluate(encode)
    for task, result in found.items():
        with torch.no_grad():
            logits = [evaluator.heads[task](encode(evaluator.inputs(image[None]))) for image in evaluator.data[task].test_images]
        assert result.predictions.tolist() == [int(row.argmax()) for row in logits]
        likeliest = [float(np.exp(row.double().numpy() - row.double().numpy().max()).sum() ** -1) for row in logits]
        assert result.confidence == pytest.approx(np.mean(likeliest), abs=1e-6)
        assert result.value == np.mean(result.predictions == evaluator.data[task].test_labels)
    assert average(found) == pytest.approx(np.mean([result.value for result in found.values()]))


@pytest.mark.parametrize("size", [1, 2, 7, 40, 1000])
def test_the_batch_size_changes_nothing(size: int):
    automatic, encode = make()
    given, _ = make(batch_size=size)
    for task, result in given.evaluate(encode).items():
        np.testing.assert_array_equal(result.predictions, automatic.task(task, encode).predictions)


def test_tasks_with_the_same_images_share_a_pass():
    evaluator, encode = make(shared=True)
    seen = []
    together = evaluator.evaluate(lambda inputs: (seen.append(len(inputs)), encode(inputs))[1])
    assert sum(seen) == 23 + 40
    for task, result in together.items():
        np.testing.assert_array_equal(result.predictions, evaluator.task(task, encode).predictions)
        np.testing.assert_array_equal(result.correct, result.predictions == evaluator.data[task].test_labels)
    assert list(together) == list(CLASSES)


def test_memory_that_runs_out_halves_the_batch_and_loses_no_example(caplog: pytest.LogCaptureFixture):
    evaluator, encode = make(batch_size=32)
    sizes = []

    def small(inputs: Tensor) -> Tensor:
        if len(inputs) > 9:
            raise torch.OutOfMemoryError("no memory")
        sizes.append(len(inputs))
        return encode(inputs)

    with caplog.at_level(logging.WARNING):
        found = evaluator.evaluate(small)
    assert sizes[0] == 6  # 23 halves to 12 and that to 6
    assert max(sizes) == 6
    assert "trying 6" in caplog.text
    unlimited, _ = make()
    for task, result in found.items():
        np.testing.assert_array_equal(result.predictions, unlimited.task(task, encode).predictions)


def test_one_example_that_does_not_fit_is_refused():
    def never(inputs: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("no memory")

    with pytest.raises(InputError, match="one example at a time"):
        make()[0].evaluate(never)


def test_the_size_on_a_processor_follows_the_images():
    cpu = torch.device("cpu")
    assert passes.Passes(None, 32 * 32, cpu).size == 250
    assert passes.Passes(None, 224 * 224, cpu).size == 64
    assert passes.Passes(None, 10_000 * 10_000, cpu).size == 1
    assert passes.Passes(5, 224 * 224, cpu).size == 5


def test_mixed_precision_runs_the_encoder_in_bf16_and_the_head_in_float32():
    evaluator, encode = make(bf16=True)
    kinds = []

    def watched(inputs: Tensor) -> Tensor:
        features = encode(inputs)
        kinds.append(features.dtype)
        return features

    found = evaluator.evaluate(watched)
    exact = make()[0].evaluate(encode)
    assert set(kinds) == {torch.bfloat16}
    agree = np.mean([np.mean(found[task].predictions == exact[task].predictions) for task in found])
    assert agree > 0.9


@pytest.mark.slow
def test_two_processes_share_the_tasks_and_find_the_same():
    size = 16
    evaluator, encode = make()
    alone = {task: result.predictions.tolist() for task, result in evaluator.evaluate(encode).items()}
    line = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0", "--rdzv-backend=c10d",
        "--rdzv-endpoint=127.0.0.1:0", "-m", "tests.support.evaluator_job", str(size),
    ]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=240, check=True)
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(found) == 2
    assert all(each["predictions"] == alone for each in found)
    passes = sorted(each["passes"] for each in found)
    total = [-(-count // size) for count in (23, 40, 31)]
    assert passes == sorted([total[0] + total[2], total[1]])
